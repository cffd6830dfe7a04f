"""A run is a directory: where everything of it lies, what makes it that run, who may write into it, and what was
changed when it was continued."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nas.config import trust
from nas.config.experiment import (
    Difference,
    Experiment,
    difference,
    dump,
    load_experiment,
    modules_given,
    modules_in,
)
from nas.config.section import Kind
from nas.rundir.atomic import MANIFEST, Damaged, naming, tidy, write_atomic
from nas.rundir.checkpoint import newest_sha
from nas.rundir.fence import Fence, Gone
from nas.rundir.log import parsed


class Occupied(ValueError):
    """The directory is somebody else's, or another run's."""


@dataclass(frozen=True)
class ChildDir:
    """An exported child: a directory that is whole or not there."""

    path: Path

    @property
    def id(self) -> str:
        """The child's id, which may have an ending: ``-finetuned``, ``-w4a4``."""
        return self.path.name

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def packed(self) -> Path:
        """The same weights as levels of their grids, where a child has such."""
        return self.path / "packed.safetensors"

    @property
    def classes(self) -> Path:
        """The source of the child's classes."""
        return self.path / "model.py"

    @property
    def onnx(self) -> Path:
        return self.path / "model.onnx"

    @property
    def picture_onnx(self) -> Path:
        """The same network with its preprocessing before it."""
        return self.path / "picture.onnx"

    @property
    def config(self) -> Path:
        """What `Model.from_pretrained` of `classes` needs."""
        return self.path / "config.json"

    @property
    def arch(self) -> Path:
        """What it is: architecture, class, arguments, input."""
        return self.path / "arch.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def pictures(self) -> Path:
        """What stands in which picture."""
        return self.path / "pictures.json"

    @property
    def card(self) -> Path:
        return self.path / "README.md"

    @property
    def manifest(self) -> Path:
        return self.path / MANIFEST


