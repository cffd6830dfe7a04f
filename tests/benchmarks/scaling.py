"""How what is done once grows: spaces, journals, reports, MLflow, workers and trials.

    python -m tests.benchmarks.scaling --parts spaces journals reports mlflow
    python -m tests.benchmarks.scaling --parts workers trials

The exponent is the slope of log seconds over log size, between neighbours and over the two largest: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from nas.cli.progress import Screen, plain
from nas.config import plugins
from nas.config.experiment import load_experiment
from nas.pipeline import Pipeline
from nas.plan import Stopwatch
from nas.results.history import History, read_history
from nas.results.report import write_report
from nas.results.tracking import Tracker, default_uri
from nas.rundir.directory import RunDir
from nas.search.constraints import Constraints, check_attainable
from nas.search.core import Exhausted, Objective, Search, resume
from nas.search.journal import Candidate, Journal, Record
from nas.space import COSTS, Arch, Choice, Measure, Space

Row = tuple[float, str, float]  # size, what, seconds
OBJECTIVE = Objective("accuracy", "macs")


class Cost:
    """The sum of an architecture's choices."""

    measures: dict[str, Measure] = {"macs": COSTS["macs"]}

    def __call__(self, arch: Arch) -> dict[str, float]:
        return {"macs": float(sum(arch.values()))}


def timed(work: Callable[..., object], *given: object) -> float:
    began = time.perf_counter()
    work(*given)
    return time.perf_counter() - began


def space_of(digits: int) -> Space:
    return Space([Choice(f"c{number}", tuple(range(1, 11))) for number in range(digits)])


def search_of(space: Space, algorithm: str = "evolution") -> Search:
    kind: type[Search] = plugins.find("search", algorithm)
    return kind(space, Cost(), OBJECTIVE, seed=0, window=32)  # type: ignore[arg-type]


def scored(candidate: Candidate) -> Record:
    values = np.array(list(candidate.arch.values()), dtype=float)
    metrics = {"accuracy": 50 + 40 * float(np.sin(values).mean()), "cross_entropy": float(1 / values.mean())}
    return Record(candidate.k, candidate.arch, metrics, Cost()(candidate.arch), 0.1, None, (), (0.5,) * 16)


def spaces(most: int) -> Iterator[Row]:
    """Of 10 to 10^30 networks: made, held against a budget, 200 candidates asked for and told."""
    for digits in (1, 3, 10, 30):
        space, budget = space_of(digits), Constraints({"macs": (None, 3.0 * digits)})
        yield 10.0**digits, "make", timed(space_of, digits)
        yield 10.0**digits, "budget", timed(check_attainable, space, Cost(), budget, set())
        yield 10.0**digits, "200 candidates", timed(asked, search_of(space), min(200, 10**digits))


def asked(search: Search, count: int) -> list[Record]:
    """So many candidates, each told as soon as it is asked for; fewer where the space has no more."""
    records: list[Record] = []
    for _ in range(count):
        try:
            candidate = search.ask()
        except Exhausted:
            break
        assert candidate is not None
        records.append(scored(candidate))
        search.tell(records[-1])
    return records


def journal_at(path: Path, count: int) -> Search:
    """A journal of random candidates, written at once: fsync after each would take most of the time."""
    space, random = space_of(12), search_of(space_of(12), "random")
    header = {"supernet": "0" * 64, "space": "scaling", **search_of(space).identity}
    with Journal(path, header) as journal:
        forms: list[dict[str, object]] = []
        for record in asked(random, count):
            forms += [{"proposed": record.k, "id": record.id, "arch": dict(record.arch)}, record.to_json()]
        journal._write("".join(json.dumps(form, separators=(",", ":")) + "\n" for form in forms).encode())
    return search_of(space)


