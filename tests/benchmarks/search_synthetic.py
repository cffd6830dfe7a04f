"""How good the searchers are on a problem with known answers (see tests/synthetic.py): hypervolume over evaluations.

Run from the root of the repository:

    python -m tests.benchmarks.search_synthetic --seeds 10

Hypervolume below (1, 1.05) of error and relative cost, mean ± standard deviation over seeds 0-9, window 32, beside
other processes:

| searcher | 100 | 250 | 500 | 1,000 | ms a candidate |
| --- | --- | --- | --- | --- | --- |
| alphanet | 0.6462 ± 0.0039 | 0.6604 ± 0.0035 | 0.6703 ± 0.0019 | 0.6792 ± 0.0017 | 1.4 |
| coarse_to_fine | 0.6847 ± 0.0010 | 0.6876 ± 0.0008 | 0.6895 ± 0.0008 | 0.6914 ± 0.0006 | 0.8 |
| evolution | 0.6627 ± 0.0022 | 0.6748 ± 0.0022 | 0.6825 ± 0.0022 | 0.6876 ± 0.0017 | 2.0 |
| fittest | 0.5832 ± 0.0132 | 0.5965 ± 0.0112 | 0.6025 ± 0.0121 | 0.6056 ± 0.0125 | 1.0 |
| guided | 0.6892 ± 0.0010 | 0.6972 ± 0.0005 | 0.7001 ± 0.0002 | 0.7012 ± 0.0000 | 148.3 |
| nsga2 | 0.6550 ± 0.0055 | 0.6735 ± 0.0035 | 0.6815 ± 0.0027 | 0.6873 ± 0.0015 | 1.1 |
| random | 0.5862 ± 0.0127 | 0.5969 ± 0.0126 | 0.6071 ± 0.0076 | 0.6147 ± 0.0044 | 0.6 |
| regularized | 0.6498 ± 0.0055 | 0.6594 ± 0.0033 | 0.6616 ± 0.0029 | 0.6631 ± 0.0027 | 0.9 |

All but random and fittest begin with the smallest and the largest network, alphanet with the smallest. What other
libraries' searchers find when they are given both ends stands in tests/benchmarks/search_peers.py. The true front lies
near 0.70: pymoo with population 200 reaches 0.7007 in 50,000 evaluations, guided 0.7012 in 1,000.
"""

from __future__ import annotations

import argparse
import time
from collections import deque

import numpy as np

from nas.config import plugins
from nas.search.core import Search
from nas.search.journal import Candidate
from nas.search.pareto import hypervolume
from tests.synthetic import OBJECTIVE, REFERENCE, SPACE, cost, evaluate, objectives


def volumes(search: Search, marks: list[int]) -> list[float]:
    """The hypervolume of all candidates evaluated so far at each number of evaluations in `marks`, with all of W in
    flight."""
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
    parser.add_argument(
        "--marks", type=int, nargs="+", default=[100, 250, 500, 1000], help="numbers of evaluations to report"
    )
    parser.add_argument("--searches", nargs="+", default=plugins.built_in("search"), help="which")
    args = parser.parse_args()
    searches: dict[str, type[Search]] = {name: plugins.find("search", name) for name in args.searches}
    print("| searcher | " + " | ".join(f"{mark:,}" for mark in args.marks) + " | ms a candidate |")
    print("| --- " * (len(args.marks) + 2) + "|")
    for name, kind in searches.items():
        start = time.perf_counter()
        table = np.array(
            [volumes(kind(SPACE, cost, OBJECTIVE, seed=s, window=args.window), args.marks) for s in range(args.seeds)]
        )
        took = (time.perf_counter() - start) / (args.seeds * max(args.marks)) * 1000
        cells = [
            f"{mean:.4f} ± {deviation:.4f}"
            for mean, deviation in zip(table.mean(axis=0), table.std(axis=0), strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} | {took:.1f} |", flush=True)


if __name__ == "__main__":
    main()
