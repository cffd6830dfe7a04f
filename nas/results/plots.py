"""The pictures of a report: SVG text drawn by matplotlib, to be put into a page.

Ink takes the colour of the page's text, so that pictures read well on light and on dark; text stays text, so it can be
searched.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from nas.results.history import History
from nas.rundir.log import Training
from nas.search.journal import Record

INK = "#010203"  # stands for the page's text colour, exchanged in the finished SVG
GREY, BLUE, ORANGE, GREEN, RED, PURPLE = "#8a929c", "#3b82d6", "#e07b28", "#2f9e68", "#d64545", "#9467c9"
COLOURS = {"largest": ORANGE, "random": GREY, "smallest": BLUE}
OTHERS = (GREEN, PURPLE, "#b8860b", "#4aa8b5", "#c2569b")
MANY = 2000  # points from which a cloud is drawn as an image
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.13,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


def human(number: float | None) -> str:
    """A count for people, three digits: ``1.23 M``."""
    if number is None:
        return "–"
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            value = number / size
            return f"{value:.{max(0, 2 - int(math.log10(abs(value) * 1.0005)))}f} {unit}"
    return f"{number:.3g}"


def _round(number: str) -> str:
    """``1 M`` for ``1.00 M``: on an axis the digits say nothing."""
    return re.sub(r"\.0+(?= |$)|(\.\d*?)0+(?= |$)", r"\1", number)


def search_picture(history: History, exported: Mapping[str, Any]) -> str:
    """The metric against the cost: all candidates, the front as steps, exported children by id."""
    cost = history.objective.cost
    alive = [
        record for _, record in sorted(history.records.items()) if not history.failed(record) and record.cost[cost] > 0
    ]
    front = history.front()

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        xs, ys = [r.cost[cost] for r in alive], [_metric(history, r) for r in alive]
        axes.scatter(
            xs,
            ys,
            s=16,
            c=GREY,
            alpha=0.45,
            linewidths=0,
            gid="candidates",
            label="candidates",
            rasterized=len(alive) > MANY,
        )
        if max(xs) > 10 * min(xs):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        fx, fy = [r.cost[cost] for r in front], [_metric(history, r) for r in front]
        axes.step([*fx, max(xs)], [*fy, fy[-1]], where="post", color=BLUE, linewidth=1.6, label="front")
        axes.scatter(fx, fy, s=26, c=BLUE, linewidths=0, zorder=3, gid="front")
        out = [record for record in alive if record.id in exported]
        if out:
            ox, oy = [r.cost[cost] for r in out], [_metric(history, r) for r in out]
            axes.scatter(
                ox,
                oy,
                s=75,
                facecolors="none",
                edgecolors=ORANGE,
                linewidths=1.8,
                zorder=4,
                label="exported",
                gid="exported",
            )
            _label(axes, out, ox, oy)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _round(human(value))))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(history.measure(cost).title)
        axes.set_ylabel(f"{history.objective.metric}, validation")
        axes.margins(x=0.14)
        axes.legend(loc="lower right" if history.objective.better == "higher" else "upper right")

    return _svg(
        draw,
        "search",
        5.2,
        {"candidates": [_tip(history, r) for r in alive], "front": [_tip(history, r) for r in front]},
    )


def _metric(history: History, record: Record) -> float:
    return history.metric(record) or 0.0


def _label(axes: Axes, records: Sequence[Record], xs: Sequence[float], ys: Sequence[float]) -> None:
    for record, x, y in zip(records, xs, ys, strict=True):
        axes.annotate(record.id, (x, y), xytext=(-6, 7), textcoords="offset points", ha="right", fontsize=8.5)


def _tip(history: History, record: Record) -> str:
    what = history.objective
    costs = ", ".join(history.measure(name).told(human(value)) for name, value in record.cost.items())
    return f"{record.id} (candidate {record.k}): {what.metric} {_metric(history, record):.4g}, {costs}"


def progress_picture(history: History) -> str:
    """The best metric and the hypervolume over candidates."""
    ks = [point.k for point in history.progress]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.step(ks, [p.best for p in history.progress], where="post", color=BLUE)
        left.set_ylabel(f"best {history.objective.metric}, validation")
        right.step(ks, [p.hypervolume for p in history.progress], where="post", color=GREEN)
        right.set_ylabel("hypervolume")
        for axes in (left, right):
            axes.set_xlabel("candidate")

    return _svg(draw, "progress", 3.2)


def training_picture(training: Training) -> str:
    """Losses, the panel's metric by child, and the learning rate over steps; rollbacks as dashed lines."""
    rows = [(_losses, 2.0), *([(_panel, 2.0)] if training.panels else []), (_rate, 0.8)]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=[height for _, height in rows])[
            :, 0
        ]
        for (fill, _), axes in zip(rows, grid, strict=True):
            fill(axes, training)
            for event in training.events:
                axes.axvline(event.step, color=RED, linestyle="--", linewidth=1, alpha=0.8)
        above = {"xycoords": grid[0].get_xaxis_transform(), "ha": "center", "va": "bottom"}
        for event in training.events:
            grid[0].annotate(event.event, (event.step, 1), color=RED, fontsize=8.5, **above)
        grid[-1].set_xlabel("step")

    return _svg(draw, "training", 6.4 if training.panels else 4.2)


