"""``nas latency``: what children take on this machine, as a table that a search reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Column, Table

from nas.cli.progress import Screen, plain
from nas.cli.results import NOTHING, Set, Trust, resolve

if TYPE_CHECKING:
    from nas.costs.latencies import Table as Latencies
    from nas.supernet import Supernet

console = plain()


def latency(
    experiment: Annotated[
        str, typer.Argument(metavar="RUN", help="The directory of a run, a preset's name, or a YAML file.")
    ],
    runtime: Annotated[
        Literal["torch", "onnxruntime"], typer.Option("--runtime", help="What runs the children.")
    ] = "onnxruntime",
    threads: Annotated[int, typer.Option("--threads", min=1, max=1024, help="Of the runtime.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, max=65536, help="Examples in a pass.")] = 1,
    children: Annotated[
        int, typer.Option("--children", min=12, max=100_000, help="To make the table from; 30 more judge it.")
    ] = 100,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The table.")] = Path("latency.json"),
    set_: Set = NOTHING,
    trust: Trust = NOTHING,
) -> None:
    """Measure what children take on this machine, and write a table from which a search predicts it. The network need
    not be trained.

    Example: nas latency bignas-digits --runtime onnxruntime --threads 1
    """
    given, _ = resolve(experiment, None, set_, trust)
    given.data.locate()
    if not out.parent.is_dir() or out.is_dir():
        raise ValueError(f"--out {out}: give a file in a folder that is there")
    from nas.build import load_task, make_supernet
    from nas.children.latency import Setup, measured_table
    from nas.rundir.atomic import write_atomic

    setup = Setup(runtime, threads, batch)
    setup.prepare()
    net = make_supernet(given, load_task(given))
    screen, stages = Screen(console), list[str]()

    def told(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages.append(stage)
            screen.stop()
            screen.begin(stage, f"{setup.runtime}, {setup.threads} threads, batch {setup.batch}")
        screen.advance(done, total, "", "children" if stage == "export" else "visits of children")

    space = f"{given.space.name} {given.space.size}".strip()
    try:
        table = measured_table(net, space, children, setup, told)
    finally:
        screen.stop()
    write_atomic(out, table.model_dump_json(indent=1))
    console.print(judged(table, net))
    unseen = table.unseen
    at = os.path.relpath(out)
    console.print(
        f"predicted against measured, {len(unseen.children)} children that the table was not made from: error "
        f"{unseen.median_error:.1%} in the median, {unseen.worst_error:.1%} at worst; rank correlation "
        f"{unseen.rank_correlation:.3f}\n"
        f"one child measured twice differs by {unseen.repeat_error:.1%} in the median: less cannot be told here\n"
        f"table: {at}, {table.machine}, {table.runtime}\n"
        f"next: nas run {experiment} --run-dir runs/{given.name}-latency --set 'search.costs=[{{name: latency, table: "
        f"{at}}}]' --set search.cost=latency"
    )


def judged(table: Latencies, net: Supernet) -> Table:
    """The children that had no say in the table, quickest first."""
    from nas.results.plots import human

    heads = ("MACs", "measured, ms", "predicted, ms", "error")
    shown = Table("child", *(Column(head, justify="right") for head in heads), box=None)
    for seen in sorted(table.unseen.children, key=lambda seen: seen.measured):
        arch = net.space.arch(seen.arch)
        times = [f"{ms:.4g}" for ms in (seen.measured, seen.predicted)]
        shown.add_row(arch.id, human(net.cost(arch)["macs"]), *times, f"{seen.predicted / seen.measured - 1:+.1%}")
    return shown
