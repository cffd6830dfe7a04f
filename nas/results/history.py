"""What a run directory tells of its search and its children, read and never written.

These files may be written to while they are read, and may end in a torn line after a crash; both are expected here.
The tracker follows them for days, the report reads them once.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import TypeAdapter

from nas.config.sections import Bounds, Budget
from nas.rundir import forms
from nas.rundir.atomic import Damaged
from nas.rundir.directory import RunDir
from nas.rundir.log import Lines, parsed
from nas.search.constraints import ANYTHING, Constraints
from nas.search.core import Objective
from nas.search.journal import Record
from nas.search.pareto import front, hypervolume
from nas.search.rungs import INHERITED, Rung
from nas.space import COSTS, Measure
from nas.statistics import half_width, told_apart

REFERENCE = (
    10.0  # the hypervolume counts up to this many times the first candidate's cost, so that it is known from then on
)
AGREE, FEW = 0.8, 5  # a front agrees where such a share of it does, of so many networks at least
LEAST = 1e-9  # a cost of zero has no decade; this counts in its place


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where the file is missing or not whole."""
    try:
        found = parsed(path.read_bytes())
    except OSError:
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Progress:
    """How far a search was after candidate `k`, counting candidates 0 … k; of these the best, the front and the
    hypervolume those within the constraints.

    Attributes:
        k: the candidate.
        evaluated: how many did not fail.
        best: the best metric; NaN while no candidate lies within the constraints.
        front_size: how many stand on the front.
        hypervolume: the area between the front and the corner (metric 0, `REFERENCE` times the first candidate's cost),
            in units of the metric times decades of cost; where lower is better the corner is twice the first
            candidate's metric. Of more objectives the volume, each from a corner of its own.
    """

    k: int
    evaluated: int
    best: float
    front_size: int
    hypervolume: float


