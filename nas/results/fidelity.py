"""How far a supernet's scores are to be trusted: children of it trained alone, and what both orders say of each other.

`Trials` is the file, ``RUN/fidelity/<what it is of>.jsonl``: a header, then a line for each training and each score.
`Fidelity` is what follows from it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nas.config.experiment import Experiment
from nas.config.section import ChildOptions
from nas.rundir.atomic import naming, write_atomic
from nas.rundir.directory import RunDir
from nas.rundir.log import Lines
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


@dataclass
class Trials:
    """Trainings of networks alone, and the supernet's scores of the same ones; lines are added and never changed.

    Attributes:
        header: what they are of, plain JSON.
        alone: figures by (id, seed).
        errors: standard errors of the metric in these, from the parts of validation.
        scored: the supernet's figures by (id, steps that the child was trained for before).
    """

    run: RunDir
    header: Mapping[str, Any]
    alone: dict[tuple[str, int], Mapping[str, float]] = field(default_factory=dict)
    errors: dict[tuple[str, int], float] = field(default_factory=dict)
    scored: dict[tuple[str, int], Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def open(cls, run: RunDir, experiment: Experiment, about: Mapping[str, Any], costs: Mapping[Arch, float]) -> Self:
        """Those of an experiment and a supernet, which are the run's current ones from now on.

        Args:
            about: ``supernet`` (sha256), ``metric``, ``better``, ``cost``; how many examples ``validation`` and
                ``test`` have.
            costs: of the networks.

        Raises:
            ValueError: nobody says how the networks learn.
        """
        recipe = check_recipe(experiment)
        header = {
            "raynas_fidelity": 1,
            **about,
            "seeds": experiment.fidelity.seeds,
            "recipe": recipe.model_dump(mode="json"),
            "steps": [steps for _, steps in experiment.search.rungs],
            "candidates": experiment.search.candidates,
            "archs": [dict(arch) for arch in costs],
            "costs": list(costs.values()),
        }
        found = cls(run, json.loads(json.dumps(header)))
        run.fidelity.mkdir(exist_ok=True)
        if not found.path.exists():
            write_atomic(found.path, json.dumps(found.header) + "\n")
        write_atomic(run.fidelity / "current", found.path.name)
        found._read()
        return found

    @classmethod
    def current(cls, run: RunDir) -> Self | None:
        """The run's current ones; None where there are none."""
        try:
            path = run.fidelity / (run.fidelity / "current").read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        header = next(iter(Lines(path).new()), None)
        if header is None or "raynas_fidelity" not in header:
            return None
        found = cls(run, header)
        found._read()
        return found

    @property
    def path(self) -> Path:
        digest = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode()).hexdigest()
        return self.run.fidelity / f"{digest[:12]}.jsonl"

    @property
    def archs(self) -> list[Arch]:
        return [Arch(choices) for choices in self.header["archs"]]

    def _read(self) -> None:
        for line in Lines(self.path).new():
            if "metrics" not in line:
                continue
            if "seed" in line:
                self.alone[line["id"], line["seed"]] = line["metrics"]
                self.errors[line["id"], line["seed"]] = line["error"]
            else:
                self.scored[line["id"], line["steps"]] = line["metrics"]

    def open_jobs(self) -> list[tuple[Arch, int]]:
        """The trainings that are not done: seed after seed, so that the first is whole soon."""
        seeds = range(self.header["seeds"])
        return [(arch, seed) for seed in seeds for arch in self.archs if (arch.id, seed) not in self.alone]

    def open_scores(self) -> list[tuple[Arch, int]]:
        """The children that the supernet has not been asked for, and after how many steps."""
        return [(a, steps) for steps in self.header["steps"] for a in self.archs if (a.id, steps) not in self.scored]

    def add_alone(self, id: str, seed: int, judged: Judged, seconds: float) -> None:
        """Write down what came of a training."""
        error = standard_error([part[self.header["metric"]] for part in judged.parts])
        self.alone[id, seed], self.errors[id, seed] = judged.metrics, error
        told = {"metrics": judged.metrics, "error": error, "seconds": round(seconds, 2)}
        self._write({"id": id, "seed": seed, **told})

    def add_score(self, id: str, steps: int, metrics: Mapping[str, float]) -> None:
        self.scored[id, steps] = metrics
        self._write({"id": id, "steps": steps, "metrics": dict(metrics)})

    def _write(self, form: Mapping[str, Any]) -> None:
        line = json.dumps(form).encode() + b"\n"
        with naming(self.path), open(self.path, "ab+") as file:
            file.seek(-1, os.SEEK_END)
            file.write(line if file.read(1) == b"\n" else b"\n" + line)  # a crash tore the last one
            file.flush()
            os.fsync(file.fileno())

    def fidelity(self) -> Fidelity | None:
        """What follows; None while less than `FEW` networks have all of their trainings and scores."""
        head = self.header
        whole = [
            arch
            for arch in self.archs
            if all((arch.id, seed) in self.alone for seed in range(head["seeds"]))
            and all((arch.id, steps) in self.scored for steps in head["steps"])
        ]
        if len(whole) < FEW:
            return None
        name, sign = head["metric"], 1.0 if head["better"] == "higher" else -1.0
        alone = np.array([[sign * self.alone[a.id, s][name] for s in range(head["seeds"])] for a in whole])
        scored = {n: np.array([sign * self.scored[a.id, n][name] for a in whole]) for n in head["steps"]}
        costs = {arch.id: cost for arch, cost in zip(self.archs, head["costs"], strict=True)}
        error = float(np.mean([self.errors[a.id, s] for a in whole for s in range(head["seeds"])]))
        return Fidelity(head, whole, np.array([costs[a.id] for a in whole], dtype=float), alone, scored, error)


