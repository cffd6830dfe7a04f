"""What each search finds in tables of judged children (tests/benchmarks/tables.py). In one of a whole space: its
hypervolume over that of the true front, and after how many evaluations it holds all of it. In one that has a part of
its space: the surrogate's hypervolume, each axis from 0 to 1 over the table, the cost's a logarithm.

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
    parser.add_argument("--tables", type=Path, nargs="+", default=sorted(TABLES.glob("*.json*")))
    parser.add_argument("--searches", nargs="+", default=plugins.built_in("search"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--marks", type=int, nargs="+", default=[50, 100, 150, 250])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for path in args.tables:
        table = Table.read(path)
        best = headline(path, table, [*map(str, args.marks), *(["whole front after"] if table.complete else [])])
        for name in args.searches:
            kind: type[Search] = plugins.find("search", name)
            most = len(table.figures) if table.complete and name != "guided" else max(args.marks)
            runs = [
                proposals(kind(table.space, table.cost, table.objective, seed=seed, window=args.window), table, most)
                for seed in range(args.seeds)
            ]
            shares = np.array(
                [[hypervolume(table.scaled(run[:mark]), REFERENCE) / best for mark in args.marks] for run in runs]
            )
            ends = [whole(run, table) for run in runs] if table.complete else []
            print(row(name, shares) + (f" {min(ends)} to {max(ends)} |" if ends else ""), flush=True)


def headline(path: Path, table: Table, heads: list[str]) -> float:
    """What stands above a table's rows; returns the hypervolume that theirs are told in parts of."""
    told = f"{len(table.front)} on the front" if table.complete else f"tau of the surrogate {table.tau:.3f}"
    print(f"\n{path.name.partition('.')[0]}: {len(table.figures):,} children, {told}\n")
    print("| search | " + " | ".join(heads) + " |\n" + "| --- " * (len(heads) + 1) + "|")
    return hypervolume(table.scaled(list(table.front)), REFERENCE) if table.complete else 1.0


def row(name: str, shares: np.ndarray, *before: str) -> str:
    """Mean and standard deviation of each column, and what stands before them."""
    cells = [f"{mean:.4f} ± {spread:.4f}" for mean, spread in zip(shares.mean(0), shares.std(0), strict=True)]
    return f"| {' | '.join((name, *before, *cells))} |"


if __name__ == "__main__":
    main()