class History:
    """A search journal that is followed.

    Args:
        path: the journal.
        constraints: what a child may cost today; candidates beyond them stand on no front.

    Attributes:
        supernet: sha256 of the weights that it belongs to, empty until the header is read.
        objective: what the search wanted.
        measures: what its costs are for people, by name.
        window: so many candidates were proposed before any record was known; 0 until the header is read.
        rungs: (share, steps) of each, see `nas.search.rungs`.
        expected: the metric that a predictor guessed of candidates, by k.
        records: by k; of two records of one candidate the first counts.
        progress: a point for each candidate that did not fail, in the order of k, as far as there is no gap.
    """

    def __init__(self, path: Path, constraints: Constraints = ANYTHING) -> None:
        self.path = path
        self.constraints = constraints
        self.supernet = ""
        self.objective = Objective()
        self.measures: Mapping[str, Measure] = COSTS
        self.window = 0
        self.rungs: Sequence[Rung] = INHERITED
        self.expected: dict[int, float] = {}
        self.records: dict[int, Record] = {}
        self.progress: list[Progress] = []
        self._lines = Lines(path)
        self._front = np.empty((0, 2))
        self._corner: tuple[float, ...] = ()
        self._next = 0
        self._evaluated = 0

    def update(self) -> None:
        """Read what came since the last call."""
        for line in self._lines.new():
            if "raynas_journal" in line:
                self._begin(line)
            elif isinstance(line.get("expected"), float) and isinstance(line.get("proposed"), int):
                self.expected[line["proposed"]] = line["expected"]
            elif "k" in line:
                record = Record.from_json(line)
                if len(record.lower) >= len(self.rungs):
                    raise ValueError(f"{self.path}: candidate {record.k} has been on more rungs than there are")
                self.records.setdefault(record.k, record)
        while self._next in self.records:  # records come as they finish; progress is told in the order of k
            self._advance(self.records[self._next])
            self._next += 1

    def _begin(self, header: Mapping[str, Any]) -> None:
        """Take in what the journal belongs to."""
        try:
            objective: dict[str, Any] = {key: str(value) for key, value in header.get("objective", {}).items()}
            objective["further"] = tuple(header.get("objective", {}).get("further", {}).items())
            self.objective = Objective(**objective)
            costs = header.get("costs", {}).items()
            self.window = int(header.get("window", 0))
            self.rungs = tuple(Rung(float(share), int(steps)) for share, steps in header.get("rungs", INHERITED))
            if not self.rungs:
                raise ValueError("no rung")
            own = {name: Measure(str(each["label"]), str(each["unit"])) for name, each in costs}
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.path} is no journal: its header is damaged ({error})") from error
        self.supernet, self.measures = str(header.get("supernet", "")), {**COSTS, **own}

    def point(self, record: Record) -> tuple[float, ...]:
        """The figures of all objectives, metric and cost first, to be minimised; NaN for all where the candidate
        failed."""
        return self.objective.point(None if record.error is not None else record.metrics, record.cost)

    def measure(self, cost: str) -> Measure:
        """What a cost is for people; one that nobody has declared is called by its name."""
        return self.measures.get(cost, Measure(cost))

    def failed(self, record: Record) -> bool:
        """Whether it gave no figure that the search could use."""
        return math.isnan(self.point(record)[0])

    def metric(self, record: Record) -> float | None:
        """The figure that the search looked at, on validation; None for a failed candidate."""
        return None if record.metrics is None or self.failed(record) else record.metrics[self.objective.metric]

    def within(self, record: Record) -> bool:
        """Whether a candidate costs, and reaches, what a child may."""
        return self.constraints.violation({**(record.metrics or {}), **record.cost}) == 0

    def final(self, record: Record) -> bool:
        """Whether a candidate has been scored on the last rung, to the end: on a front these stand alone."""
        return len(record.lower) + 1 >= len(self.rungs) and record.seen is None

    def steps(self, record: Record) -> int:
        """For how many steps a candidate was trained by itself before its score."""
        return self.rungs[len(record.lower)].steps

    def front(self) -> list[Record]:
        """Of the records within the constraints, those that no other beats in all objectives, cheapest first."""
        able = (self.records[k] for k in sorted(self.records))
        records = [record for record in able if self.final(record) and self.within(record)]
        points = np.array([self.point(record) for record in records]).reshape(-1, len(self.objective.names))
        return sorted(
            (records[i] for i in front(points)), key=lambda record: (record.cost[self.objective.cost], record.k)
        )

    def _advance(self, record: Record) -> None:
        if self.failed(record):
            return
        now, corner = self._scaled(record)
        self._corner = self._corner or corner
        if self.final(record) and self.within(record):
            points = np.vstack([self._front.reshape(-1, len(now)), now])
            self._front = points[front(points)]  # the front so far and one more point: not all records again
        self._evaluated += 1
        least = float(self._front[:, 0].min()) if len(self._front) else math.nan
        best = -least if self.objective.better == "higher" else least
        self.progress.append(
            Progress(record.k, self._evaluated, best, len(self._front), hypervolume(self._front, self._corner))
        )

    def _scaled(self, record: Record) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """A record's point with the logarithms of its costs, and the corner from which the hypervolume counts where
        it is the first one."""
        now, corner = [], []
        for name, value, way in zip(self.objective.names, self.point(record), self.objective.ways, strict=True):
            if name in record.cost:
                now.append(math.log10(max(value, LEAST)))
                corner.append(now[-1] + math.log10(REFERENCE))
            else:
                now.append(value)
                corner.append(0.0 if way == "higher" else 2 * value)
        return tuple(now), tuple(corner)


def standing(history: History) -> str:
    """How far a search is, for its status line: the best, the front and the hypervolume, within the constraints."""
    if not history.progress:
        return ""
    last, within = history.progress[-1], f" within {history.constraints}" if history.constraints.bounds else ""
    if not last.front_size:
        return f"none{within} yet"
    best = f"best {history.objective.metric} {last.best:.4g}"
    return f"{best}{within} | front {last.front_size} | hypervolume {last.hypervolume:.4g}"


