"""How good the searchers are on a problem with known answers (see tests/synthetic.py): hypervolume over evaluations.

Run from the root of the repository, half a minute on one core:

    python -m tests.benchmarks.search_synthetic

Hypervolume below (1, 1.05) of error and relative cost, mean ± standard deviation over seeds 0-4, window 32:

TABLE

"without ends" is evolution that does not begin with the smallest and the largest network: most of the lead is theirs,
since both lie on the true front here. pymoo's NSGA-II (0.6.2, population 50, uniform crossover, polynomial mutation) begins
with random ones alone. The true front lies near 0.70: pymoo with population 200 reaches 0.7007 in 50,000 evaluations.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Iterator

import numpy as np

from nas.search import Budget, Candidate, Evolution, Random, Search, hypervolume
from nas.space import Arch
from tests.synthetic import OBJECTIVE, REFERENCE, SPACE, cost, evaluate, objectives


class WithoutEnds(Evolution):
    """Evolution from random networks alone."""

    def draws(self, k: int, archs: list[Arch], points: np.ndarray, budget: Budget, rng: np.random.Generator) -> Iterator[Arch]:
        """As evolution's from the third candidate on."""
        return super().draws(max(k, 2), archs, points, budget, rng)


def volumes(search: Search, marks: list[int]) -> list[float]:
    """The hypervolume of all candidates evaluated so far at each number of evaluations in `marks`, with all of W in flight."""
    waiting: deque[Candidate] = deque()
    found: list[tuple[float, float]] = []
    while len(found) < max(marks):
        candidate = search.ask()
        if candidate is None:
            search.tell(evaluate(waiting.popleft()))
        else:
            waiting.append(candidate)
            found.append(objectives(candidate.arch))
    return [hypervolume(found[:mark], REFERENCE) for mark in marks]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Hypervolume of the searchers on the synthetic problem.")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    parser.add_argument("--window", type=int, default=32, help="W: candidate k waits for the records of 0 ... k - W")
    parser.add_argument("--marks", type=int, nargs="+", default=[100, 250, 500, 1000], help="numbers of evaluations to report")
    args = parser.parse_args()
    searches: dict[str, type[Search]] = {"random": Random, "evolution": Evolution, "without ends": WithoutEnds}
    print("| searcher | " + " | ".join(f"{mark:,}" for mark in args.marks) + " | ms a candidate |")
    print("| --- " * (len(args.marks) + 2) + "|")
    for name, kind in searches.items():
        start = time.perf_counter()
        table = np.array([volumes(kind(SPACE, cost, OBJECTIVE, seed=s, window=args.window), args.marks) for s in range(args.seeds)])
        took = (time.perf_counter() - start) / (args.seeds * max(args.marks)) * 1000
        cells = [f"{mean:.4f} ± {deviation:.4f}" for mean, deviation in zip(table.mean(axis=0), table.std(axis=0))]
        print(f"| {name} | {' | '.join(cells)} | {took:.1f} |", flush=True)


if __name__ == "__main__":
    main()
