"""A search whose command gets a `kill -9` at random moments, on one, two and four trials: whether journal, front and
MLflow are those of a search that was left alone.

    python -m tests.benchmarks.search_kills --kills 20
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from nas.rundir.directory import RunDir
from nas.search.pareto import hypervolume
from tests.driving import check_tracked, journal, records, sets, start

PRESET, TRAINING = "bignas-digits", ["recipe.epochs=2", "recipe.warmup_epochs=0.2"]
ROOM = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 4}'}  # so that four trials run side by side wherever they run
PATIENCE_S = 900.0  # for a command, on a busy machine


def settings(algorithm: str, candidates: int, trials: int) -> list[str]:
    return [f"search.algorithm={algorithm}", f"search.candidates={candidates}", f"search.trials={trials}"]


def told(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """Proposals and records in the order of k, without the seconds that they took, and the front's hypervolume."""
    proposed = sorted((line for line in journal(run) if "proposed" in line), key=lambda line: line["proposed"])
    found = [{**line, "seconds": 0} for _, line in sorted(records(run).items())]
    points = [(100 - line["metrics"]["accuracy"], line["cost"]["macs"] / 1e6) for line in found]
    return proposed, found, hypervolume(points, (100.0, 1.0))


def so_far(run: Path) -> int:
    """Records that are whole; none before there is a journal."""
    journals = RunDir(run).journals()
    return journals[-1].read_text().count('\n{"k":') if journals else 0


def to_the_end(words: list[str], home: Path) -> None:
    process = start(*words, cwd=home, log=home / "said.txt", **ROOM)
    assert process.wait(PATIENCE_S) == 0, (home / "said.txt").read_text()


def killed(words: list[str], home: Path, run: Path, at: int, later: float) -> int:
    """Give the command, and kill it once there are `at` records and some seconds have passed. Returns how many there
    were."""
    process, deadline = start(*words, cwd=home, log=home / "said.txt", **ROOM), time.monotonic() + PATIENCE_S
    while so_far(run) < at and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(later)
    process.kill()
    process.wait()
    return so_far(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="over all numbers of trials")
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--algorithm", default="guided")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, default=Path("build/kills"))
    given = parser.parse_args()
    shutil.rmtree(given.home, ignore_errors=True)
    home, rng, wanted = given.home.absolute(), np.random.default_rng(given.seed), None
    home.mkdir(parents=True)
    to_the_end(["train", PRESET, "--run-dir", "trained", *sets(TRAINING)], home)
    print("| trials | killed at | journal | hypervolume |\n" + "| --- " * 4 + "|")
    shares = np.diff(np.linspace(0, given.kills, len(given.trials) + 1).round().astype(int)).tolist()
    for trials, kills in ((2, 0), *zip(given.trials, shares, strict=True)):
        run = home / f"searched-{trials}-{kills}"
        words = ["search", "trained", "--run-dir", str(run), *sets(settings(given.algorithm, given.candidates, trials))]
        marks: list[int] = []
        for left in range(kills, 0, -1):
            have = so_far(run)
            at = have + int(rng.integers(0, 2 * (given.candidates - have) // (left + 1) + 1))
            marks.append(killed(words, home, run, min(at, given.candidates - 1), float(rng.uniform(0, 0.5))))
        to_the_end(words, home)
        check_tracked(run, given.candidates)
        found = told(run)
        wanted = wanted or found
        print(
            f"| {trials} | {', '.join(map(str, marks)) or 'not'} | {'equal' if found == wanted else 'NOT EQUAL'} | "
            f"{found[2]:.6f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
