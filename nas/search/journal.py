"""The history of a search: candidates, records, and the append-only file that keeps them.

The file is JSON lines. The first is the header, ``{"raynas_journal": 1, ...}``: what the history belongs to. Every
other line is a proposal, ``{"proposed": 12, "id": ..., "arch": {...}}``, with the metric that was ``expected`` of it
where one was, written before the candidate is given out; the record of a candidate; what a candidate that climbs to the
next rung has so far, ``{"climbs": {...}}``; or constraints, ``{"from_k": 200, "constraints": {"macs": [null, 6000]}}``.
What is written is fsynced before anything else is, so a crash can damage the last line only; that one is cut off when
the file is opened again. Journals from before there were proposals have none.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nas.search.constraints import Constraints
from nas.space import Arch

VERSION = 1


@dataclass(frozen=True)
class Candidate:
    """An architecture to evaluate.

    Attributes:
        k: its number; candidates are numbered from 0 in the order in which they are proposed.
        arch: the architecture.
        bar: the front that candidate k may be measured against, by rising cost: figures of the objectives, metric and
            cost first, to be *minimised*, so a metric that is better when higher stands negated. The only thing that an
            early stop may look at.
        expected: the metric that a predictor guesses; None where none has.
    """

    k: int
    arch: Arch
    bar: tuple[tuple[float, ...], ...]
    expected: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: ``{"k", "arch", "bar"}``."""
        return {"k": self.k, "arch": dict(self.arch), "bar": [list(point) for point in self.bar]}

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Candidate:
        """The candidate that `to_json` wrote."""
        return cls(form["k"], Arch(form["arch"]), tuple(tuple(map(float, point)) for point in form["bar"]))


@dataclass(frozen=True)
class Record:
    """What came of one candidate.

    Attributes:
        k: the candidate's number.
        arch: its architecture.
        metrics: name to value, or None for a candidate that failed.
        cost: name to exact cost, empty where it failed before that was known.
        seconds: how long the evaluation took, wall clock. No algorithm looks at it.
        error: what went wrong, None where nothing did.
        lower: the metrics of the rungs below the one that `metrics` are of, from the first on (see `nas.search.rungs`).
        parts: the objective's metric on disjoint parts of validation, the same ones for all candidates: what its
            interval is computed from. No algorithm looks at it.
        seen: examples that `metrics` are of, where scoring ended early; None where they are of all. Such a candidate
            stands on no front.
    """

    k: int
    arch: Arch
    metrics: Mapping[str, float] | None
    cost: Mapping[str, float]
    seconds: float
    error: str | None
    lower: tuple[Mapping[str, float], ...] = ()
    parts: tuple[float, ...] = ()
    seen: int | None = None

    @property
    def id(self) -> str:
        """The architecture's id."""
        return self.arch.id

    def to_json(self) -> dict[str, Any]:
        """Plain, strict JSON; metrics that JSON has no number for become ``"nan"``, ``"inf"``, ``"-inf"``. Whole
        costs are whole."""
        metrics = None if self.metrics is None else _plain(self.metrics)
        cost = {name: int(v) if float(v).is_integer() else float(v) for name, v in self.cost.items()}
        lower = {"lower": [_plain(each) for each in self.lower]} if self.lower else {}
        parts = {"parts": list(self.parts)} if self.parts else {}
        seen = {} if self.seen is None else {"seen": self.seen}
        return {"k": self.k, "id": self.id, "arch": dict(self.arch), "metrics": metrics, "cost": cost} | {
            "seconds": float(self.seconds),
            "error": self.error,
            **lower,
            **parts,
            **seen,
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Record:
        """The record that `to_json` wrote.

        Raises:
            ValueError: it is none, or the id is not the architecture's, so one of the two has been changed.
        """
        try:
            k, error, cost, seen = form["k"], form["error"], dict(form["cost"]), form.get("seen")
            metrics = None if form["metrics"] is None else _numbers(form["metrics"])
            lower, parts = map(_numbers, form.get("lower", ())), map(float, form.get("parts", ()))
            arch, seconds = Arch(form["arch"]), float(form["seconds"])
            record = cls(k, arch, metrics, cost, seconds, error, tuple(lower), tuple(parts), seen)
        except (KeyError, TypeError, AttributeError, OverflowError) as problem:
            raise ValueError(f"it is no record: {type(problem).__name__} {problem}") from problem
        whole = type(k) is int and k >= 0 and isinstance(error, str | None)
        whole &= seen is None or (type(seen) is int and seen > 0)
        if not whole or not all(type(value) in (int, float) and math.isfinite(value) for value in cost.values()):
            raise ValueError(f"it is no record: k is {k!r}, cost {cost!r}, error {error!r}")
        if record.id != form.get("id"):
            raise ValueError(
                f"the id {form.get('id')!r} does not belong to the architecture, whose id is {record.id!r}"
            )
        return record


def _plain(metrics: Mapping[str, float]) -> dict[str, float | str]:
    return {name: float(v) if math.isfinite(v) else repr(float(v)) for name, v in metrics.items()}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(v) for name, v in metrics.items()}


