"""Which candidates of a search become children: read from a run's files alone, so that a wrong id is told before torch
is imported."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from nas.config.experiment import Experiment
from nas.config.section import amount
from nas.results.history import LEAST, History, constraints_in, read_history
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir
from nas.search.constraints import Constraints
from nas.search.journal import Record
from nas.search.pareto import front

FINETUNED = "-finetuned"  # the end of a finetuned child's id


def constraints_of(experiment: Experiment) -> Constraints:
    """What a child may cost."""
    return constraints_in(experiment.search.constraints)


def trained(newest: Checkpoint | None, experiment: Experiment, run: RunDir) -> Checkpoint:
    """The newest checkpoint of a run's supernet, itself.

    Raises:
        ValueError: there is none yet.
    """
    if newest is None:
        raise ValueError(f"{run.path} has no trained supernet yet: nas train {experiment.name}")
    return newest


def history_of(experiment: Experiment, run: RunDir, supernet: Checkpoint) -> History:
    """What the search over a trained supernet has found so far."""
    history = History(run.journal(supernet.sha), constraints_of(experiment))
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
    whole = history.front()
    errors = Counter(record.error for record in history.records.values() if record.error)
    if errors and errors.total() == len(history.records):
        ((error, count),) = errors.most_common(1)
        raise ValueError(f"all {errors.total():,} candidates judged have failed, {count:,} of them with: {error}")
    if not whole and history.records:
        raise ValueError(
            f"none of the {len(history.records):,} candidates judged lies within {history.constraints}: loosen that "
            f"({lifting(history.constraints)}), train longer, or search on (--set search.candidates=N)"
        )
    if not whole:
        raise ValueError(
            f"no candidate within {history.constraints} was judged in {history.path}; search first: nas search "
            f"{experiment.name}"
        )
    places = np.unique(np.linspace(0, len(whole) - 1, min(experiment.export.children, len(whole))).round().astype(int))
    return [whole[place] for place in places]


def budget(most: Mapping[str, float | str], least: Mapping[str, float | str]) -> Constraints:
    """The most and the least that a child may have, by cost or metric: numbers, or such as ``"100k"``.

    Raises:
        ValueError: one is no number.
    """
    names = dict.fromkeys((*most, *least))
    return Constraints({name: (_bound(name, least), _bound(name, most)) for name in names})


def _bound(name: str, given: Mapping[str, float | str]) -> float | None:
    if name not in given:
        return None
    value = given[name]
    try:
        number = float(value) if not isinstance(value, str) or value[-1:].isdigit() else amount(value)
    except ValueError:
        number = math.nan
    if not isinstance(number, int | float) or math.isnan(number):
        raise ValueError(f'{name}: given {value!r}; allowed: a number, plain or such as "100k", "1.5M"')
    return number


def pick_of(run: RunDir, budget: Constraints, knee: bool = False) -> Record:
    """What `pick` gives of a run's newest search.

    Raises:
        ValueError: nothing was searched, or no candidate fits.
    """
    if (history := read_history(run)) is None:
        raise ValueError(f"{run.path} has not been searched yet: nas search {run.path}")
    return pick(history, budget, knee)


def pick(history: History, budget: Constraints, knee: bool = False) -> Record:
    """The best candidate of a search under a budget; of equally good ones the cheapest.

    Args:
        budget: of costs and of metrics. The experiment's own constraints do not count.
        knee: rather the one at which the front under that budget bends.

    Raises:
        ValueError: a name that is neither a cost nor a metric of this search, or no candidate fits; says which comes
            nearest.
    """
    told = [record for _, record in sorted(history.records.items()) if history.final(record)]
    judged = [record for record in told if not history.failed(record)]
    if not judged:
        raise ValueError(f"no candidate was judged in {history.path} yet: search first")
    known = {**(judged[0].metrics or {}), **judged[0].cost}
    if strange := sorted(budget.bounds.keys() - known.keys()):
        near = difflib.get_close_matches(strange[0], known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{', '.join(strange)} is no figure of this search; {hint}it has {', '.join(known)}")
    missed = {record.k: budget.violation({**(record.metrics or {}), **record.cost}) for record in judged}
    nearest = min(judged, key=lambda record: (missed[record.k], history.point(record)))
    if missed[nearest.k]:
        figures = {**(nearest.metrics or {}), **nearest.cost}
        names = dict.fromkeys((*budget.bounds, history.objective.metric))
        raise ValueError(
            f"none of {len(judged):,} candidates lies within {budget}; the nearest is {nearest.id} (candidate "
            f"{nearest.k}) with {', '.join(f'{name} {_told(figures[name])}' for name in names)}: loosen the bounds, or "
            "search on within them, if the space has such networks (nas spaces)"
        )
    return _knee(history, [record for record in judged if not missed[record.k]]) if knee else nearest


def _told(figure: float) -> str:
    return f"{figure:,.0f}" if float(figure).is_integer() else f"{figure:,.6g}"


def _knee(history: History, records: list[Record]) -> Record:
    """Of the front of these the point farthest from the line between its ends: metric against the logarithm of cost,
    each scaled to the front's range."""
    pairs = (history.point(record)[:2] for record in records)
    points = np.array([(metric, math.log10(max(cost, LEAST))) for metric, cost in pairs])
    places = front(points)
    scaled = points[places] - points[places].min(axis=0)
    scaled /= np.maximum(scaled.max(axis=0), LEAST)
    return records[places[np.argmin(scaled.sum(axis=1))]]  # the ends are (0, 1) and (1, 0), the line is x + y = 1


def lifting(constraints: Constraints) -> str:
    """The words of a command that lift constraints."""
    sides = [
        (name, side)
        for name, bounds in constraints.bounds.items()
        for side, bound in zip(("min", "max"), bounds, strict=True)
        if bound is not None
    ]
    return " ".join(f"--set search.constraints.{name}.{side}=null" for name, side in sides)


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
    return choose(history_of(experiment, run, check_trained(experiment, run)), experiment, only)
