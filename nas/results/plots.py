"""The pictures of a report: SVG text drawn by matplotlib, to be put into a page.

Ink takes the colour of the page's text, so that pictures read well on light and on dark; text stays text, so it can be
searched.
"""

from __future__ import annotations

import importlib
import io
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from nas.results.fidelity import Fidelity
from nas.results.history import LEAST, History
from nas.rundir.log import Training
from nas.search.journal import Record
from nas.space import COSTS, Measure
from nas.statistics import half_width

INK = "#010203"  # stands for the page's text colour, exchanged in the finished SVG
GREY, BLUE, ORANGE, GREEN, RED, PURPLE = "#8a929c", "#3b82d6", "#e07b28", "#2f9e68", "#d64545", "#9467c9"
COLOURS = {"largest": ORANGE, "random": GREY, "smallest": BLUE}
OTHERS = (GREEN, PURPLE, "#b8860b", "#4aa8b5", "#c2569b")
PLACES = (  # of a label around its point: across, up, which end of it lies there
    *((-6, 10, "right"), (8, -10, "left"), (-9, 0, "right"), (9, 0, "left"), (0, 13, "center"), (0, -13, "center")),
    *((-6, 22, "right"), (8, -22, "left"), (-6, 34, "right"), (8, -34, "left")),
)
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


def search_picture(history: History, exported: Collection[str]) -> str:
    """The metric against the cost: all candidates, the front as steps, exported children by id, the constraints."""
    alive = _alive(history)
    tips = {"candidates": [_tip(history, r) for r in alive], "front": [_tip(history, r) for r in history.front()]}
    return svg(lambda figure: _draw_search(figure, history, exported), "search", 5.2, tips)


class Picture(Figure):
    """A figure that notebooks show by itself, without the state of pyplot."""

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        with matplotlib.rc_context(SETTINGS):
            self.savefig(image, format="png")
        return image.getvalue()


def search_figure(history: History, exported: Collection[str]) -> Picture:
    """The same as a figure of matplotlib.

    Raises:
        ValueError: there is no candidate to show.
    """
    if not _alive(history):
        raise ValueError(f"no candidate was judged in {history.path} yet: there is nothing to draw")
    with matplotlib.rc_context(SETTINGS):
        figure = Picture(figsize=(9, 5.2), layout="constrained")
        FigureCanvasAgg(figure)
        _draw_search(figure, history, exported)
    return figure


def _alive(history: History) -> list[Record]:
    cost = history.objective.cost
    judged = [record for _, record in sorted(history.records.items()) if not history.failed(record)]
    return [record for record in judged if record.cost[cost] > 0]


def _draw_search(figure: Figure, history: History, exported: Collection[str]) -> None:
    cost, alive, front = history.objective.cost, _alive(history), history.front()
    axes = figure.subplots()

    def mark(records: Sequence[Record], **look: Any) -> None:
        axes.scatter([r.cost[cost] for r in records], [_metric(history, r) for r in records], **look)

    faint = [0.45 if history.within(record) and history.final(record) else 0.15 for record in alive]
    image = {"rasterized": len(alive) > MANY}
    mark(alive, s=16, c=GREY, alpha=faint, linewidths=0, gid="candidates", label="candidates", **image)
    bounds = [bound for name, bound, _ in bounds_told(history) if name == cost]
    xs = [*(record.cost[cost] for record in alive), *bounds]
    if (range_ := max(xs) / min(xs)) > 10:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if range_ < 1000 else (1,)))
    if front:
        fx, fy = [r.cost[cost] for r in front], [_metric(history, r) for r in front]
        end = max(r.cost[cost] for r in alive if history.within(r))
        if not history.objective.further:  # a front of more than two figures is no line of two
            axes.step([*fx, end], [*fy, fy[-1]], where="post", color=BLUE, linewidth=1.6, label="front")
        label = {"label": "front"} if history.objective.further else {}
        widths = [0.0 if math.isnan(width := half_width(r.parts)) else width for r in front]
        axes.errorbar(fx, fy, widths, fmt="none", ecolor=BLUE, elinewidth=1, alpha=0.45)
        mark(front, s=26, c=BLUE, linewidths=0, zorder=3, gid="front", **label)
    out = [record for record in alive if record.id in exported]
    if out:
        look = {"facecolors": "none", "edgecolors": ORANGE, "linewidths": 1.8}
        mark(out, s=75, zorder=4, label="exported", gid="exported", **look)
    axes.margins(x=0.14)
    _draw_bounds(axes, history)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _round(human(value))))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(history.measure(cost).title)
    axes.set_ylabel(f"{history.objective.metric}, validation")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5)  # above, where no point lies
    _label(figure, axes, out, [(r.cost[cost], _metric(history, r)) for r in out], bounds)


def bounds_told(history: History) -> list[tuple[str, float, str]]:
    """Each constraint as cost, bound and words: ``("macs", 150000, "at most 150 k MACs")``."""
    return [
        (name, bound, f"at {side} {history.measure(name).told(human(bound))}")
        for name, window in history.constraints.bounds.items()
        for side, bound in zip(("least", "most"), window, strict=True)
        if bound is not None
    ]