def _losses(axes: Axes, training: Training) -> None:
    for i, name in enumerate(_ordered(name for line in training.steps for name in line.loss)):
        points = [(line.step, line.loss[name]) for line in training.steps if name in line.loss]
        axes.plot(*zip(*points, strict=True), color=_colour(name, i), linewidth=1.2, label=name)
    axes.set_ylabel("loss")
    _legend(axes)


def _panel(axes: Axes, training: Training) -> None:
    metric = next((name for line in training.panels for figures in line.panel.values() for name in figures), "")
    for i, name in enumerate(_ordered(name for line in training.panels for name in line.panel)):
        points = [
            (line.step, line.panel[name][metric]) for line in training.panels if metric in line.panel.get(name, {})
        ]
        if points:
            axes.plot(
                *zip(*points, strict=True), color=_colour(name, i), linewidth=1.2, marker="o", markersize=3, label=name
            )
    axes.set_ylabel(f"{metric}, validation")
    _legend(axes)


def _rate(axes: Axes, training: Training) -> None:
    axes.plot([line.step for line in training.steps], [line.lr for line in training.steps], color=GREY, linewidth=1.2)
    axes.set_ylabel("learning rate")


def _ordered(names: Iterable[str]) -> list[str]:
    """Each name once; the largest network first and the smallest last, as their curves lie."""
    return sorted(set(names), key=lambda name: ({"largest": 0, "smallest": 2}.get(name, 1), name))


def _colour(name: str, i: int) -> str:
    return COLOURS.get(name, OTHERS[i % len(OTHERS)])


def _legend(axes: Axes) -> None:
    if axes.lines:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _svg(
    draw: Callable[[Figure], None], name: str, height: float, tips: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Draw, and make of it an element that can stand in a page beside others.

    Args:
        draw: fills the figure.
        name: unique on the page.
        height: inches; the width is always 9.
        tips: for groups by gid, the text of each of its marks, shown where the pointer rests.
    """
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):  # no pyplot, so no state outside
        figure = Figure(figsize=(9, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        draw(figure)
        text = io.StringIO()
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        canvas.print_svg(text, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(<svg [^>]*?) ?width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) ?height="[^"]*"', rf'\1 role="img" aria-label="{name}"', svg, count=1)
    for group, texts in (tips or {}).items():
        svg = _tipped(svg, group, texts)
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)  # ids are one namespace for the whole page


def _tipped(svg: str, group: str, texts: Sequence[str]) -> str:
    """`svg` with a ``<title>`` in each mark of one group; unchanged where the group is drawn otherwise (as an
    image)."""
    begin = svg.find(f'<g id="{group}">')
    end = begin + _closing(svg[begin:]) if begin >= 0 else -1
    marks = re.split(r"(<use [^>]*)/>", svg[begin:end]) if begin >= 0 else []
    if len(marks) // 2 != len(texts):
        return svg
    for i, text in enumerate(texts):
        marks[2 * i + 1] += f"><title>{escape(text)}</title></use>"
    return svg[:begin] + "".join(marks) + svg[end:]


def _closing(text: str) -> int:
    """Where the element that `text` begins with ends."""
    depth = 0
    for tag in re.finditer(r"<(/?)g\b[^>]*>", text):
        depth += -1 if tag[1] else 1
        if depth == 0:
            return tag.end()
    return len(text)
