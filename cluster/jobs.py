"""Runs as Ray jobs: submit, list, follow, stop. A job is one attempt at a run, and knows a command line and a run
directory."""

from __future__ import annotations

import asyncio
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.client import Cluster
from cluster.names import Refused, safe, split_id, submission_id

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails

EXPERIMENT = "experiment.yaml"
GRACE_S = (
    180  # between SIGTERM and SIGKILL: a step, a checkpoint, and MLflow's last items; Ray's own 3 s are for none of it
)
LIVE = ("PENDING", "RUNNING")
RACES = 3  # submits of one run at the same moment, of which one gets the number


@dataclass(frozen=True)
class Work:
    """What is to run.

    Attributes:
        run: its name, and that of its directory below `storage`.
        experiment: the text of the experiment file.
        storage: a directory that all machines of the cluster share.
        env: environment variables of the run's processes.
        mirror: where an object store keeps the run as well; None: nowhere.
        files: more files for the working directory of all its processes, by name; a user's own space, say.
    """

    run: str
    experiment: str
    storage: str
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    mirror: str | None = None

    @property
    def run_dir(self) -> str:
        return f"{self.storage.rstrip('/')}/{safe(self.run, 'the run')}"

    @property
    def entrypoint(self) -> str:
        return self.command(EXPERIMENT)

    def command(self, experiment: str) -> str:
        """The command line that runs an experiment file."""
        return shlex.join(
            ["nas", "run", experiment, "--run-dir", self.run_dir, *(["--mirror", self.mirror] if self.mirror else [])]
        )

    @property
    def digest(self) -> str:
        return sha256(self.experiment.encode()).hexdigest()[:16]

    def env_vars(self) -> dict[str, str]:
        """The environment of the job; all who may see the cluster's jobs see it, so nothing in it is secret."""
        return {**self.env, "RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S)}


@dataclass(frozen=True)
class Job:
    """One attempt at a run, as the cluster tells of it. Times are seconds since 1970."""

    id: str
    run: str
    attempt: int
    status: str
    run_dir: str
    digest: str
    began: float | None
    ended: float | None
    message: str

    @property
    def live(self) -> bool:
        return self.status in LIVE


@dataclass(frozen=True)
class Submitted:
    """What a submit came to: the job, whether it is a new one, and whether a live one was given another experiment."""

    job: Job
    new: bool
    differs: bool


def submit(cluster: Cluster, work: Work) -> Submitted:
    """Start the next attempt at a run, which continues it; a run that is live already is answered with its job.

    Raises:
        Refused: a live run of that name has another directory.
    """
    problem: Exception | None = None
    for _ in range(RACES):
        attempts = [job for job in listed(cluster) if job.run == work.run]
        if live := next((job for job in attempts if job.live), None):
            return _answer(live, work)
        id_ = submission_id(work.run, 1 + max((job.attempt for job in attempts), default=0))
        try:
            _start(cluster, work, id_)
        except RuntimeError as error:  # somebody else took the number meanwhile; what else it may be comes again
            problem = error
            continue
        return Submitted(found(cluster, id_), new=True, differs=False)
    raise Refused(f"the cluster does not take the job {id_}: {_last_line(problem)}")


def _answer(live: Job, work: Work) -> Submitted:
    if live.run_dir != work.run_dir:
        raise Refused(
            f"the run {work.run!r} in {live.run_dir} is live there as {live.id}; yours would be in {work.run_dir}: "
            "name it otherwise (--set name=...)"
        )
    return Submitted(live, new=False, differs=live.digest != work.digest)


def _start(cluster: Cluster, work: Work, id_: str) -> None:
    metadata = {"raynas": "run", "run_dir": work.run_dir, "experiment": work.digest}
    files = {**work.files, EXPERIMENT: work.experiment.encode()}
    launch(cluster, id_, work.entrypoint, files, work.env_vars(), metadata)


def launch(
    cluster: Cluster,
    id_: str,
    entrypoint: str,
    files: Mapping[str, bytes],
    env: Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    """Start a job in a working directory that holds `files` and nothing else, so that nothing of this machine is
    sent by accident."""
    with tempfile.TemporaryDirectory(prefix="raynas-") as folder:
        for name, content in files.items():
            (Path(folder) / safe(name, "the file")).write_bytes(content)
        runtime_env: dict[str, Any] = {"working_dir": folder, "env_vars": dict(env)}
        cluster.client.submit_job(
            entrypoint=entrypoint, submission_id=id_, runtime_env=runtime_env, metadata=dict(metadata)
        )


def listed(cluster: Cluster) -> list[Job]:
    """All attempts at runs that the cluster remembers, oldest first. A head that was restarted has forgotten those
    before."""
    jobs = [job for details in cluster.client.list_jobs() if (job := _job(details))]
    return sorted(jobs, key=lambda job: (job.began or 0, job.attempt))


def _job(details: JobDetails) -> Job | None:
    metadata = details.metadata or {}
    parts = split_id(details.submission_id or "")
    if metadata.get("raynas") != "run" or parts is None:
        return None
    began, ended = (stamp / 1000 if stamp else None for stamp in (details.start_time, details.end_time))
    status, message = str(getattr(details.status, "value", details.status)), details.message or ""
    return Job(
        str(details.submission_id),
        *parts,
        status,
        metadata.get("run_dir", ""),
        metadata.get("experiment", ""),
        began,
        ended,
        message,
    )


def found(cluster: Cluster, name: str) -> Job:
    """The job of that id, or the newest attempt at the run of that name.

    Raises:
        Refused: there is neither, or both.
    """
    safe(name, "the job")
    jobs = listed(cluster)
    exact, attempts = ([job for job in jobs if of(job) == name] for of in (attrgetter("id"), attrgetter("run")))
    if exact and attempts:
        raise Refused(
            f"{name!r} is a job, attempt {exact[-1].attempt} at the run {exact[-1].run!r}, and a run too: give "
            f"{attempts[-1].id!r} for that one"
        )
    if not (exact or attempts):
        known = ", ".join(job.id for job in jobs[-10:]) or "none"
        raise Refused(f"no job and no run {name!r} on {cluster.address}; the last ones it knows: {known}")
    return (exact or attempts)[-1]


def log(cluster: Cluster, job: Job) -> str:
    """All that a job has printed so far."""
    return cluster.client.get_job_logs(job.id)


def follow(cluster: Cluster, job: Job) -> Iterator[str]:
    """What a job prints, as it comes, from its beginning to its end. A connection that breaks is made again."""
    seen, failures = 0, 0
    while failures < 5:
        got = 0
        try:
            for text in _tail(cluster, job.id):
                got += len(text)
                if got > seen:
                    yield text[len(text) - min(len(text), got - seen) :]
                    seen, failures = got, 0
            return
        except (RuntimeError, OSError):
            failures += 1
            time.sleep(2**failures)
    raise Refused(
        f"the connection to {cluster.address} broke again and again; the job goes on: nas logs {job.id} --follow"
    )


def _tail(cluster: Cluster, id_: str) -> Iterator[str]:
    """Ray's own generator of log lines is asynchronous; this one is not."""
    lines = cluster.client.tail_job_logs(id_)
    with asyncio.Runner() as runner:
        while (text := runner.run(_next(lines))) is not None:
            yield text


async def _next(lines: Any) -> str | None:
    return await anext(lines, None)


def stop(cluster: Cluster, job: Job, wait_s: float = GRACE_S + 30) -> Job:
    """Ask a job to end in order (it saves a checkpoint), and wait until it has."""
    cluster.client.stop_job(job.id)
    return finished(cluster, job, wait_s)


def finished(cluster: Cluster, job: Job, wait_s: float) -> Job:
    """The job, once it is over.

    Raises:
        Refused: it is not over after `wait_s`.
    """
    end = time.monotonic() + wait_s
    while (job := found(cluster, job.id)).live:
        if time.monotonic() > end:
            raise Refused(f"{job.id} is still {job.status} after {wait_s:g} s")
        time.sleep(1)
    return job


def _last_line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "no reason given"