def journals(most: int) -> Iterator[Row]:
    """Of 100 to 100,000 records: read, replayed by a search, followed as a history."""
    for count in sizes(100, most):
        with tempfile.TemporaryDirectory() as home:
            path = Path(home) / "journal.jsonl"
            search = journal_at(path, count)
            header = {"supernet": "0" * 64, "space": "scaling", **search.identity}
            yield count, "read", timed(Journal, path, header)
            with Journal(path, header) as journal:
                yield count, "replay", timed(resume, search, journal)
            yield count, "history", timed(History(path).update)


def run_at(home: Path, count: int) -> RunDir:
    """A run that has judged so many candidates and exported none."""
    run = RunDir(home / "run")
    for folder in (run.path, run.search, run.training_log.parent, run.children):
        folder.mkdir(parents=True)
    run.about.write_text('{"id": "scaling", "name": "scaling"}')
    run.experiment.write_text("name: scaling\n")
    journal_at(run.journal("0" * 64), count)
    return run


def reports(most: int) -> Iterator[Row]:
    """Of runs of 10 to 10,000 candidates."""
    for count in sizes(10, most):
        with tempfile.TemporaryDirectory() as home:
            run = run_at(Path(home), count)
            yield count, "history", timed(read_history, run)
            yield count, "report", timed(write_report, run)


def mlflow(most: int) -> Iterator[Row]:
    """The same, told to MLflow in a database beside the run."""
    for count in sizes(10, most):
        with tempfile.TemporaryDirectory() as home:
            run = run_at(Path(home), count)
            tracker = Tracker(run, default_uri(run), "scaling")
            tracker.start()
            began = time.perf_counter()
            missed = tracker.close(3600)
            assert not missed, f"{missed} not sent"
            yield count, "sync", time.perf_counter() - began


def workers(most: int) -> Iterator[Row]:
    """A step of the same batch on one and on two workers, of small networks and of larger ones."""
    for preset, epochs in (("bignas-textures", 2), ("bignas-fashion-mnist", 0.08)):
        for count in (1, 2):
            few = [f"train.workers={count}", f"recipe.epochs={epochs}", "recipe.warmup_epochs=0", "search.candidates=2"]
            marks = ran(few, preset).stages[0].marks
            (first, some), (last, all_) = marks[0], marks[-1]
            yield count, f"step of {preset}", (last - first) / (all_ - some)


def trials(most: int) -> Iterator[Row]:
    """A candidate with one, two and four trials at a time."""
    for count in (1, 2, 4):
        clock = ran([f"search.trials={count}", "recipe.epochs=1", "recipe.warmup_epochs=0", "search.candidates=200"])
        yield count, "candidate", clock.stages[1].each


def ran(settings: list[str], preset: str = "bignas-textures") -> Stopwatch:
    """Training and search."""
    clock = Stopwatch(Screen(plain()))
    with tempfile.TemporaryDirectory() as home:
        experiment = load_experiment(preset, settings)
        with Pipeline.open(experiment, Path(home) / "run", clock) as run:
            run.train()
            run.search()
    return clock


PARTS = {each.__name__: each for each in (spaces, journals, reports, mlflow, workers, trials)}


def sizes(least: int, most: int) -> list[int]:
    return [10**power for power in range(round(math.log10(least)), round(math.log10(most)) + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description="How what is done once grows.")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=["spaces", "journals", "reports"])
    parser.add_argument("--most", type=int, default=10_000)
    given = parser.parse_args()
    print("| part | what | size | seconds | exponent |\n" + "| --- " * 5 + "|")
    for name in given.parts:
        before: dict[str, tuple[float, float]] = {}
        for size, what, seconds in PARTS[name](given.most):
            slope = ""
            if old := before.get(what):
                slope = f"{math.log(seconds / old[1]) / math.log(size / old[0]):.2f}"
            before[what] = size, seconds
            print(f"| {name} | {what} | {size:,.0f} | {seconds:.4g} | {slope} |", flush=True)


if __name__ == "__main__":
    main()
