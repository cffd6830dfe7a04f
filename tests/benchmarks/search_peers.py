"""What searchers of other libraries find on the synthetic problem (tests/synthetic.py) when they begin where ours does:
with the smallest and the largest network.

    pip install pymoo optuna
    python -m tests.benchmarks.search_peers
    python -m tests.benchmarks.search_peers --tables tests/golden/tables/*

Hypervolume below (1, 1.05) of error and relative cost, mean ± standard deviation over seeds 0-9, pymoo 0.6.2, Optuna
5.0 (`--seeds 10 --marks 100 250 500 1000`):

| searcher | 100 | 250 | 500 | 1,000 |
| --- | --- | --- | --- | --- |
| pymoo NSGA-II, population 20 | 0.6633 ± 0.0049 | 0.6808 ± 0.0023 | 0.6884 ± 0.0016 | 0.6917 ± 0.0012 |
| pymoo NSGA-II, population 50 | 0.6516 ± 0.0060 | 0.6710 ± 0.0022 | 0.6834 ± 0.0013 | 0.6926 ± 0.0006 |
| Optuna NSGA-II | 0.6419 ± 0.0052 | 0.6555 ± 0.0035 | 0.6665 ± 0.0034 | 0.6775 ± 0.0019 |
| Optuna TPE | 0.6685 ± 0.0050 | 0.6753 ± 0.0041 | 0.6783 ± 0.0038 | 0.6812 ± 0.0035 |

Our evolution (tests/benchmarks/search_synthetic.py) has 0.6627 and 0.6748 after 100 and 250: behind pymoo's with a
small population. It waits for the records of 32 candidates, these for a generation's or for one.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.search.pareto import hypervolume
from nas.space import Arch, Choice, Space
from tests import synthetic
from tests.benchmarks import search_tables
from tests.benchmarks.tables import Table

Point = tuple[float, float]


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Attributes:
        objectives: of a network, both to be small.
        reference: the corner of hypervolumes.
    """

    space: Space
    objectives: Callable[[Arch], Point]
    reference: Point

    @property
    def choices(self) -> list[Choice]:
        return list(self.space.choices.values())

    @property
    def ends(self) -> list[list[int]]:
        """Positions among each choice's values of the smallest and of the largest network."""
        return [[0] * len(self.choices), [len(choice.values) - 1 for choice in self.choices]]

    def network(self, genes: np.ndarray) -> Arch:
        """The architecture of a row of positions among each choice's values."""
        pairs = zip(self.choices, genes, strict=True)
        return self.space.arch({choice.name: choice.values[int(at)] for choice, at in pairs})

    def told(self, found: list[Point], marks: list[int]) -> list[float]:
        return [hypervolume(found[:mark], self.reference) for mark in marks]


Volumes = Callable[[Problem, int, list[int]], list[float]]


def pymoo(population: int) -> Volumes:
    """NSGA-II with uniform crossover and polynomial mutation of whole numbers."""

    def run(problem: Problem, seed: int, marks: list[int]) -> list[float]:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import ElementwiseProblem
        from pymoo.operators.crossover.ux import UX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.optimize import minimize

        found: list[Point] = []

        class Searched(ElementwiseProblem):
            def _evaluate(self, x: np.ndarray, out: dict[str, object], *args: object, **kwargs: object) -> None:
                found.append(problem.objectives(problem.network(x)))
                out["F"] = found[-1]

        top = np.array(problem.ends[1])
        searched = Searched(n_var=len(top), n_obj=2, xl=0 * top, xu=top, vtype=int)
        rng = np.random.default_rng(seed)
        start = np.concatenate((problem.ends, rng.integers(0, top + 1, (population - 2, len(top)))))
        mutation = PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair())
        crossover = UX(prob=1.0, vtype=float, repair=RoundingRepair())
        search = NSGA2(pop_size=population, sampling=start, crossover=crossover, mutation=mutation)
        minimize(searched, search, ("n_eval", max(marks)), seed=seed)
        return problem.told(found, marks)

    return run


def optuna(sampler: str) -> Volumes:
    """NSGA-II or TPE, as they come."""

    def run(problem: Problem, seed: int, marks: list[int]) -> list[float]:
        import optuna as library

        library.logging.set_verbosity(library.logging.ERROR)
        made = {"NSGA-II": library.samplers.NSGAIISampler, "TPE": library.samplers.TPESampler}[sampler](seed=seed)
        study = library.create_study(directions=["minimize", "minimize"], sampler=made)
        for end in problem.ends:
            pairs = zip(problem.choices, end, strict=True)
            study.enqueue_trial({choice.name: choice.values[at] for choice, at in pairs})
        found: list[Point] = []

        def evaluate(trial: library.Trial) -> Point:
            values = {choice.name: trial.suggest_categorical(choice.name, choice.values) for choice in problem.choices}
            found.append(problem.objectives(problem.space.arch(values)))
            return found[-1]

        study.optimize(evaluate, n_trials=max(marks))
        return problem.told(found, marks)

    return run


SEARCHERS: dict[str, Volumes] = {
    "pymoo NSGA-II, population 20": pymoo(20),
    "pymoo NSGA-II, population 50": pymoo(50),
    "Optuna NSGA-II": optuna("NSGA-II"),
    "Optuna TPE": optuna("TPE"),
}


def tabled(table: Table) -> Problem:
    """A table as a problem."""

    def objectives(arch: Arch) -> Point:
        metric, cost = table.scaled([arch])[0]
        return float(metric), float(cost)

    return Problem(table.space, objectives, search_tables.REFERENCE)


def main() -> None:
    """Print a table for each problem."""
    parser = argparse.ArgumentParser(description="Hypervolume of other libraries' searchers.")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    parser.add_argument("--marks", type=int, nargs="+", default=[100, 250])
    parser.add_argument("--tables", type=Path, nargs="*", help="of judged children, in place of the synthetic problem")
    parser.add_argument("--searchers", nargs="+", default=list(SEARCHERS), choices=SEARCHERS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    problem, best = Problem(synthetic.SPACE, synthetic.objectives, synthetic.REFERENCE), 1.0
    for path in args.tables or [None]:
        if path:
            table = Table.read(path)
            best = search_tables.headline(path, table, list(map(str, args.marks)))
            problem = tabled(table)
        else:
            print("| searcher | " + " | ".join(f"{mark:,}" for mark in args.marks) + " |")
            print("| --- " * (len(args.marks) + 1) + "|")
        for name in args.searchers:
            volumes = SEARCHERS[name]
            found = [volumes(problem, seed, args.marks) for seed in range(args.seeds)]
            print(search_tables.row(name, np.array(found) / best), flush=True)


if __name__ == "__main__":
    main()
