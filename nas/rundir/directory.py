"""A run is a directory: what makes it that run, who may write into it, and what was changed when it was continued."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nas.config.experiment import Difference, Experiment, difference, dump, load_experiment
from nas.config.section import Kind
from nas.rundir.atomic import Fence, write_atomic

EXPERIMENT = "experiment.yaml"


class Occupied(ValueError):
    """The directory is somebody else's, or another run's."""


def is_run(path: Path) -> bool:
    """Whether a directory is a run."""
    return (path / EXPERIMENT).is_file()


def _of_a_start(path: Path) -> bool:
    """Whether a file is one of those that a process leaves that was killed before it had written what the run is."""
    return path.name in (".lock", "run.json") or path.match(".*.tmp")


@contextmanager
def open_run(experiment: Experiment, directory: Path) -> Iterator[Fence]:
    """Begin or continue a run, alone: the fence of this attempt, held until the context ends or the process dies.

    Raises:
        Occupied: the directory holds something else, a run of another identity (the difference is shown), or a live process has it.
    """
    if directory.exists() and not is_run(directory) and not all(_of_a_start(path) for path in directory.iterdir()):
        raise Occupied(f"{directory} is not empty and holds no run; choose another --run-dir")
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Occupied(f"another process works in {directory}; wait for it, end it, or choose another --run-dir") from None
    try:
        changed = _take_over(experiment, directory)
        fence = Fence.take(directory)
        note = {"attempt": fence.attempt, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "changed": changed, "versions": versions()}
        with (directory / "history.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")
        yield fence
    finally:
        lock.release()


def _take_over(experiment: Experiment, directory: Path) -> dict[str, Any]:
    """Write what is run into the directory; returns what differs from the last time: key -> [old, new]."""
    if not is_run(directory):
        write_atomic(directory / "run.json", json.dumps({"id": uuid.uuid4().hex, "name": experiment.name}))
        write_atomic(directory / EXPERIMENT, dump(experiment))
        return {}
    rows = difference(load_experiment(str(directory / EXPERIMENT), []), experiment)
    if other := [row for row in rows if row.kind is Kind.IDENTITY]:
        raise Occupied(_other_run(directory, other))
    if rows:
        write_atomic(directory / EXPERIMENT, dump(experiment))
    return {row.key: [row.old, row.new] for row in rows}


def _other_run(directory: Path, rows: list[Difference]) -> str:
    lines = [f"  {row.key}: {row.old!r} in {directory.name}, {row.new!r} now" for row in rows[:12]]
    return f"{directory} holds another run:\n" + "\n".join(lines) + "\nchoose another --run-dir, or go back to the old values"


def versions() -> dict[str, str]:
    """Versions of what results may depend on."""
    return {name: version(name) for name in ("raynas", "torch", "deepspeed", "ray", "mlflow", "numpy")}
