"""Children and report back to this machine: copied where the shared storage is mounted here too, else through the Jobs
server.

Through the server it is a short job whose output is a tar, read back by the server's log endpoint, which gives any
bytes. So fetching needs what submitting needs, one address and the token: no other port (Ray Client), no pickles, no
store between, nothing to clean up on the head.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shlex
import shutil
import tarfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError
from urllib.parse import urlencode

from cluster import pack
from cluster.check import ended
from cluster.client import Cluster
from cluster.jobs import Job, launch
from cluster.names import Refused, inside, safe

MANIFEST = "manifest.json"
TRANSFER_S = 3600
HEADER_BYTES = 1 << 20  # what Ray may write into a job's log before the job's own output


@dataclass(frozen=True)
class Fetched:
    """What came: the ids of the children, their directory, and which way."""

    children: list[str]
    folder: Path
    through: str


def fetch(cluster: Cluster, job: Job, target: Path) -> Fetched:
    """Bring a run's children, report and experiment into `target`; what an earlier fetch brought is replaced.

    Raises:
        Refused: there is nothing to fetch, it did not arrive whole, or it is not what its manifests say.
    """
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    beside.mkdir(parents=True)
    try:
        if mounted(job):
            _copy(Path(job.run_dir), beside)
            through = f"copied from {job.run_dir}"
        else:
            _stream(cluster, job, beside)
            through = f"through {cluster.address}"
        children = sorted(path.name for path in beside.glob(f"{pack.CHILDREN}/*"))
        for child in children:
            verify(beside / pack.CHILDREN / child)
        if not children:
            raise Refused(f"{job.run_dir} has no children yet; {job.id} is {job.status}")
        _settle(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Fetched(children, target / pack.CHILDREN, through)


def mounted(job: Job) -> bool:
    """Whether the shared storage is mounted on this machine too, at the same place."""
    return (Path(job.run_dir) / "experiment.yaml").is_file()


def _copy(run: Path, into: Path) -> None:
    for name in pack.wanted(run):
        place = inside(into, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / name, place)


def _stream(cluster: Cluster, job: Job, into: Path) -> None:
    id_, script = f"raynas-fetch-{secrets.token_hex(4)}", Path(pack.__file__)
    launch(
        cluster,
        id_,
        shlex.join(["python", script.name, job.run_dir]),
        {script.name: script.read_bytes()},
        {},
        {"raynas": "fetch"},
    )
    status = ended(cluster, id_)
    if status != "SUCCEEDED":
        said = cluster.client.get_job_logs(id_).strip().splitlines()
        raise Refused(f"nothing was fetched: {said[-1] if said else status}")
    # By node and file: Ray 2.60 answers the same question by submission_id with HTTP 500.
    log = {"node_id": cluster.client.get_job_info(id_).driver_node_id, "filename": f"job-driver-{id_}.log"}
    try:
        with cluster.get(
            "/api/v0/logs/file?" + urlencode({**log, "lines": -1, "timeout": TRANSFER_S}), timeout_s=60
        ) as answer:
            unpack(answer, into)
    except (URLError, OSError, HTTPException) as error:
        raise Refused(f"the connection to {cluster.address} broke while files came ({error}); try again") from None
    with contextlib.suppress(RuntimeError):
        cluster.client.delete_job(id_)


def unpack(stream: IO[bytes], into: Path) -> None:
    """Write the files of a stream made by `pack` into a directory, and nothing outside it.

    Raises:
        Refused: the stream is cut or damaged, or a name in it leads elsewhere.
    """
    read = 0
    while (line := stream.readline(HEADER_BYTES)) != pack.MARK:
        read += len(line)
        if not line or read > HEADER_BYTES:
            raise Refused("what came from the cluster is no pack of a run")
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            missing = _members(tar, into)
    except tarfile.TarError as error:
        raise Refused(f"what came from the cluster is cut or damaged ({error}); try again") from None
    if missing:
        raise Refused(
            f"what came from the cluster is cut: {len(missing)} files are missing, {min(missing)} among them; try again"
        )


def _members(tar: tarfile.TarFile, into: Path) -> set[str]:
    """Write what the tar holds; returns the names of its list that did not come."""
    sums: dict[str, str] | None = None
    for member in tar:
        source = tar.extractfile(member) if member.isfile() else None
        if source is None:
            raise Refused(f"{member.name!r} in what came from the cluster is no plain file")
        if sums is None:
            sums = dict(json.load(source))
        elif sums.pop(member.name, None) != _write(source, inside(into, member.name)):
            raise Refused(f"{member.name} did not come as it was sent; try again")
    return {"the list of files"} if sums is None else set(sums)


def _write(source: IO[bytes], place: Path) -> str:
    place.parent.mkdir(parents=True, exist_ok=True)
    seen = hashlib.sha256()
    with place.open("xb") as file:
        while block := source.read(1 << 20):
            seen.update(block)
            file.write(block)
    return seen.hexdigest()


def verify(child: Path) -> None:
    """Hold a child's directory against its manifest.

    Raises:
        Refused: a file is missing, changed, or not in the manifest.
    """
    safe(child.name, "the child")
    try:
        files: dict[str, Any] = json.loads((child / MANIFEST).read_text())["files"]
        want = {name: facts["sha256"] for name, facts in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"the child {child.name} has no readable {MANIFEST}: {error}") from None
    have = {str(path.relative_to(child)): pack.digest(path) for path in child.rglob("*") if path.is_file()}
    have.pop(MANIFEST)
    if wrong := sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name)):
        raise Refused(
            f"the child {child.name} is not what its manifest says: {', '.join(wrong[:5])}; try again, or export it "
            "again"
        )


def _settle(beside: Path, target: Path) -> None:
    """Put what was verified in place, each child by one rename."""
    for path in [*beside.glob(f"{pack.CHILDREN}/*"), *(beside / name for name in pack.FILES)]:
        if path.exists():
            _replace(path, inside(target, str(path.relative_to(beside))))


def _replace(new: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():
        old = place.with_name(f".{place.name}.{secrets.token_hex(4)}.old")
        place.rename(old)
        new.rename(place)
        shutil.rmtree(old)
    else:
        new.replace(place)
