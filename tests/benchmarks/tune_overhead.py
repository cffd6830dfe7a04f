"""What Ray Tune and the search's own work cost beside the evaluations: wall time that is not evaluation.

    python -m tests.benchmarks.tune_overhead --candidates 100 1000 --milliseconds 10 100

Two trials, which sleep so long for each candidate; the start of Ray and of the actors is told apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from ray import tune

from nas.config import plugins
from nas.rundir.fence import Fence
from nas.search.journal import Journal, Record
from nas.space import Arch
from nas.workers.session import session
from nas.workers.trials import Asker, Scored, tuner_of
from tests.synthetic import OBJECTIVE, SPACE, cost

TRIALS = 2


class Sleeps(Scored):
    """An actor that takes so long for a candidate; it finds nothing of `tests` where it runs."""

    def setup(self, config: dict[str, Any], seconds: float) -> None:  # type: ignore[override]
        self.seconds = seconds
        self.reset_config(config)

    def _judge(self, k: int, arch: Arch, steps: int) -> dict[str, Any]:
        time.sleep(self.seconds)
        told = {"metrics": {"accuracy": float(len(arch))}, "parts": [], "error": None}
        return {"k": k, "seconds": self.seconds, **told}


def measure(algorithm: str, candidates: int, seconds: float) -> tuple[float, float, float]:
    """Seconds until the first record, from there to the last, and of that what is no evaluation, as a share."""
    search = plugins.find("search", algorithm)(SPACE, cost, OBJECTIVE)
    told: list[float] = []
    with tempfile.TemporaryDirectory() as folder, session():
        began = time.monotonic()
        with Journal(Path(folder, "journal.jsonl"), search.identity) as journal:

            def notify(_: Record) -> None:
                told.append(time.monotonic() - began)

            asker = Asker(search, journal, [], candidates, TRIALS, None, float("inf"), notify, Unfenced())
            sleeps = tune.with_resources(tune.with_parameters(Sleeps, seconds=seconds), {"cpu": 1})
            tuner_of(sleeps, asker, "overhead", Path(folder)).fit()
        lines = Path(folder, "journal.jsonl").read_text().splitlines()
        assert sum("k" in json.loads(line) for line in lines) == candidates
    wall = told[-1] - told[0]
    return told[0], wall, 1 - (candidates - 1) * seconds / TRIALS / wall


class Unfenced(Fence):
    """Nobody else writes here."""

    def __init__(self) -> None:
        pass

    def check(self) -> None:
        pass

    def stopping(self) -> bool:
        return False


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Wall time of a search that is not evaluation.")
    parser.add_argument("--candidates", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[10, 100])
    parser.add_argument("--search", default="evolution")
    args = parser.parse_args()
    print("| candidates | ms each | first record after, s | wall, s | not evaluation |\n" + "| --- " * 5 + "|")
    for milliseconds in args.milliseconds:
        for count in args.candidates:
            first, wall, share = measure(args.search, count, milliseconds / 1000)
            print(f"| {count:,} | {milliseconds:g} | {first:.1f} | {wall:.1f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