class RunDir:
    """Every path of a run.

    Args:
        path: of its directory, there or not.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def experiment(self) -> Path:
        return self.path / "experiment.yaml"

    @property
    def about(self) -> Path:
        """The run's id and first name."""
        return self.path / "run.json"

    @property
    def history(self) -> Path:
        """A line an attempt: when, what had changed, which versions."""
        return self.path / "history.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the process that works in the run."""
        return self.path / ".lock"

    @property
    def checkpoints(self) -> Path:
        """Where the supernet's are."""
        return self.path / "supernet"

    @property
    def training_log(self) -> Path:
        return self.path / "train" / "metrics.jsonl"

    @property
    def rollbacks(self) -> Path:
        """Why training went back to a checkpoint, each time that it did."""
        return self.path / "train" / "rollbacks.json"

    @property
    def children(self) -> Path:
        return self.path / "children"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def tracked(self) -> Path:
        """What MLflow has of it."""
        return self.path / "tracking.jsonl"

    @property
    def ray(self) -> Path:
        """What Ray Train and Tune write; of no use afterwards."""
        return self.path / ".ray"

    @property
    def batches(self) -> Path:
        """Decoded examples that children are judged on, while an attempt goes on."""
        return self.path / ".batches"

    @property
    def index(self) -> Path:
        """What was found out about the files of the data."""
        return self.path / ".data.json"

    @property
    def ray_logs(self) -> Path:
        """What Ray said, where it has died."""
        return self.ray / "logs"

    @property
    def mlflow(self) -> Path:
        """The MLflow database that runs beside each other share."""
        return self.path.absolute().parent / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.path.absolute().parent / "mlartifacts"

    @property
    def search(self) -> Path:
        """Where the journals are."""
        return self.path / "search"

    def journal(self, supernet: str) -> Path:
        """That of the search over one supernet, by the sha256 of its weights."""
        return self.search / f"journal-{supernet[:8]}.jsonl"

    @property
    def fidelity(self) -> Path:
        """Where networks that were trained alone are held against the supernet's scores."""
        return self.path / "fidelity"

    @property
    def current(self) -> Path:
        """The name of the journal that the last search was written to."""
        return self.search / "current"

    def known(self, supernet: str) -> Path:
        """What another run's search has found of the children of a supernet, a record a line."""
        return self.search / f"known-{supernet[:8]}.jsonl"

    @property
    def start(self) -> Path:
        """What the first step begins with, where that is not fresh weights."""
        return self.training_log.with_name("start.safetensors")

    def journals(self) -> list[Path]:
        """All of them, the current one last: as it is written down; in a run of before 0.2, or where that file is
        damaged, the one over the newest supernet."""
        found = sorted(self.search.glob("journal-*.jsonl"))
        if len(found) < 2:
            return found
        try:
            current = self.search / self.current.read_text().strip()
        except (FileNotFoundError, UnicodeDecodeError):
            current = self.current
        if current not in found and (supernet := newest_sha(self.checkpoints)):
            current = self.journal(supernet)
        return sorted(found, key=lambda path: path == current)

    def begin_search(self, supernet: str) -> Path:
        """The journal of the search over one supernet, which is the current one from here on."""
        journal = self.journal(supernet)
        self.search.mkdir(exist_ok=True)
        write_atomic(self.current, journal.name)
        return journal

    def child(self, name: str) -> ChildDir:
        """Where an exported child is, or will be."""
        return ChildDir(self.children / name)

    def exported(self) -> list[ChildDir]:
        """The children that are there. What is being written, or was left half-written, has a name with a dot before
        it."""
        return [ChildDir(path.parent) for path in sorted(self.children.glob("[!.]*/metrics.json"))]

    def exported_child(self, name: str) -> ChildDir:
        """An exported child that is there.

        Raises:
            ValueError: it is not; says which are.
        """
        child = self.child(name)
        if not child.metrics.is_file():
            known = ", ".join(child.id for child in self.exported())
            there = f"there are {known}; " if known else ""
            there += f"nas export {self.path} --child ID exports a candidate"
            raise ValueError(f"no exported child {name!r} in {self.children}; {there}")
        return child

    def finetuned(self, child: str, supernet: str) -> Path:
        """The run in which one child is trained on by itself."""
        return self.path / "finetune" / f"{child}-{supernet[:8]}"

    @property
    def id(self) -> str:
        """The run's, wherever its directory is; its place, where it has none."""
        found = parsed(self.about.read_bytes()) if self.about.is_file() else None
        return str((found.get("id") if isinstance(found, dict) else None) or self.path.absolute())

    def load(self, overrides: Sequence[str] = (), trusted: Collection[str] = ()) -> Experiment:
        """The run's experiment, which somebody else may have written (see `nas.config.trust`).

        Args:
            overrides: as `load_experiment` takes them; what they name is trusted.
            trusted: modules, beside those that the user has trusted for this run before.

        Raises:
            Untrusted: it names others.
            ExperimentError: there are mistakes in it.
        """
        strange = modules_in(self.experiment) - {*trusted, *modules_given(overrides)}
        trust.check(self.id, strange, self.path)
        return load_experiment(self.experiment, overrides)

    def trust(self, modules: Collection[str]) -> None:
        """Remember that the run may name these modules; the note lies outside of it."""
        trust.remember(self.id, modules)

    def is_run(self) -> bool:
        """Whether a run is there."""
        return self.experiment.is_file()

    def clear_away(self) -> None:
        """Remove what Ray Tune has made anew of a directory that was deleted."""
        if not self.is_run():
            shutil.rmtree(self.ray, ignore_errors=True)
            with suppress(OSError):
                self.path.rmdir()

    def is_fresh(self) -> bool:
        """Whether nothing is there but what a process leaves that was killed before it had written what the run is."""
        begun = (self.lock.name, self.about.name)
        return all(path.name in begun or path.match(".*.tmp") for path in self.path.iterdir())