def outcome(history: History) -> str:
    """What a search has come to: how many candidates, how many of them failed, how many stand on the front."""
    done, failed = len(history.records), sum(map(history.failed, history.records.values()))
    within = f" within {history.constraints}" if history.constraints.bounds else ""
    lost = f" ({failed:,} failed)" if failed else ""
    return f"{done:,} candidates{lost}, {len(history.front())} on the front{within}"


@dataclass(frozen=True)
class Agreement:
    """That most of a front made the same choice.

    Attributes:
        choice, value: which.
        count, having: so many of the front have that value, of those that have the choice.
        share: of all candidates that have the choice, those with that value.
    """

    choice: str
    value: float
    count: int
    having: int
    share: float


def agreements(history: History) -> list[Agreement]:
    """What the front agrees on, in the order of the choices: where `AGREE` of it have a value that not all candidates
    have. Nothing of a front of less than `FEW`, which agree by chance."""
    front = history.front()
    if len(front) < FEW:
        return []
    every = [record.arch for record in history.records.values()]
    found = []
    for choice in dict.fromkeys(name for arch in every for name in arch):
        own = Counter(record.arch[choice] for record in front if choice in record.arch)
        if own.total() >= FEW and (most := own.most_common(1)[0])[1] >= AGREE * own.total():
            all_of_it = [arch[choice] for arch in every if choice in arch]
            share = all_of_it.count(most[0]) / len(all_of_it)
            if share < 1:
                found.append(Agreement(choice, most[0], most[1], own.total(), share))
    return found


def constraints_in(given: Mapping[str, Bounds]) -> Constraints:
    """What a child may cost, as an experiment says; those costs first that every network has, in their order."""
    names = [*(name for name in COSTS if name in given), *(name for name in given if name not in COSTS)]
    return Constraints({name: (given[name].min, given[name].max) for name in names})


def read_constraints(run: RunDir) -> Constraints:
    """What a child of a run may cost, as its experiment says today; anything, where that cannot be read: the rest of
    the experiment, which may name modules that are not here, is not looked at."""
    try:
        search = yaml.safe_load(run.experiment.read_bytes()).get("search") or {}
        return constraints_in(TypeAdapter(Budget).validate_python(search.get("constraints") or {}))
    except (OSError, yaml.YAMLError, ValueError, AttributeError, RecursionError):
        return ANYTHING


