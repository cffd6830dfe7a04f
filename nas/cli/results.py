"""What a run has come to: ``nas report``, ``nas pick``, and the tables that other commands end with."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from nas.cli import tables
from nas.cli.progress import plain
from nas.config.experiment import Experiment, load_experiment
from nas.rundir.directory import RunDir, check_free

console = plain()
RUN = typer.Argument(metavar="RUN", help="The directory of a run, for example runs/bignas-digits.")
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, for example train.workers=4; repeatable."),
]
Trust = Annotated[
    list[str],
    typer.Option("--trust", metavar="MODULE", help="Code that a run made elsewhere may name; repeatable, remembered."),
]
NOTHING: list[str] = []


def run_at(path: Path) -> RunDir:
    """The run in a directory.

    Raises:
        ValueError: it holds none.
    """
    if not (found := RunDir(path)).is_run():
        raise ValueError(f"{path} holds no run; give the directory of one, for example runs/bignas-digits")
    return found


def resolve(
    target: str, run_dir: Path | None, overrides: list[str], trusted: list[str] = NOTHING
) -> tuple[Experiment, Path]:
    """The experiment and the run directory that a command means."""
    if (found := RunDir(target)).is_run():
        experiment = found.load(overrides, trusted)
        found.trust(trusted)
        return experiment, run_dir or found.path
    experiment = load_experiment(target, overrides)
    return experiment, run_dir or Path("runs") / experiment.name


def begun(
    target: str, run_dir: Path | None, overrides: list[str], trusted: list[str]
) -> tuple[Experiment, Path, RunDir | None]:
    """What a command begins with, looked at as far as needs no torch: the experiment, the run's directory, and the run
    whose supernet it begins with, where one is given and another directory.

    Raises:
        OSError, ValueError: data or a table of costs is missing; the directory is another run's.
    """
    experiment, run = resolve(target, run_dir, overrides, trusted)
    console.print(f"{experiment.name} in {run}")
    experiment.data.locate()
    for cost in experiment.search.costs:
        cost.locate()
    check_free(experiment, RunDir(run.absolute()))
    given = RunDir(target)
    return experiment, run, given if given.is_run() and given.path.resolve() != run.resolve() else None


def report(run: Annotated[Path, RUN]) -> None:
    """Write RUN/report.html again and print the front.

    Example: nas report runs/bignas-digits
    """
    at = run_at(run)
    from nas.results.report import write_report

    path = write_report(at)
    show(at)
    console.print(f"report: {path}")


def pick(
    run: Annotated[Path, RUN],
    most: Annotated[
        list[str], typer.Option("--max", metavar="NAME=N", help="The most of a cost or metric, for example macs=100k.")
    ] = NOTHING,
    least: Annotated[
        list[str], typer.Option("--min", metavar="NAME=N", help="The least, for example accuracy=97; both repeatable.")
    ] = NOTHING,
    knee: Annotated[bool, typer.Option("--knee", help="Where the front bends, rather than its best end.")] = False,
) -> None:
    """Name the best child that a search has found under a budget.

    Example: nas pick runs/bignas-digits --max macs=100k --min accuracy=97
    """
    at = run_at(run)
    from nas.results.choose import budget, pick_of
    from nas.results.history import exported_from, read_history

    record = pick_of(at, budget(_pairs(most, "--max macs=100k"), _pairs(least, "--min accuracy=97")), knee)
    show(at, [record.id])
    where, history = os.path.relpath(at.path), read_history(at)
    if history and record.id in exported_from(at, history):
        console.print(f"it is in {os.path.relpath(at.child(record.id).path)}")
    else:
        console.print(f"next: nas export {where} --child {record.id}")


def _pairs(given: list[str], example: str) -> dict[str, str]:
    """``["macs=100k"]`` as ``{"macs": "100k"}``.

    Raises:
        ValueError: one is no such pair.
    """
    if wrong := [text for text in given if not all(text.partition("="))]:
        raise ValueError(f"{wrong[0]!r} is no bound; write for example {example}")
    return {name: value for name, _, value in (text.partition("=") for text in given)}


def show_front(run: RunDir) -> None:
    """The table of the front, within the constraints."""
    from nas.results.history import read_history

    history = read_history(run)
    show(run, [record.id for record in history.front()] if history else [])


def show(run: RunDir, ids: Collection[str] | None = None) -> None:
    """The table of some candidates; of the front and the exported children, where none are named."""
    from nas.results.history import front_table, read_history, shown_costs

    rows = front_table(run, ids or ())
    if rows := [row for row in rows if ids is None or row["id"] in ids]:
        console.print(tables.children(rows, shown_costs(read_history(run))))
        if any(row["interval"] is not None for row in rows):
            tie = "; = not told apart from the next cheaper one" if any(row["tied"] for row in rows) else ""
            console.print(f"± 95 % of what other examples would give{tie}")
