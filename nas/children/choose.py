"""Which candidates of a search become children: read from a run's files alone, so that a wrong id is told before torch
is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np

from nas.config.experiment import Experiment
from nas.results.history import History
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir
from nas.search.constraints import Constraints
from nas.search.journal import Record
from nas.space import COSTS

FORMATS = {"pt2": "", "openvino": "openvino", "executorch": "executorch"}  # and the package, called as its extra is


def check_formats(names: Sequence[str]) -> None:
    """Refuse what is no format of children, and one whose package is not installed.

    Raises:
        ValueError: says which there are, or what to install.
    """
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"no format {name!r}; there are {', '.join(FORMATS)}, and ONNX by itself (export.onnx)")
        if FORMATS[name] and importlib.util.find_spec(FORMATS[name]) is None:
            raise ValueError(f"the format {name} needs the package {FORMATS[name]}: pip install 'raynas[{name}]'")


def constraints_of(experiment: Experiment) -> Constraints:
    """What a child may cost; those costs first that every network has, in their order."""
    given = experiment.search.constraints
    names = [*(name for name in COSTS if name in given), *(name for name in given if name not in COSTS)]
    return Constraints({name: (given[name].min, given[name].max) for name in names})


def trained(newest: Checkpoint | None, experiment: Experiment, run: RunDir) -> Checkpoint:
    """The newest checkpoint of a run's supernet, itself.

    Raises:
        ValueError: there is none yet.
    """
    if newest is None:
        raise ValueError(f"{run.path} has no trained supernet yet: nas train {experiment.name}")
    return newest


def history_of(run: RunDir, supernet: Checkpoint) -> History:
    """What the search over a trained supernet has found so far."""
    history = History(run.journal(supernet.sha))
    history.update()
    return history


def choose(history: History, experiment: Experiment, only: str | None = None) -> list[Record]:
    """Records to export: some of the front within the constraints, evenly spread by rank of cost, both ends among them;
    or the one named.

    Raises:
        ValueError: there is nothing to choose from, or no such candidate.
    """
    if only is not None:
        named = [record for record in history.records.values() if only in (record.id, str(record.k))]
        if not named:
            raise ValueError(
                f"no candidate {only!r} in {history.path}; give the id or the number of one of its "
                f"{len(history.records)} records"
            )
        return named[:1]
    bound = constraints_of(experiment)
    front = history.front(lambda record: bound.violation(record.cost) == 0)
    if not front:
        raise ValueError(
            f"no candidate within {bound} was judged in {history.path}; search first: nas search {experiment.name}"
        )
    places = np.unique(np.linspace(0, len(front) - 1, min(experiment.export.children, len(front))).round().astype(int))
    return [front[place] for place in places]


def check_trained(experiment: Experiment, run: RunDir) -> Checkpoint:
    """The newest whole checkpoint of a run.

    Raises:
        ValueError: there is none yet.
    """
    return trained(Checkpoint.newest(run.checkpoints), experiment, run)


def check_candidate(experiment: Experiment, run: RunDir, only: str | None = None) -> list[Record]:
    """What `choose` gives.

    Raises:
        ValueError: nothing is trained, there is nothing to choose from, or no such candidate.
    """
    return choose(history_of(run, check_trained(experiment, run)), experiment, only)