class Journal:
    """An append-only file of records and constraints. One process writes it at a time; whoever opens it sees to that.

    Opening creates the file, or reads it and cuts off a torn last line.

    Args:
        path: the file.
        header: what the history belongs to, plain JSON: the supernet's sha256, space, seed, algorithm, window,
            objective.

    Attributes:
        proposals: architectures by candidate, of those whose proposal was written.
        records: all records, in the order of the file.
        climbing: by candidate, what those have so far that go on to the next rung; records of all but the last rungs.
        constraints: pairs (from_k, constraints), in the order of the file.

    Raises:
        ValueError: the file has another header (the message shows the difference), is no journal, or is damaged before
            its end.
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.proposals: dict[int, Arch] = {}
        self.records: list[Record] = []
        self.climbing: dict[int, Record] = {}
        self.constraints: list[tuple[int, Constraints]] = []
        self._by_k: dict[int, Record] = {}
        head = _line({"raynas_journal": VERSION, **header})
        data = self.path.read_bytes() if self.path.exists() else b""
        if head.startswith(data):  # new, or nothing but a torn header; equal when it holds no record yet
            _create(self.path, head)
            data = head
        end = self._read(data, head)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        if end < len(data):
            os.ftruncate(self._fd, end)
            os.fsync(self._fd)

    def _read(self, data: bytes, head: bytes) -> int:
        """Take in all lines; returns the length in bytes of what is whole."""
        *lines, torn = data.split(b"\n")
        self._check_header(lines[0] if lines else torn, head)
        end = len(data) - len(torn)
        for number, line in enumerate(lines[1:], start=2):
            try:
                form = json.loads(line)
            except ValueError as error:  # not JSON, or not UTF-8
                if number == len(lines) and not torn:
                    return end - len(line) - 1
                raise ValueError(
                    f"{self.path}, line {number} is damaged ({error}); restore the file from a copy"
                ) from error
            try:
                self._take(form)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"{self.path}, line {number} is neither a record nor constraints: {error}") from error
        return end

    def _check_header(self, line: bytes, head: bytes) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or "raynas_journal" not in found:
            raise ValueError(f"{self.path} is not a journal: its first line is no header")
        wanted = json.loads(head)
        names = [name for name in wanted | found if wanted.get(name) != found.get(name)]
        if names:
            shown = "; ".join(f"{name}: {found.get(name)!r} in the file, {wanted.get(name)!r} now" for name in names)
            raise ValueError(
                f"{self.path} belongs to another search ({shown}); use another run directory or go back to the old "
                "settings"
            )

    def _take(self, form: Mapping[str, Any]) -> None:
        if "from_k" in form:
            bounds = {name: (low, high) for name, (low, high) in form["constraints"].items()}
            self.constraints.append((form["from_k"], Constraints(bounds)))
        elif "proposed" in form:
            self._propose(form["proposed"], Arch(form["arch"]), form["id"])
        elif "climbs" in form:
            record = Record.from_json(form["climbs"])
            self.climbing[record.k] = record
        else:
            self._keep(Record.from_json(form))

    def _propose(self, k: int, arch: Arch, id: str) -> None:
        """Take in a proposal; refuses one that is none, or another for the same candidate."""
        if type(k) is not int or k < 0 or arch.id != id:
            raise ValueError(f"it is no proposal: candidate {k!r}, id {id!r}, and {arch.id} by its architecture")
        if self.proposals.setdefault(k, arch) != arch:
            raise ValueError(f"candidate {k} is proposed twice, as {self.proposals[k].id} and as {id}")

    def _keep(self, record: Record) -> bool:
        """Whether `record` is new; refuses another architecture of the same number."""
        old = self._by_k.get(record.k)
        if old is not None:
            if old.arch != record.arch:
                raise ValueError(
                    f"candidate {record.k} is {old.id}, the new record of it is of {record.id}; it was not kept"
                )
            return False
        self._by_k[record.k] = record
        self.records.append(record)
        return True

    def append(self, record: Record) -> bool:
        """Write a record down, on disk when this returns.

        Returns:
            False, with nothing written, where candidate k has a record already: the first one counts.

        Raises:
            ValueError: candidate k has a record of another architecture.
        """
        if record.k in self._by_k:
            return self._keep(record)
        self._write(_line(record.to_json()))
        return self._keep(record)

    def append_climb(self, record: Record) -> None:
        """Write down what a candidate has so far that goes on to the next rung, on disk when this returns."""
        self._write(_line({"climbs": record.to_json()}))
        self.climbing[record.k] = record

    def append_proposals(self, candidates: Sequence[Candidate]) -> None:
        """Write down what is about to be given out, on disk when this returns. What is written already is left out.

        Raises:
            ValueError: one was proposed as another architecture.
        """
        new = [candidate for candidate in candidates if self.proposals.get(candidate.k) != candidate.arch]
        forms: list[dict[str, Any]] = [{"proposed": c.k, "id": c.arch.id, "arch": dict(c.arch)} for c in new]
        for form, candidate in zip(forms, new, strict=True):
            if candidate.expected is not None:
                form["expected"] = round(candidate.expected, 6)
        for candidate in new:
            self._propose(candidate.k, candidate.arch, candidate.arch.id)
        if new:
            self._write(b"".join(map(_line, forms)))

    def append_constraints(self, from_k: int, constraints: Constraints) -> None:
        """Write down what candidates from `from_k` on may cost."""
        bounds = {name: list(window) for name, window in constraints.bounds.items()}
        form = {"from_k": int(from_k), "constraints": bounds}
        self._write(_line(form))
        self._take(form)

    def _write(self, line: bytes) -> None:
        end = os.fstat(self._fd).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._fd, left) :]
            os.fsync(self._fd)
        except OSError as error:  # a full disk, say: half a line here would damage the middle of the file later
            os.ftruncate(self._fd, end)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line(form: Mapping[str, Any]) -> bytes:
    return json.dumps(form, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _create(path: Path, head: bytes) -> None:
    """Write the header beside `path` and rename, so that no crash leaves half a header; then fsync the directory."""
    beside = path.with_name(f".{path.name}.new")
    with open(beside, "wb") as file:
        file.write(head)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
