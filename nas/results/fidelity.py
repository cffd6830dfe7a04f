"""How far a supernet's scores are to be trusted: children of it trained alone, and what both orders say of each other.

`Trials` is the file, ``RUN/fidelity/<what it is of>.jsonl``: a header, then a line for each training and each score.
`Fidelity` is what follows from it.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt, ValidationError, model_validator

from nas.config.experiment import Experiment
from nas.config.section import ChildOptions
from nas.results.choose import check_trained
from nas.rundir.atomic import naming, write_atomic
from nas.rundir.directory import RunDir
from nas.rundir.forms import Figures, Form, Text
from nas.rundir.log import Lines
from nas.search.core import Objective
from nas.space import COSTS, Arch, Measure
from nas.statistics import (
    Between,
    Spread,
    beside,
    best_of,
    bootstrapped,
    smallest_difference,
    spread,
    standard_error,
    tau,
)

if TYPE_CHECKING:
    from nas.children.evaluate import Judged

FEW = 4  # networks, of which nothing can be said


class Head(Form):
    """The first line of a file of trials: what they are of. `recipe` is how networks learn alone, `tuned` how children
    do before the supernet's scores of later rungs; `validation` is how many examples figures are of."""

    raynas_fidelity: Literal[1] = 1
    supernet: Text
    metric: Text
    better: Literal["higher", "lower"]
    cost: Text
    validation: PositiveInt
    test: PositiveInt
    recipe: dict[Text, JsonValue]
    tuned: dict[Text, JsonValue] | None = None
    steps: Annotated[list[NonNegativeInt], Field(min_length=1)]
    archs: list[dict[Text, int | float]]
    costs: list[float]

    @model_validator(mode="after")
    def _whole(self) -> Head:
        if len(self.archs) != len(self.costs):
            raise ValueError(f"{len(self.archs)} networks and {len(self.costs)} costs")
        return self


class Training(Form):
    """What came of one training: its metrics, and its metric on parts of validation; `error` is the metric's standard
    error, all that older lines have. None for what is not finite."""

    id: Text
    seed: NonNegativeInt
    metrics: Figures
    error: float | None = None
    parts: list[float | None] = []


class Score(Form):
    """What the supernet says of a child, after so many steps; None for what is not finite."""

    id: Text
    steps: NonNegativeInt
    metrics: Figures