def read_minutes(run: RunDir) -> float | None:
    """How long a run may train, as its experiment says today; None: no limit, or it cannot be read."""
    try:
        return float((yaml.safe_load(run.experiment.read_bytes()).get("train") or {})["max_minutes"])
    except (OSError, yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None


def read_history(run: RunDir) -> History | None:
    """The newest journal, read to its end; None before the first search."""
    found = run.journals()
    if not found:
        return None
    history = History(found[-1], read_constraints(run))
    history.update()
    return history


def read_children(run: RunDir) -> dict[str, dict[str, Any]]:
    """The ``metrics.json`` of every exported child, by id, with the hash of the ``supernet`` that it was cut from."""
    found = {}
    for child in run.exported():
        with contextlib.suppress(Damaged):  # a report and MLflow tell what is whole
            metrics = forms.read(child.metrics, forms.Metrics).model_dump(exclude_unset=True)
            found[child.id] = {**metrics, "supernet": read_json(child.manifest).get("supernet")}
    return found


def exported_from(run: RunDir, history: History) -> set[str]:
    """The ids of the exported children that were cut from the supernet of a search."""
    return {name for name, child in read_children(run).items() if child["supernet"] == history.supernet}


def metric_of(history: History | None, children: Mapping[str, Mapping[str, Any]]) -> str:
    """What a table of children shows: what the search wanted, or else the first figure that they have."""
    if history:
        return history.objective.metric
    return next((name for child in children.values() for name in child.get("validation") or {}), Objective().metric)


def shown_costs(history: History | None) -> dict[str, Measure]:
    """The costs that a table of children shows: what the search wanted to be small, then those that every table has."""
    history = history or History(Path())
    aims = [name for name in history.objective.names[1:] if name in history.measures]
    return {aim: history.measure(aim) for aim in aims} | {
        name: measure for name, measure in history.measures.items() if measure.shown
    }


def read_pictures(run: RunDir) -> dict[str, list[dict[str, Any]]]:
    """The pictures of every exported child that has some, by id: ``title`` and ``panels``, whose ``file`` is a path.

    Of a child that another may have written only files of its own are shown.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name in read_children(run):
        child = run.child(name)
        with contextlib.suppress(Damaged):  # most have none
            given = [
                {**picture, "panels": [{**panel, "file": child.path / panel["file"]} for panel in picture["panels"]]}
                for picture in forms.read(child.pictures, forms.Pictures).model_dump()
            ]
            if all(_within(panel["file"], child.path) for picture in given for panel in picture["panels"]):
                found[name] = given
    return found


def ties(front: Sequence[Record]) -> dict[str, str]:
    """Of a front, cheapest first: those that validation does not tell apart from the next cheaper one, and its id."""
    pairs = [(cheaper, record) for cheaper, record in pairwise(front) if cheaper.parts and record.parts]
    return {record.id: cheaper.id for cheaper, record in pairs if not told_apart(cheaper.parts, record.parts)}


def _interval(record: Record | None) -> float | None:
    width = half_width(record.parts) if record else math.nan
    return width if math.isfinite(width) else None


def _within(file: Path, directory: Path) -> bool:
    return file.is_file() and file.resolve().is_relative_to(directory.resolve())


def front_table(run: RunDir, ids: Collection[str] = ()) -> list[dict[str, Any]]:
    """The front and the exported children, cheapest first.

    Args:
        ids: of candidates that have a row too.

    Returns:
        A row a child: ``id``, ``k``, ``front``, its costs by name, ``validation`` (what the search saw), ``exported``,
        and, measured on the exported child, ``exported_validation`` and ``test``; None where there is no such figure.
        ``metric`` and ``cost`` are what these are of, ``tested`` has all test figures by metric. ``interval`` is what
        is added to and taken from ``validation`` (None: not known), ``intervals`` the same of ``tested``; ``tied`` is
        the id of the next cheaper one on the front, where validation cannot tell the two apart, else empty.
    """
    history, children = read_history(run), read_children(run)
    on_front = history.front() if history else []
    tied = ties(on_front)
    by_id = {record.id: record for record in reversed(history.records.values())} if history else {}
    by_id |= {record.id: record for record in on_front}
    metric = metric_of(history, children)
    cost, measures = (history.objective.cost, history.measures) if history else (Objective().cost, COSTS)
    rows = []
    for name in {record.id: None for record in on_front} | dict.fromkeys(
        [*children, *(id for id in ids if id in by_id)]
    ):
        record, child = by_id.get(name), children.get(name, {})
        if (
            history and record and child and child["supernet"] != history.supernet
        ):  # of an earlier training: another network
            record, child = (record, {}) if record in on_front else (None, child)
        costs = {
            key: child.get(key, (record.cost if record else {}).get(key)) for key in dict.fromkeys((*measures, cost))
        }
        costs = {key: value if isinstance(value, int | float) else None for key, value in costs.items()}
        rows.append(
            {"id": name, "k": record.k if record else None, "front": record in on_front, **costs}
            | {"validation": history.metric(record) if history and record else None, "exported": bool(child)}
            | {
                "exported_validation": (child.get("validation") or {}).get(metric),
                "test": (child.get("test") or {}).get(metric),
            }
            | {"metric": metric, "cost": cost, "tested": child.get("test") or {}}
            | {"interval": _interval(record), "intervals": (child.get("interval") or {}).get("test") or {}}
            | {"tied": tied.get(name, "")}
        )
    return sorted(rows, key=lambda row: (row.get(cost) or 0, row["id"]))