@contextmanager
def open_run(experiment: Experiment, run: RunDir) -> Iterator[Fence]:
    """Begin or continue a run, alone: the fence of this attempt, held until the context ends or the process dies.

    Raises:
        Occupied: the directory holds something else, a run of another identity (the difference is shown), or a live
            process has it.
    """
    check_free(experiment, run)
    run.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Occupied(
            f"another process works in {run.path}; wait for it, end it, or choose another --run-dir"
        ) from None
    try:
        changed = _take_over(experiment, run)
        fence = Fence.take(run.path)
        for folder in (run.path, run.training_log.parent, run.checkpoints, run.search, run.children):
            tidy(folder)
        shutil.rmtree(run.batches, ignore_errors=True)  # of an attempt that was killed; the data may be others now
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        note = {"attempt": fence.attempt, "time": now, "changed": changed, "versions": versions()}
        with naming(run.history), run.history.open("a") as file:
            file.write(json.dumps(note) + "\n")
        try:
            yield fence
        finally:
            with suppress(Gone, Damaged):
                if fence.current() == fence.attempt:  # else they are the next one's, where storage does not lock
                    shutil.rmtree(run.batches, ignore_errors=True)
    finally:
        lock.release()


def check_free(experiment: Experiment, run: RunDir) -> None:
    """Refuse a directory in which `open_run` would not begin or continue the run; nothing is written.

    Raises:
        Occupied: it holds something else, or a run of another identity.
    """
    if run.is_run():
        _changes(experiment, run)
    elif run.path.exists() and not run.is_fresh():
        raise Occupied(f"{run.path} is not empty and holds no run; choose another --run-dir")


def _take_over(experiment: Experiment, run: RunDir) -> dict[str, Any]:
    """Write what is run into the directory; returns what differs from the last time: key -> [old, new]."""
    modules = trust.modules_of(experiment.model_dump())  # which the user means, or this would not have begun
    if not run.about.exists() or not run.is_run():
        write_atomic(run.about, json.dumps({"id": uuid.uuid4().hex, "name": experiment.name}))
    if not run.is_run():
        write_atomic(run.experiment, dump(experiment))
        run.trust(modules)
        return {}
    rows = _changes(experiment, run)
    run.trust(modules)
    if rows:
        write_atomic(run.experiment, dump(experiment))
    return {row.key: [row.old, row.new] for row in rows}


def _changes(experiment: Experiment, run: RunDir) -> list[Difference]:
    """What differs from what was run there the last time.

    Raises:
        Occupied: something that makes it another run.
    """
    if run.about.exists():
        _check_about(run)
    rows = difference(run.load(trusted=trust.modules_of(experiment.model_dump())), experiment)
    if other := [row for row in rows if row.kind is Kind.IDENTITY]:
        raise Occupied(_other_run(run.path, other))
    return rows


def _check_about(run: RunDir) -> None:
    """Raises: Damaged, where MLflow could not be told which run this is."""
    try:
        about = json.loads(run.about.read_text())
        whole = bool(about["id"]) and isinstance(about["id"], str)
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise Damaged(
            f'{run.about} is damaged: it does not hold {{"id": "..."}}, by which MLflow knows the run (its tag '
            "raynas.run); write that there again, or delete the file, and the run goes on under a new id"
        )


def _other_run(directory: Path, rows: list[Difference]) -> str:
    lines = [f"  {row.key}: {row.old!r} in {directory.name}, {row.new!r} now" for row in rows[:12]]
    return (
        f"{directory} holds another run:\n"
        + "\n".join(lines)
        + "\nchoose another --run-dir, or go back to the old values"
    )


def versions() -> dict[str, str]:
    """Versions of what results may depend on."""
    return {name: version(name) for name in ("raynas", "torch", "deepspeed", "ray", "mlflow", "numpy")}
