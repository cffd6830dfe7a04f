"""``nas plan``: what a run would take, before it is begun."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from nas.cli.progress import Screen, clock, plain
from nas.cli.results import NOTHING, Set, Trust, begun

if TYPE_CHECKING:
    from nas.plan import Plan

console = plain()
MEGABYTE = 1e6


def planned(
    experiment: Annotated[
        str, typer.Argument(metavar="EXPERIMENT", help="A preset's name, a YAML file, or the directory of a run.")
    ],
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", metavar="DIR", help="Where the run would live. [default: runs/<name>]")
    ] = None,
    set_: Set = NOTHING,
    trust: Trust = NOTHING,
) -> None:
    """Try a run in small, in a directory that is thrown away: refuse what the run would refuse, and tell how long it
    would take on this machine, how much memory and disk. Takes a minute or two, longer with large data.

    Example: nas plan bignas-textures --set search.candidates=400
    """
    plan(experiment, run_dir, set_, trust)


def plan(experiment: str, run_dir: Path | None, set_: list[str], trust: list[str], mirror: str | None = None) -> None:
    """What `nas plan` does, and ``nas run --dry-run``, whose options the next command has."""
    given, run, _ = begun(experiment, run_dir, set_, trust)
    from nas.plan import plan as tried

    screen = Screen(console)
    try:
        show(tried(given, run, screen))
    finally:
        screen.stop()
    options = {"--run-dir": [str(run_dir)] if run_dir else [], "--set": set_, "--trust": trust}
    options["--mirror"] = [mirror] if mirror else []
    words = [word for name, values in options.items() for value in values for word in (name, value)]
    console.print(f"next: nas run {shlex.join([experiment, *words])}")


def show(found: Plan) -> None:
    """What a plan says, for people."""
    from nas.results.plots import human

    low, high = map(human, found.costs)
    networks = f"{found.networks:,}" if found.networks < 1e6 else f"{found.networks:.1e}"
    shape = " x ".join(map(str, found.inputs))
    sides = " to ".join(dict.fromkeys(map(str, found.sides)))
    console.print(
        f"space:   {networks} networks of {low} to {high} {found.title}; inputs {shape}, worked at {sides} px"
    )
    if found.advice:
        console.print(f"         {found.advice}")
    if found.within is not None:
        console.print(f"         {found.within:.1%} of random networks are within the constraints")
    console.print(times(found))
    memory = ", ".join(f"{stage}: {size / MEGABYTE:,.0f}" for stage, size in found.memory.items())
    if memory:
        console.print(f"memory:  MB of a training worker by ZeRO stage {memory}")
    console.print(f"disk:    {found.disk / MEGABYTE:,.0f} MB in the run directory")
    if found.workers < found.asked:
        console.print(
            f"tried with {found.workers} of {found.asked} workers, which is what this machine has room for, each with "
            "its share of the batch"
        )


def times(found: Plan) -> Table:
    """The work, what one of it takes, and all together."""
    table = Table(Column("", no_wrap=True), Column("", justify="right"), Column("each", justify="right"), box=None)
    table.add_column("in all", justify="right")
    for part in found.parts:
        table.add_row(part.name, f"{part.number:,} {part.unit}".strip(), f"{part.seconds:.3g} s", clock(part.together))
    table.add_row("start and end", "", "", clock(found.startup))
    table.add_row("together", "", "", clock(found.seconds))
    return table
