"""Before a run is submitted: has the cluster what it needs? Asked by a short job that looks from inside, answered on
one screen."""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster import probe
from cluster.client import Cluster
from cluster.jobs import EXPERIMENT, Work, launch
from cluster.names import Refused

PATIENCE_S = 600.0
MOST_LINES = 12


@dataclass(frozen=True)
class Needs:
    """What a run asks of a cluster.

    Attributes:
        cpus: at a time.
        workers: of the training; each wants a GPU, if GPUs are used.
        use_gpu: None where they are used if the cluster has them.
        tracking: MLflow's URI.
    """

    cpus: float
    workers: int
    use_gpu: bool | None
    tracking: str | None


def check(cluster: Cluster, work: Work, needs: Needs) -> list[str]:
    """Look at the cluster from inside.

    Returns:
        What a person should know: what there is, and what is unwise.

    Raises:
        Refused: the run cannot work there; says all that is missing.
    """
    seen = _look(cluster, work, needs)
    problems = list(_problems(seen, work, needs))
    if problems:
        lines = "\n".join(problems).splitlines()
        more = [f"... and {len(lines) - MOST_LINES} lines more"] if len(lines) > MOST_LINES else []
        raise Refused("nothing was submitted:\n  " + "\n  ".join(lines[:MOST_LINES] + more))
    has = f"{len(seen['nodes'])} nodes, {seen['cpus']:g} CPUs, {seen['gpus']:g} GPUs"
    said = [f"{cluster.address}: {has}; storage, data and versions are in order"]
    if not (needs.tracking or "MLFLOW_TRACKING_URI" in work.env):
        said.append(
            f"MLflow writes SQLite into {work.storage}; a network file system may damage that: set tracking.uri to an "
            "`mlflow server`"
        )
    return said


def _look(cluster: Cluster, work: Work, needs: Needs) -> dict[str, Any]:
    """What the probe found, from a job that ends before anything else is started."""
    id_, token = f"raynas-check-{secrets.token_hex(4)}", secrets.token_hex(4)
    question = {
        "storage": work.storage,
        "token": token,
        "experiment": EXPERIMENT,
        "tracking": needs.tracking,
        "mirror": work.mirror,
    }
    script = f"raynas_{token}.py"  # no module of the user's has that name
    files = {**work.files, script: Path(probe.__file__).read_bytes(), EXPERIMENT: work.experiment.encode()}
    launch(
        cluster,
        id_,
        shlex.join(["python", script, json.dumps(question)]),
        files,
        work.env_vars(),
        {"raynas": "check"},
    )
    try:
        status = ended(cluster, id_)
        text = cluster.client.get_job_logs(id_)
    except KeyboardInterrupt:
        cluster.client.stop_job(id_)
        raise
    with contextlib.suppress(RuntimeError):
        cluster.client.delete_job(id_)
    for line in reversed(text.splitlines()):
        if line.startswith(probe.MARK):
            return dict(json.loads(line.removeprefix(probe.MARK)))
    said = "\n  ".join(text.strip().splitlines()[-MOST_LINES:])
    raise Refused(
        f"nothing was submitted: the check on the head ended as {status} without an answer; it said\n  {said}"
    )


def ended(cluster: Cluster, id_: str) -> str:
    """The last status of one of our short jobs.

    Raises:
        Refused: it does not end.
    """
    end = time.monotonic() + PATIENCE_S
    while (status := str(cluster.client.get_job_status(id_).value)) in ("PENDING", "RUNNING"):
        if time.monotonic() > end:
            cluster.client.stop_job(id_)
            raise Refused(f"the short job {id_} is still {status} after {PATIENCE_S:g} s; is the head overloaded?")
        time.sleep(0.5)
    return status


def _problems(seen: dict[str, Any], work: Work, needs: Needs) -> Iterator[str]:
    gpus = needs.workers if needs.use_gpu else 0  # where it is null, the run takes what there is
    if needs.cpus > seen["cpus"]:
        lower = "lower train.workers, train.cpus_per_worker or search.trials"
        yield f"the cluster has {seen['cpus']:g} CPUs and the run asks for {needs.cpus:g}: {lower}"
    if gpus > seen["gpus"]:
        yield (
            f"the cluster has {seen['gpus']:g} GPUs and the run asks for {gpus}: lower train.workers, or set "
            "train.use_gpu=false"
        )
    if seen["storage"]:
        yield f"cluster.storage {work.storage} {seen['storage']} (on the head)"
    if seen["mirror"]:
        yield f"cluster.mirror: {work.mirror} cannot be read and written by the head: {seen['mirror']}"
    if seen["tracking"]:
        where = needs.tracking or "MLFLOW_TRACKING_URI of the head"
        yield f"MLflow at {where} does not answer the head: {seen['tracking']}; start it, or set tracking.uri"
    here = _versions_here()
    for node in seen["nodes"]:
        yield from (f"{node['node']}: {problem}" for problem in _node_problems(node, work, here))


def _node_problems(node: dict[str, Any], work: Work, here: dict[str, str]) -> Iterator[str]:
    if "lost" in node:
        yield f"does not answer: {node['lost']}"
        return
    if node["storage"]:
        yield f"cluster.storage {work.storage} {node['storage']}"
    if missing := [name for name, found in node["versions"].items() if found is None]:
        yield f"lacks {', '.join(missing)}: install raynas there"
        return
    for name, found in node["versions"].items():
        if name in here and found != here[name]:
            yield f"has {name} {found}, and here is {here[name]}: install the same one"
    if node["doctor"]:
        yield node["doctor"]


def _versions_here() -> dict[str, str]:
    """What must be the same there; a machine that only submits need not have all of it."""
    found = {}
    for name in probe.PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