@dataclass(frozen=True)
class Fidelity:
    """What networks trained alone say of the supernet's scores, of the cost, and of themselves.

    Attributes:
        header: of the `Trials`.
        archs: the networks.
        cost: of each, shape ``(networks,)``.
        alone: the metric of each training, higher is better, shape ``(networks, seeds)``.
        scored: the supernet's, by steps of training before, shape ``(networks,)``.
        error: standard error of a metric on validation.
    """

    header: Mapping[str, Any]
    archs: Sequence[Arch]
    cost: np.ndarray
    alone: np.ndarray
    scored: Mapping[int, np.ndarray]
    error: float

    @cached_property
    def taus(self) -> dict[int, Between]:
        """Kendall's tau of the supernet's scores and the mean of the trainings, by steps."""
        return {steps: self._against(values) for steps, values in self.scored.items()}

    @cached_property
    def floor(self) -> Between:
        """Kendall's tau of the cost alone and the trainings: what whoever looks at nothing else gets."""
        return self._against(self.cost)

    @cached_property
    def ceiling(self) -> Between:
        """Kendall's tau of two trainings of the same networks, the mean over pairs of seeds: more than two trainings
        agree with each other no score can agree with them."""
        pairs = list(combinations(self.alone.T, 2))
        return bootstrapped(lambda at: float(np.mean([tau(a[at], b[at]) for a, b in pairs])), len(self.cost))

    def _against(self, values: np.ndarray) -> Between:
        mean = self.alone.mean(axis=1)
        return bootstrapped(lambda at: tau(values[at], mean[at]), len(self.cost))

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
        return max(best, 0.0) * self.spread.networks * best_of(self.header["candidates"])

    @property
    def shown_by_test(self) -> float:
        """The smallest difference of two networks, each trained once, that the test part can show."""
        of_examples = self.error * math.sqrt(self.header["validation"] / self.header["test"])
        return smallest_difference(math.sqrt(2) * math.hypot(of_examples, self.spread.trainings))

    @property
    def verdict(self) -> str:
        """Whether a search in this space, on these data, can find anything."""
        metric = self.header["metric"]
        cost = COSTS.get(self.header["cost"], Measure(self.header["cost"])).label
        test = f"The test part shows differences of {self.shown_by_test:.3g} or more between two trained networks."
        if not self.spread.networks:
            return (
                f"Networks of equal {cost} differ by no more than two trainings of one network do: among these there "
                f"is nothing to find here. {test}"
            )
        low = max(between.low for between in self.at_equal_cost.values())
        candidates = self.header["candidates"]
        if not low > 0:
            return (
                f"Networks of equal {cost} differ by {self.spread.networks:.3g}, but that the supernet tells them apart"
                f" better than chance is not shown by {len(self.archs)} networks: train it longer, score after some "
                f"steps (search.rungs), or take more networks (--children). {test}"
            )
        return (
            f"The best of {candidates:,} candidates can be expected to have {self.gain:.3g} in {metric} over a random "
            f"network of its {cost}. {test}"
        )

    def rows(self) -> Iterator[tuple[str, Between]]:
        """What is held against the trainings, and Kendall's tau."""
        for steps, value in self.taus.items():
            yield f"supernet, {steps} steps alone" if steps else "supernet", value
        yield "another training (ceiling)", self.ceiling
        yield f"{self.header['cost']} (floor)", self.floor


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


def told(between: Between) -> str:
    """``0.55 [0.21, 0.78]``."""
    return f"{between.value:.2f} [{between.low:.2f}, {between.high:.2f}]"


def read_fidelity(run: RunDir, supernet: str) -> Fidelity | None:
    """That of a supernet, as far as it is measured."""
    trials = Trials.current(run)
    return trials.fidelity() if trials and trials.header.get("supernet") == supernet else None