def _draw_bounds(axes: Axes, history: History) -> None:
    """The constraints on what stands along the axes as lines. Those on others are named alone: candidates beyond them
    are fainter."""
    for name, bound, label in bounds_told(history):
        if name == history.objective.cost:
            axes.axvline(bound, color=RED, linestyle="--", linewidth=1.2, label=label, gid="bound")
        elif name == history.objective.metric:
            axes.axhline(bound, color=RED, linestyle="--", linewidth=1.2, label=label, gid="bound")
        else:
            axes.plot([], [], linestyle="none", label=label)


def _metric(history: History, record: Record) -> float:
    return history.metric(record) or 0.0


def _label(
    figure: Figure,
    axes: Axes,
    records: Sequence[Record],
    points: Sequence[tuple[float, float]],
    bounds: Sequence[float],
) -> None:
    """The ids of records beside their points, where they print over neither another nor a bound nor the edge; one for
    which there is no place goes without: its tip tells it."""
    figure.draw_without_rendering()  # settles where things lie
    taken = [axes.transData.transform(point) for point in points]
    boxes = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in taken]
    lines = [axes.transData.transform((bound, points[0][1]))[0] for bound in bounds] if points else []
    boxes += [Bbox.from_bounds(x - 1, axes.bbox.y0, 2, axes.bbox.height) for x in lines]
    for record, point in zip(records, points, strict=True):
        for dx, dy, ha in PLACES:
            text = axes.annotate(
                record.id, point, xytext=(dx, dy), textcoords="offset points", ha=ha, va="center", fontsize=8.5
            )
            box = text.get_window_extent()
            if axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) and not box.count_overlaps(boxes):
                boxes.append(box)
                break
            text.remove()


def _tip(history: History, record: Record) -> str:
    what = history.objective
    costs = ", ".join(history.measure(name).told(human(value)) for name, value in record.cost.items())
    return f"{record.id} (candidate {record.k}): {what.metric} {_metric(history, record):.4g}, {costs}"


def foreseen(history: History) -> tuple[list[float], list[float]]:
    """What a predictor guessed of candidates, and the scores that they then had."""
    known = {k: metric for k, record in history.records.items() if (metric := history.metric(record)) is not None}
    ks = [k for k in history.expected if k in known and history.final(history.records[k])]
    return [history.expected[k] for k in ks], [known[k] for k in ks]


def foreseen_picture(history: History) -> str:
    """The predictor's guesses against the scores."""
    guessed, scored = foreseen(history)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends = [min(*guessed, *scored), max(*guessed, *scored)]
        axes.plot(ends, ends, color=GREY, linewidth=1)
        axes.scatter(guessed, scored, s=16, c=BLUE, alpha=0.6, linewidths=0)
        axes.set_xlabel(f"{history.objective.metric} as the predictor expected")
        axes.set_ylabel("as scored, validation")

    return svg(draw, "foreseen", 3.2)


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

    return svg(draw, "progress", 3.2)


def fidelity_picture(found: Fidelity) -> str:
    """The supernet's scores against the mean of the trainings, whose range a line shows; a panel for each rung."""
    head, sign = found.head, 1 if found.head.better == "higher" else -1
    alone, decades = sign * found.alone, np.log10(np.maximum(found.cost, LEAST))

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(found.scored), sharey=True, squeeze=False)[0]
        for axes, (steps, scores) in zip(grid, found.scored.items(), strict=True):
            axes.vlines(sign * scores, alone.min(axis=1), alone.max(axis=1), color=BLUE, alpha=0.45, linewidth=1)
            dots = axes.scatter(sign * scores, alone.mean(axis=1), c=decades, cmap="viridis", s=26)
            after = f" after {steps} steps alone" if steps else ", weights inherited"
            axes.set_xlabel(f"{head.metric} by the supernet{after}")
        grid[0].set_ylabel(f"{head.metric}, trained alone")
        bar = figure.colorbar(dots, ax=grid, ticks=decades[[0, -1]])
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _round(human(10**value))))
        bar.set_label(COSTS.get(head.cost, Measure(head.cost)).title)

    return svg(draw, "fidelity", 3.6)


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
        steps, last = [line.step for line in training.steps], -math.inf
        for event in sorted(training.events, key=lambda event: event.step):
            if event.step - last >= (max(steps) - min(steps)) / 10:  # else it would print over the one before
                grid[0].annotate(event.event, (last := event.step, 1), color=RED, fontsize=8.5, **above)
        grid[-1].set_xlabel("step")

    return svg(draw, "training", 6.4 if training.panels else 4.2)


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


def svg(
    draw: Callable[[Figure], None], name: str, height: float, tips: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Draw, and make of it an element that can stand in a page beside others.

    Args:
        draw: fills the figure.
        name: unique on the page.
        height: inches; the width is always 9.
        tips: for groups by gid, the text of each of its marks, shown where the pointer rests.
    """
    if "IPython" in sys.modules:  # matplotlib asks it for its version, and MLflow's thread may just be importing it
        importlib.import_module("IPython")  # until it is whole
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):  # no pyplot, so no state outside
        figure = Figure(figsize=(9, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        draw(figure)
        drawn = io.StringIO()
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        canvas.print_svg(drawn, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = drawn.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'(<svg [^>]*?) ?width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) ?height="[^"]*"', rf'\1 role="img" aria-label="{name}"', text, count=1)
    for group, texts in (tips or {}).items():
        text = _tipped(text, group, texts)
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text)  # ids are one namespace for the whole page


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