@dataclass
class Trials:
    """Trainings of networks alone, and the supernet's scores of the same ones; lines are added and never changed.

    Attributes:
        head: what they are of.
        alone: by (id, seed).
        scored: by (id, steps that the child was trained for before).

    Raises:
        ValueError: the file is damaged.
    """

    run: RunDir
    head: Head
    alone: dict[tuple[str, int], Training] = field(default_factory=dict)
    scored: dict[tuple[str, int], Score] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        run: RunDir,
        experiment: Experiment,
        supernet: str,
        objective: Objective,
        examples: Mapping[str, int],
        costs: Mapping[Arch, float],
    ) -> Self:
        """Those of an experiment and a supernet, which are the run's current ones from now on.

        Args:
            supernet: sha256 of its weights.
            examples: how many ``validation`` and ``test`` have.
            costs: of the networks.

        Raises:
            ValueError: nobody says how the networks learn.
        """
        recipe, steps = check_recipe(experiment), [steps for _, steps in experiment.search.rungs]
        tuned = experiment.search.recipe
        head = Head(
            supernet=supernet,
            metric=objective.metric,
            better=objective.better,
            cost=objective.cost,
            validation=examples["validation"],
            test=examples["test"],
            recipe=recipe.model_dump(mode="json"),
            tuned=tuned.model_dump(mode="json") if tuned else None,
            steps=steps,
            archs=[dict(arch) for arch in costs],
            costs=list(costs.values()),
        )
        found = cls(run, head)
        run.fidelity.mkdir(exist_ok=True)
        if not found.path.exists():
            write_atomic(found.path, head.model_dump_json() + "\n")
        write_atomic(run.fidelity / "current", found.path.name)
        found._read()
        return found

    @classmethod
    def current(cls, run: RunDir) -> Self | None:
        """The run's current ones; None where there are none."""
        try:
            name = (run.fidelity / "current").read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        lines = Lines(run.fidelity / name).new() if re.fullmatch(r"[0-9a-f]{12}\.jsonl", name) else []
        if not lines:
            return None
        found = cls(run, _held(Head, lines[0], run.fidelity / name))
        if found.path.name != name:
            raise ValueError(f"{run.fidelity / name} is not of what its first line says")
        found._read()
        return found

    @property
    def path(self) -> Path:
        digest = hashlib.sha256(self.head.model_dump_json().encode()).hexdigest()
        return self.run.fidelity / f"{digest[:12]}.jsonl"

    @property
    def archs(self) -> list[Arch]:
        return [Arch(choices) for choices in self.head.archs]

    def _read(self) -> None:
        for line in Lines(self.path).new()[1:]:
            if "seed" in line:
                training = _held(Training, line, self.path)
                self.alone[training.id, training.seed] = training
            else:
                score = _held(Score, line, self.path)
                self.scored[score.id, score.steps] = score

    def open_jobs(self, seeds: int) -> list[tuple[Arch, int]]:
        """The trainings that are not done: seed after seed, so that the first is whole soon."""
        return [(arch, seed) for seed in range(seeds) for arch in self.archs if (arch.id, seed) not in self.alone]

    def open_scores(self) -> list[tuple[Arch, int]]:
        """The children that the supernet has not been asked for, and after how many steps."""
        return [(a, steps) for steps in self.head.steps for a in self.archs if (a.id, steps) not in self.scored]

    def add_alone(self, id: str, seed: int, judged: Judged) -> None:
        """Write down what came of a training."""
        parts = [_finite(part)[self.head.metric] for part in judged.parts]
        self.alone[id, seed] = Training(id=id, seed=seed, metrics=_finite(judged.metrics), parts=parts)
        self._write(self.alone[id, seed])

    def add_score(self, id: str, steps: int, metrics: Mapping[str, float]) -> None:
        self.scored[id, steps] = Score(id=id, steps=steps, metrics=_finite(metrics))
        self._write(self.scored[id, steps])

    def _write(self, form: Form) -> None:
        line = form.model_dump_json().encode() + b"\n"
        with naming(self.path), open(self.path, "ab+") as file:
            file.seek(-1, os.SEEK_END)
            file.write(line if file.read(1) == b"\n" else b"\n" + line)  # a crash tore the last one
            file.flush()
            os.fsync(file.fileno())

    def fidelity(self, candidates: int) -> Fidelity | None:
        """What follows for a search over so many candidates; None while less than `FEW` networks have two trainings and
        all of their scores. A network that failed in one of them is left out."""
        head = self.head
        name, sign = head.metric, 1.0 if head.better == "higher" else -1.0
        scored = [a for a in self.archs if all((a.id, steps) in self.scored for steps in head.steps)]
        counts = [next(n for n in count() if (a.id, n) not in self.alone) for a in scored]
        seeds = max(2, min(counts, default=0))
        whole = [
            arch
            for arch, trained in zip(scored, counts, strict=True)
            if trained >= seeds and not any(name in each and each[name] is None for each in self._figures(arch, seeds))
        ]
        if len(whole) < FEW:
            return None
        costs = {arch.id: cost for arch, cost in zip(self.archs, head.costs, strict=True)}
        trained = [[self.alone[a.id, seed] for seed in range(seeds)] for a in whole]
        try:
            return Fidelity(
                head,
                whole,
                np.array([costs[a.id] for a in whole], dtype=float),
                sign * np.array([[each.metrics[name] for each in row] for row in trained]),
                {n: sign * np.array([self.scored[a.id, n].metrics[name] for a in whole]) for n in head.steps},
                _apart(trained),
                candidates,
            )
        except KeyError as error:
            raise ValueError(f"{self.path} has figures without {error}") from None

    def _figures(self, arch: Arch, seeds: int) -> Iterator[Mapping[str, float | None]]:
        yield from (self.alone[arch.id, seed].metrics for seed in range(seeds))
        yield from (self.scored[arch.id, steps].metrics for steps in self.head.steps)


def _apart(trained: Sequence[Sequence[Training]]) -> float:
    """Standard error of the difference of two networks' metric: on the same examples, which is less than of two that
    saw others; NaN where nothing is known of it."""
    first = [row[0].parts for row in trained]
    pairs = [pair for pair in combinations(first, 2) if len(pair[0]) == len(pair[1]) and None not in pair[0] + pair[1]]
    errors = [standard_error([a - b for a, b in zip(*pair, strict=True)]) for pair in pairs]  # type: ignore[operator]
    if not any(first):  # of an older version
        errors = [math.sqrt(2) * each.error for row in trained for each in row if each.error is not None]
    return float(np.mean(errors)) if errors else math.nan


def _finite(metrics: Mapping[str, float]) -> Figures:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


T = TypeVar("T", bound=Form)


def _held(form: type[T], line: object, path: Path) -> T:
    """A line in its form.

    Raises:
        ValueError: it has another.
    """
    try:
        return form.model_validate(line)
    except ValidationError as error:
        told = error.errors(include_url=False)[0]
        where = ".".join(map(str, told["loc"]))
        raise ValueError(f"{path} is damaged: {where}: {told['msg']}; delete it, and train anew") from None


