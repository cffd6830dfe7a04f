"""What of a run directory is not yet in MLflow, as plain values: `nas.results.tracking` sends them and notes them
here as sent."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nas.results.history import History, front_table, read_children, read_constraints, shown_costs, ties
from nas.rundir.atomic import naming
from nas.rundir.directory import RunDir
from nas.rundir.log import EventLine, Lines, PanelLine, StepLine, TrainingLines
from nas.search.journal import Record
from nas.statistics import half_width

FIGURES = 800  # in one request; MLflow takes 1,000 metrics and 1 MB
VIEW_KEY = "raynas"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"  # of the experiment; MLflow's page looks there
PAGE = 100  # runs that MLflow's page loads at first
AXES = 10  # choices in parallel coordinates; more cannot be told apart

Key = tuple[str | int, ...]
Figures = dict[
    tuple[str, int], tuple[float, int]
]  # (name, step) to (value, milliseconds since the start of its MLflow run)


class Sent:
    """``RUN/tracking.jsonl``: what was sent where, one fsynced line a thing. Users and passwords are left out of the
    address."""

    def __init__(self, run: RunDir, uri: str, experiment: str) -> None:
        self.path = run.tracked
        self.values: dict[Key, Any] = {}
        self._where = {"uri": re.sub(r"//[^/@]*@", "//", uri), "experiment": experiment}
        for line in Lines(self.path).new():
            if self._where.items() <= line.items():
                if "item" in line:
                    self.values[tuple(line["item"])] = line.get("value")
                else:
                    self.values.clear()
        if uri.startswith("sqlite:////") and not Path(uri.removeprefix("sqlite:///")).exists():
            self.values.clear()  # the database was removed: all of it is to be sent again

    def put(self, key: Key, value: Any) -> None:
        """Note that `key` was sent."""
        self._write({"item": list(key), "value": value})
        self.values[key] = value

    def forget(self) -> None:
        """Note that MLflow has nothing of this run any more."""
        self._write({})
        self.values.clear()

    def _write(self, form: Mapping[str, Any]) -> None:
        line = json.dumps({**self._where, **form}).encode() + b"\n"
        with naming(self.path), open(self.path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a crash tore the last line; it must not take this one along
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Item:
    """One thing that an MLflow run is to hold.

    Attributes:
        key, value: what is noted in `Sent` once it is there.
        run: which MLflow run: ``("train",)``, ``("search", supernet)`` or ``("candidate", supernet, k)``.
        name: the run's name if it has to be made; None: where it is missing the item is dropped. Train and search have
            names of their own.
        born: tags that the run is made with.
        seconds: how long ago the run began, when it is made.
        params, tags, figures: what it is to hold. Of a figure those steps count that are later than what the run has.
        finish: the state it ends with.
        artifacts: file name to content.
        shared: tags of MLflow's experiment, which all runs in it share.
        count: for how many things it counts when it cannot be sent.
    """

    key: Key
    value: Any
    run: Key
    name: str | None = None
    born: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    figures: Figures = field(default_factory=dict)
    finish: str | None = None
    artifacts: Mapping[str, bytes] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    count: int = 1


class Outbox:
    """Follows the files of a run and compares them with what was sent.

    Attributes:
        finished: the stages that are over, ``train`` or ``search``: their MLflow runs are FINISHED, however the command
            ends.
    """

    def __init__(self, run: RunDir, sent: Sent) -> None:
        self.run, self.sent = run, sent
        self.finished: set[str] = set()
        self.restart()

    def restart(self) -> None:
        """Read all files from their beginning again."""
        self._training = TrainingLines(self.run.training_log)
        self._lines: list[StepLine | PanelLine] = []  # those with a figure that was not sent
        self._histories: dict[Path, History] = {}
        self._constraints = read_constraints(self.run)

    def pending(self, ending: str | None = None) -> list[Item]:
        """What is to be sent now, in the order in which to send it.

        Args:
            ending: the state in which the run ends; None while it goes on. Only at the end is it known who stands on
                the front.
        """
        self._histories = {
            path: self._histories.get(path) or History(path, self._constraints) for path in self.run.journals()
        }
        for history in self._histories.values():
            history.update()
        histories = [history for history in self._histories.values() if history.supernet]
        items = list(self._train())
        for history in histories:
            items += self._search(history)
        if ending:
            for history in histories:
                items += self._flags(history)
            if histories:
                items += self._artifacts(histories[-1])
                items += self._view(histories[-1])
        runs = {item.run: None for item in items if item.run[0] != "candidate"}
        runs |= {key[1:]: None for key, open_ in self.sent.values.items() if key[0] == "open" and open_}
        states = {run: "FINISHED" if run[0] in self.finished else ending for run in runs}
        return items + [Item(("open", *run), False, run, finish=state) for run, state in states.items() if state]

    def _train(self) -> Iterator[Item]:
        sent = self.sent.values.get(("training",), {})
        self._lines += [line for line in self._training.new() if not isinstance(line, EventLine)]
        self._lines = [
            line for line in self._lines if any(line.step > sent.get(_name(name), -1) for name, _ in line.figures())
        ]
        if not self._lines:
            return
        yield from self._settings(("train",))
        last, figures, count = dict(sent), Figures(), 0
        for line in self._lines:
            count += 1
            for name, value in line.figures():
                last[_name(name)] = max(line.step, last.get(_name(name), -1))
                _put(figures, name, line.step, value, int(1000 * line.seconds))
            if len(figures) >= FIGURES:
                yield Item(("training",), dict(last), ("train",), figures=figures, count=count)
                figures, count = {}, 0
        if count:
            yield Item(("training",), last, ("train",), figures=figures, count=count)

    def _search(self, history: History) -> Iterator[Item]:
        sup = history.supernet
        news = [
            record for k, record in sorted(history.records.items()) if ("candidate", sup, k) not in self.sent.values
        ]
        reached = self.sent.values.get(("progress", sup), -1)
        points = [point for point in history.progress if point.k > reached]
        if news or points:
            yield from self._settings(("search", sup))
        for record in news:
            yield _candidate(history, record)
        for some in (points[i : i + FIGURES // 4] for i in range(0, len(points), FIGURES // 4)):
            figures = Figures()
            for point in some:
                told = {"hypervolume": point.hypervolume, f"best_{history.objective.metric}": point.best}
                for name, value in {**told, "front_size": point.front_size, "evaluated": point.evaluated}.items():
                    _put(figures, name, point.k, value, point.k)
            yield Item(("progress", sup), some[-1].k, ("search", sup), figures=figures, count=len(some))
        yield from self._exported(history)

    def _exported(self, history: History) -> Iterator[Item]:
        children = read_children(self.run)
        for record in history.records.values() if children else ():
            if record.id not in children or children[record.id]["supernet"] != history.supernet:
                continue
            key, test = ("exported", history.supernet, record.k), children[record.id].get("test") or {}
            times, old = self.sent.values.get(key, (0, None))
            if old != _digest(test):
                figures = Figures()
                for name, value in test.items():
                    _put(
                        figures, f"test_{name}", times, value, times
                    )  # measured anew after another export: the next step
                run = ("candidate", history.supernet, record.k)
                yield Item(key, (times + 1, _digest(test)), run, tags={"raynas.exported": "true"}, figures=figures)

    def _settings(self, run: Key) -> Iterator[Item]:
        try:
            tree = yaml.safe_load(self.run.experiment.read_text())
        except (OSError, yaml.YAMLError):
            tree = None
        params = {_name(name): value for name, value in _flat(tree)}
        if self.sent.values.get(("settings", *run)) != _digest(params):
            yield Item(("settings", *run), _digest(params), run, params=params)

    def _flags(self, history: History) -> Iterator[Item]:
        front = history.front()
        now, tied = {record.k for record in front}, ties(front)
        page = first_page(history, read_children(self.run))
        for k in sorted(history.records):
            key, run = ("front", history.supernet, k), ("candidate", history.supernet, k)
            if (k in now) != self.sent.values.get(key, False):
                yield Item(key, k in now, run, tags={"raynas.front": str(k in now).lower()})
            key, same = ("tied", history.supernet, k), tied.get(history.records[k].id, "") if k in now else ""
            if same != self.sent.values.get(key, ""):
                yield Item(key, same, run, tags={"raynas.tied": same})
            key, place = ("page", history.supernet, k), page.get(k, "later")
            if place != self.sent.values.get(key, "later"):
                yield Item(key, place, run, tags={"raynas.page": place})

    def _artifacts(self, history: History) -> Iterator[Item]:
        files = {}
        if rows := front_table(self.run):
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
            files["front.csv"] = text.getvalue().encode()
        if (page := self.run.report).exists():
            files["report.html"] = page.read_bytes()
        for name, content in files.items():
            key, digest = ("artifact", history.supernet, name), hashlib.sha256(content).hexdigest()
            if self.sent.values.get(key) != digest:
                yield Item(key, digest, ("search", history.supernet), artifacts={name: content})

    def _view(self, history: History) -> Iterator[Item]:
        text = view(history)
        key = ("view", history.supernet)
        if self.sent.values.get(key) != _digest(text):
            yield Item(key, _digest(text), ("search", history.supernet), shared={VIEW_TAG: text})


def first_page(history: History, exported: Collection[str]) -> dict[int, str]:
    """The candidates that MLflow's page shall load first, by k: the ``front``, and ``further`` ones: exported children
    and a sample evenly spread by rank of cost from the cheapest to the dearest."""
    cost = history.objective.cost
    judged = sorted(
        (record for record in history.records.values() if not history.failed(record)),
        key=lambda record: (record.cost[cost], record.k),
    )
    front = [record.k for record in history.front()]
    taken = [record.k for record in judged if record.id in exported and record.k not in front]
    others = [record.k for record in judged if record.k not in {*front, *taken}]
    front = _spread(front, PAGE)
    further = taken + _spread(others, max(0, PAGE - len(front) - len(taken)))
    return dict.fromkeys(further, "further") | dict.fromkeys(front, "front")


def _spread(ks: list[int], count: int) -> list[int]:
    """So many of these, evenly spread, both ends among them."""
    return [ks[place] for place in np.unique(np.linspace(0, len(ks) - 1, min(count, len(ks))).round().astype(int))]


def view(history: History) -> str:
    """What MLflow's page of the experiment shows by ``viewStateShareKey=raynas``, in the form in which it shares a view
    itself.

    All candidates, `first_page` first; cost against metric; parallel coordinates of the first choices that vary.
    """
    metric, cost = history.objective.metric, history.objective.cost
    seen: dict[str, set[Any]] = {}
    for record in history.records.values():
        for name, value in record.arch.items():
            seen.setdefault(_name(name), set()).add(value)
    choices = [name for name, values in seen.items() if len(values) > 1][:AXES]
    card = {"metricSectionId": "raynas", "isGenerated": False, "deleted": False}
    axes = {"xaxis": {"key": cost, "type": "METRIC"}, "yaxis": {"key": metric, "type": "METRIC"}}
    figures = [f"metrics.`{name}`" for name in dict.fromkeys((metric, *shown_costs(history)))]
    return json.dumps(
        {
            "searchFilter": "tags.`raynas.kind` = 'candidate'",
            "orderByKey": "tags.`raynas.page`",
            "orderByAsc": True,  # front, further, later; those without come last
            "selectedColumns": [*figures, "tags.`raynas.front`", "tags.`raynas.exported`"],
            "runsHiddenMode": "SHOWALL",
            "compareRunSections": [
                {
                    "uuid": "raynas",
                    "name": "Candidates",
                    "display": True,
                    "isReordered": False,
                    "columns": 1,
                    "cardHeight": 500,
                }
            ],
            "compareRunCharts": [
                {"type": "SCATTER", "uuid": "raynas-cost", "runsCountToCompare": 1000, **axes, **card},
                {
                    "type": "PARALLEL",
                    "uuid": "raynas-choices",
                    "selectedParams": choices,
                    "selectedMetrics": [cost, metric],
                    "showAllRuns": True,
                    **card,
                },
            ],
        }
    )


def _candidate(history: History, record: Record) -> Item:
    key: Key = ("candidate", history.supernet, record.k)
    figures, failed = Figures(), history.failed(record)
    more = {"seconds": record.seconds, "interval": half_width(record.parts)}
    if len(history.rungs) > 1:
        more["rung"] = len(record.lower)
    for name, value in {**(record.metrics or {}), **record.cost, **more}.items():
        _put(figures, name, 0, value, 0)
    born = {"raynas.arch": record.id}
    if failed:
        born["raynas.error"] = (record.error or "a metric is not a finite number")[:5000]
    tags = {"raynas.front": "false", "raynas.page": "later"}  # until a search ends
    if record.seen is not None:
        tags["raynas.seen"] = str(record.seen)
    return Item(
        key,
        None,
        key,
        name=record.id,
        born=born,
        seconds=record.seconds,
        tags=tags,
        params={_name(name): str(value) for name, value in record.arch.items()},
        figures=figures,
        finish="FAILED" if failed else "FINISHED",
    )


def _put(figures: Figures, name: str, step: int, value: Any, since: int) -> None:
    """Add a figure that MLflow can show; it would draw an infinity as 1.8e308."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        figures[(_name(name), step)] = (float(value), since)


def _name(text: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", text)[:250]


def _flat(tree: Any, key: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(tree, dict):
        for name, inner in tree.items():
            yield from _flat(inner, f"{key}.{name}".lstrip("."))
    elif key:
        yield key, tree if isinstance(tree, str) else json.dumps(tree, default=str)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
