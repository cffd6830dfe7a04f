"""What each search finds among children that were all judged once (tests/benchmarks/tables.py): hypervolume over that
of the true front, and after how many evaluations it holds the whole of it.

    python -m tests.benchmarks.search_tables
"""

from __future__ import annotations

import argparse
import warnings
from collections import deque
from pathlib import Path

import numpy as np

from nas.config import plugins
from nas.search.core import Exhausted, Search
from nas.search.journal import Candidate
from nas.search.pareto import hypervolume
from nas.space import Arch
from tests.benchmarks.tables import Table

TABLES = Path(__file__).parent.parent / "golden" / "tables"
REFERENCE = (1.1, 1.1)


def proposals(search: Search, table: Table, count: int) -> list[Arch]:
    """The first candidates of a search, all of its window in flight."""
    waiting: deque[Candidate] = deque()
    found: list[Arch] = []
    while len(found) < count:
        try:
            candidate = search.ask()
        except Exhausted:
            break
        if candidate is None:
            search.tell(table.evaluate(waiting.popleft()))
        else:
            waiting.append(candidate)
            found.append(candidate.arch)
    return found


def whole(found: list[Arch], table: Table) -> int:
    """After how many evaluations every point of the true front was there."""
    wanted = {tuple(point) for point in table.scaled(list(table.front)).tolist()}
    for count, point in enumerate(map(tuple, table.scaled(found).tolist()), start=1):
        wanted.discard(point)
        if not wanted:
            return count
    return len(found) + 1


def main() -> None:
    """Print a table for each."""
    parser = argparse.ArgumentParser(description="Searches over tables of judged children.")
    parser.add_argument("--tables", type=Path, nargs="+", default=sorted(TABLES.glob("*.json")))
    parser.add_argument("--searches", nargs="+", default=plugins.built_in("search"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--marks", type=int, nargs="+", default=[50, 100, 150, 250])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for path in args.tables:
        table = Table.read(path)
        best = hypervolume(table.scaled(list(table.front)), REFERENCE)
        print(f"\n{path.stem}: {len(table.figures):,} children, {len(table.front)} on the front\n")
        print("| search | " + " | ".join(map(str, args.marks)) + " | whole front after |")
        print("| --- " * (len(args.marks) + 2) + "|")
        for name in args.searches:
            kind: type[Search] = plugins.find("search", name)
            runs = [
                proposals(
                    kind(table.space, table.cost, table.objective, seed=seed, window=args.window),
                    table,
                    len(table.figures),
                )
                if name != "guided"
                else proposals(
                    kind(table.space, table.cost, table.objective, seed=seed, window=args.window),
                    table,
                    max(args.marks),
                )
                for seed in range(args.seeds)
            ]
            shares = np.array(
                [[hypervolume(table.scaled(run[:mark]), REFERENCE) / best for mark in args.marks] for run in runs]
            )
            cells = [f"{mean:.4f} ± {spread:.4f}" for mean, spread in zip(shares.mean(0), shares.std(0), strict=True)]
            ends = [whole(run, table) for run in runs]
            print(f"| {name} | {' | '.join(cells)} | {min(ends)} to {max(ends)} |", flush=True)


if __name__ == "__main__":
    main()
