"""``nas fidelity``: how far a supernet's scores are to be trusted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from nas.cli.progress import plain
from nas.cli.results import RUN, resolve, run_at

if TYPE_CHECKING:
    from nas.config.experiment import Experiment
    from nas.results.fidelity import Fidelity
    from nas.rundir.directory import RunDir

console = plain()
NOTHING: list[str] = []


def fidelity(
    run: Annotated[Path, RUN],
    children: Annotated[int | None, typer.Option("--children", min=4, help="How many. [default: 12]")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=2, help="Trainings of each. [default: 2]")] = None,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one value; repeatable.")
    ] = NOTHING,
    trust: Annotated[
        list[str], typer.Option("--trust", metavar="MODULE", help="Code that a run made elsewhere may name.")
    ] = NOTHING,
) -> None:
    """Train some children alone, and tell how far the supernet's scores agree with that: whether a search here can
    find anything.

    Example: nas fidelity runs/bignas-digits --children 12 --seeds 2
    """
    from nas.cli.commands import open_pipeline, report_line

    given = {"children": children, "seeds": seeds}
    overrides = [*set_, *(f"fidelity.{key}={value}" for key, value in given.items() if value)]
    _check(resolve(str(run_at(run).path), None, overrides, trust)[0])
    with open_pipeline(str(run), None, overrides, trust, check=_trained) as pipeline:
        found = pipeline.fidelity()
        report_line(pipeline)
    if found is None:
        console.print(f"too few networks are whole yet; the same command goes on: nas fidelity {os.path.relpath(run)}")
        return
    many = f"{len(found.archs)} networks, each trained alone {found.alone.shape[1]} times"
    console.print(f"how far scores agree with {found.head.metric} of {many} (95 % intervals)")
    console.print(shown(found))
    console.print(found.verdict)


def _check(experiment: Experiment) -> None:
    from nas.results.fidelity import check_recipe

    check_recipe(experiment)


def _trained(experiment: Experiment, run: RunDir) -> None:
    from nas.results.choose import check_trained

    check_trained(experiment, run)


def shown(found: Fidelity) -> Table:
    """Who agrees with the trainings, and how far."""
    from nas.results.fidelity import told

    heads = (Column("score", no_wrap=True), Column("Kendall's tau", no_wrap=True))
    table = Table(*heads, f"correlation at equal {found.head.cost}", box=None)
    equal = {name: told(value) for name, value in zip(found.taus, found.at_equal_cost.values(), strict=True)}
    for (name, value), steps in zip(found.rows(), [*found.taus, None, None], strict=True):
        table.add_row(name, told(value), equal.get(steps, "") if steps is not None else "")
    return table
