"""What it takes to ask for a candidate, late in a long search: no evaluation, one process.

python -m tests.benchmarks.asking
python -m tests.benchmarks.asking --searches guided --candidates 2000
"""

from __future__ import annotations

import argparse
import time
from collections import deque

from nas.config import plugins
from nas.search.core import Search
from nas.search.journal import Candidate
from tests.synthetic import OBJECTIVE, SPACE, cost, evaluate

LAST = 1000  # candidates of which the time is told


def milliseconds(search: Search, count: int) -> tuple[float, float]:
    """Of one candidate on average, asked for and told: of the first ones, and of the last ones."""
    waiting: deque[Candidate] = deque()
    began, marks = time.perf_counter(), []
    while search.next_k < count:
        candidate = search.ask()
        if candidate is None:
            search.tell(evaluate(waiting.popleft()))
        else:
            waiting.append(candidate)
            if search.next_k in (LAST, count - LAST, count):
                marks.append(time.perf_counter() - began)
    return 1000 * marks[0] / LAST, 1000 * (marks[-1] - marks[-2]) / LAST


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Milliseconds to ask for a candidate.")
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--searches", nargs="+", default=[n for n in plugins.built_in("search") if n != "guided"])
    args = parser.parse_args()
    print(f"| search | the first {LAST:,}, ms | the last {LAST:,} of {args.candidates:,}, ms |\n| --- | --- | --- |")
    for name in args.searches:
        kind: type[Search] = plugins.find("search", name)
        first, last = milliseconds(kind(SPACE, cost, OBJECTIVE), args.candidates)
        print(f"| {name} | {first:.2f} | {last:.2f} |", flush=True)


if __name__ == "__main__":
    main()
