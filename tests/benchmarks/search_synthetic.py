"""How good the searchers are on a problem with known answers (see tests/synthetic.py): hypervolume over evaluations.

Run from the root of the repository, a quarter of a minute on one core:

    python -m tests.benchmarks.search_synthetic

Hypervolume below (1, 1.05) of error and relative cost, mean ± standard deviation over seeds 0-4, window 32:

| searcher | 100 | 250 | 500 | 1,000 | ms a candidate |
| --- | --- | --- | --- | --- | --- |
| random | 0.5849 ± 0.0102 | 0.5961 ± 0.0130 | 0.6069 ± 0.0102 | 0.6160 ± 0.0050 | 0.6 |
| evolution | 0.6634 ± 0.0026 | 0.6760 ± 0.0019 | 0.6827 ± 0.0023 | 0.6873 ± 0.0022 | 1.2 |
| without ends | 0.5825 ± 0.0188 | 0.6172 ± 0.0107 | 0.6483 ± 0.0042 | 0.6687 ± 0.0038 | 1.3 |

"without ends" is evolution that does not begin with the smallest and the largest network: most of the lead over random
search is theirs, since both lie on the true front here. What other libraries' searchers find when they are given both
ends stands in tests/benchmarks/search_peers.py. The true front lies near 0.70: pymoo with population 200 reaches 0.7007
in 50,000 evaluations.
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