@dataclass(frozen=True)
class Fidelity:
    """What networks trained alone say of the supernet's scores, of the cost, and of themselves.

    Attributes:
        head: of the `Trials`.
        archs: the networks.
        cost: of each, shape ``(networks,)``.
        alone: the metric of each training, higher is better, shape ``(networks, seeds)``.
        scored: the supernet's, by steps of training before, shape ``(networks,)``.
        error: standard error of the difference of two networks on validation.
        candidates: that the search judges.
    """

    head: Head
    archs: Sequence[Arch]
    cost: np.ndarray
    alone: np.ndarray
    scored: Mapping[int, np.ndarray]
    error: float
    candidates: int

    @cached_property
    def taus(self) -> dict[int, Between]:
        """Kendall's tau of the supernet's scores and a training, the mean over the trainings, by steps."""
        return {steps: self._against(values) for steps, values in self.scored.items()}

    @cached_property
    def floor(self) -> Between:
        """Kendall's tau of the cost alone and the trainings: what whoever looks at nothing else gets."""
        return self._against(self.cost)

    @cached_property
    def another(self) -> Between:
        """Kendall's tau of two trainings of the same networks, the mean over pairs of seeds: what a training has as a
        score of another. A score that has less of chance in it than a training may come to more."""
        return self._mean_tau(list(combinations(self.alone.T, 2)))

    def _against(self, values: np.ndarray) -> Between:
        """Each training by itself, as in `another`: their mean has less of chance in it, so that every score agrees
        better with it than a training does."""
        return self._mean_tau([(values, training) for training in self.alone.T])

    def _mean_tau(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Between:
        return bootstrapped(lambda at: float(np.mean([tau(a[at], b[at]) for a, b in pairs])), len(self.cost))

    @cached_property
    def at_equal_cost(self) -> dict[int, Between]:
        """The correlation of both with the cost taken out, by steps."""

        def correlation(values: np.ndarray, at: np.ndarray) -> float:
            if len(set(at.tolist())) < FEW:
                return math.nan
            scores, trainings = (beside(each[at], self.cost[at]) for each in (values, self.alone.mean(axis=1)))
            with np.errstate(invalid="ignore", divide="ignore"):
                return float(np.corrcoef(scores, trainings)[0, 1])

        def of(values: np.ndarray) -> Between:
            return bootstrapped(lambda at: correlation(values, at), len(self.cost))

        return {steps: of(values) for steps, values in self.scored.items()}

    @cached_property
    def spread(self) -> Spread:
        """Of the networks and of their trainings, with the cost taken out."""
        return spread(beside(self.alone, self.cost), fitted=2)

    @property
    def gain(self) -> float:
        """What the best of as many candidates as the run has can be expected to have over a random network of its
        cost, in the metric."""
        best = max((each.value for each in self.at_equal_cost.values() if math.isfinite(each.value)), default=0.0)
        return max(best, 0.0) * self.spread.networks * best_of(self.candidates)

    @property
    def shown_by_test(self) -> float:
        """The smallest difference of two networks, each trained once, that the test part can show."""
        of_examples = self.error * math.sqrt(self.head.validation / self.head.test)
        return smallest_difference(math.hypot(of_examples, math.sqrt(2) * self.spread.trainings))

    @property
    def verdict(self) -> str:
        """Whether a search in this space, on these data, can find anything."""
        metric, name = self.head.metric, self.head.cost
        cost = COSTS.get(name, Measure(name)).label
        test = f"The test part shows differences of {self.shown_by_test:.3g} or more between two trained networks."
        if not self.spread.networks:
            return (
                f"Networks of equal {cost} differ by no more than two trainings of one network do: among these there "
                f"is nothing to find here. {test}"
            )
        low = max(between.low for between in self.at_equal_cost.values())
        if not low > 0:
            return (
                f"Networks of equal {cost} differ by {self.spread.networks:.3g}, but that the supernet tells them apart"
                f" better than chance is not shown by {len(self.archs)} networks: train it longer, score after some "
                f"steps (search.rungs), or take more networks (--children). {test}"
            )
        return (
            f"The best of {self.candidates:,} candidates can be expected to have {self.gain:.3g} in {metric} over a "
            f"random network of its {cost}. {test}"
        )

    def rows(self) -> Iterator[tuple[str, Between]]:
        """What is held against the trainings, and Kendall's tau."""
        for steps, value in self.taus.items():
            yield f"supernet, {steps} steps alone" if steps else "supernet", value
        yield "another training", self.another
        yield f"{self.head.cost} (floor)", self.floor


def check_recipe(experiment: Experiment) -> ChildOptions:
    """How networks learn alone.

    Raises:
        ValueError: nothing says so.
    """
    if experiment.alone is None:
        raise ValueError(
            "nothing says how networks learn alone; for example: --set 'fidelity.recipe={name: single, epochs: 20, "
            "batch: 64, lr: 0.1, weight_decay: 1e-4}'"
        )
    return experiment.alone


def check_ready(experiment: Experiment, run: RunDir) -> None:
    """Refuse a run that has no trained supernet, or in which nothing says how networks learn alone."""
    check_recipe(experiment)
    check_trained(experiment, run)


def told(between: Between) -> str:
    """``0.55 [0.21, 0.78]``."""
    return f"{between.value:.2f} [{between.low:.2f}, {between.high:.2f}]"


def read_fidelity(run: RunDir, supernet: str, candidates: int) -> Fidelity | None:
    """That of a supernet, as far as it is measured; None where its file is damaged, which `nas fidelity` tells."""
    try:
        trials = Trials.current(run)
        return trials.fidelity(candidates) if trials and trials.head.supernet == supernet else None
    except ValueError:
        return None
