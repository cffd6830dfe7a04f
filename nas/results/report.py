"""A run as one page, ``RUN/report.html``: pictures, a table, what was run. It needs no other file and no network."""

from __future__ import annotations

import base64
import math
import platform
from collections.abc import Iterator
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nas.results.fidelity import Fidelity, read_fidelity, told
from nas.results.history import (
    FEW,
    History,
    agreements,
    exported_from,
    front_table,
    metric_of,
    read_children,
    read_history,
    read_json,
    read_minutes,
    read_pictures,
    shown_costs,
)
from nas.results.plots import (
    MANY,
    bounds_told,
    fidelity_picture,
    foreseen,
    foreseen_picture,
    human,
    progress_picture,
    search_picture,
    training_picture,
)
from nas.rundir.atomic import write_atomic
from nas.rundir.directory import RunDir
from nas.rundir.log import Training, read_training
from nas.search.journal import Record
from nas.statistics import tau

SHOWN = ("raynas", "torch", "deepspeed", "ray", "mlflow", "numpy")
STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1d2430; --quiet: #667080; --line: #dde1e7; --panel: #f6f7f9;
  --link: #1f66c1; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171c; --text: #e3e6eb; --quiet: #98a1ae; --line: #2e343d; --panel: #1b1f26; --link: #7ab0f2; } }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem;
  margin: 2.6rem 0 .3rem; }
p { margin: .4rem 0; } .lead { font-size: 1.08rem; } .quiet { color: var(--quiet); font-size: .92rem; }
a { color: var(--link); }
svg { display: block; width: 100%; height: auto; margin-top: .6rem; }
svg text { font-family: system-ui, sans-serif !important; }
.wide { overflow-x: auto; margin-top: .6rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .38rem .8rem .38rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { color: var(--quiet); font-weight: 500; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
tr.off td { color: var(--quiet); }
.row { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0 1.6rem; } summary { cursor: pointer; }
figure { margin: 0; flex: 1 1 12rem; max-width: 18rem; } figure img { width: 100%; display: block;
  border-radius: 4px; }
img.zoom { image-rendering: pixelated; aspect-ratio: 1; } figcaption { color: var(--quiet); font-size: .85rem;
  margin-top: .25rem; }
figcaption b { color: var(--text); font-weight: 500; }
code, pre { font-family: ui-monospace, monospace; font-size: .88rem; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .9rem 1rem;
  overflow-x: auto; }
"""


def write_report(run: RunDir) -> Path:
    """Write the page, or write it anew. What the run does not have yet is left out, and the page says so.

    Returns:
        The file's path.
    """
    about, history, training = read_json(run.about), read_history(run), read_training(run.training_log)
    title = str(about.get("name") or run.path.name)
    body = [f"<h1>{escape(title)}</h1>", *_summary(run, history, training), *_search(run, history)]
    body += [*_training(training), *_table(run, history), *_pictures(run), *_what_ran(run, about, history)]
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{view}<title>{escape(title)}</title>'
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>{head}\n<style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
    write_atomic(run.report, page)
    return run.report


def _summary(run: RunDir, history: History | None, training: Training) -> Iterator[str]:
    parts = []
    trained = _seconds(training)
    if training.steps:
        last = training.steps[-1]
        bound = _bound(training, read_minutes(run)) if last.step < last.total else ""
        parts.append(
            f"The supernet was trained for {last.step:,} of {last.total:,} steps in {_duration(trained)}{bound}."
        )
    if history and history.records:
        failed = sum(history.failed(record) for record in history.records.values())
        spent = sum(record.seconds for record in history.records.values())
        early = sum(record.seen is not None for record in history.records.values())
        lost = f", {failed:,} of which failed" if failed else ""
        lost += f", {early:,} of which were hopeless before all validation examples were scored" if early else ""
        parts.append(
            f"The search judged {len(history.records):,} candidates{lost}, taking {_duration(spent)} of evaluation in "
            "all."
        )
        within = _within(history)
        if front := history.front():
            parts.append(f"{len(front):,} {'stands' if len(front) == 1 else 'stand'} on the front{within}.")
            best = min(front, key=lambda record: history.point(record)[0])  # of three objectives not always the dearest
            parts.append(
                f"The best child, {_child(history, best)}. The smallest on the front, {_child(history, front[0])}."
            )
        elif within:
            parts.append(f"There is no front{within}.")
    children = read_children(run)
    if children:
        parts.append(f"{len(children)} {'child was' if len(children) == 1 else 'children were'} exported.")
    yield f'<p class="lead">{escape(" ".join(parts)) or "Nothing has been written by this run yet."}</p>'
    if history and history.records:
        name = escape(history.objective.metric)
        yield (
            f'<p class="quiet">The search looked at {name} on the <b>validation</b> set alone. The <b>test</b> set was '
            "seen only by exported children, after the search, and chose nothing.</p>"
        )


def _bound(training: Training, minutes: float | None) -> str:
    """The time that a training was given and whether it used it up, as the end of what is said of it."""
    if not minutes:
        return ""
    # steps are written once a second, so often not the last one; the panel that is judged after it always is
    reached = max([_seconds(training), *(line.seconds for line in training.panels)])
    return f", {'to the end ' if reached >= 60 * minutes else ''}of the {minutes:g} min that it was given"


def _within(history: History | None) -> str:
    """The constraints, as the end of what is said of the front; empty where there are none."""
    told = [words for _, _, words in bounds_told(history)] if history else []
    return f" of those with {' and '.join(told)}" if told else ""


def _child(history: History, record: Record) -> str:
    what, reached = history.objective, _figure(history.metric(record))
    price = history.measure(what.cost).told(human(record.cost[what.cost]))
    return f"{record.id}, reaches {what.metric} {reached} on validation with {price}"


def _search(run: RunDir, history: History | None) -> Iterator[str]:
    yield "<h2>Search</h2>"
    if history is None or not history.records:
        yield '<p class="quiet">No candidate has been judged yet.</p>'
        return
    if not history.progress:
        last = list(history.records.values())[-1]
        yield f'<p class="quiet">Every candidate has failed so far; the last one with: {escape(str(last.error))}</p>'
        return
    failed = sum(history.failed(record) for record in history.records.values())
    lost = f" {failed:,} failed {'candidate is' if failed == 1 else 'candidates are'} not shown." if failed else ""
    beyond = " Fainter ones cost more or less than a child may." if history.constraints.bounds else ""
    if len(history.rungs) > 1:
        steps = history.rungs[-1].steps
        beyond += f" The front is of those that were scored after {steps:,} steps alone; others are fainter."
    told = (
        f"Each point is a child cut out of the supernet and scored on validation; rest on one to see it.{beyond}{lost}"
    )
    yield f'<p class="quiet">{told}</p>'
    yield search_picture(history, exported_from(run, history))
    yield from _front(history)
    yield from _foreseen(history)
    yield from _fidelity(read_fidelity(run, history.supernet, len(history.records)))
    told = "Progress. The hypervolume is the area under the front, in units of the metric times decades of cost."
    yield f'<p class="quiet">{told}{_against_blind(history)}</p>'
    yield progress_picture(history)


def _against_blind(history: History) -> str:
    """What the search has gained over the candidates that it drew before it knew anything."""
    blind = [point for point in history.progress if point.k < history.window]
    if not blind or len(history.records) <= history.window:
        return ""
    return (
        f" The first {history.window}, which were proposed before any result was known, came to "
        f"{blind[-1].hypervolume:.4g}; all {len(history.records):,} to {history.progress[-1].hypervolume:.4g}."
    )


def _front(history: History) -> Iterator[str]:
    """Where the front's children came from, and what they have in common."""
    front = history.front()
    if not front:
        return
    blind = sum(record.k < history.window for record in front)
    told = f"Of the {len(front)} on the front {blind} were proposed before any result was known, the others after."
    yield f'<p class="quiet">{told}</p>' if 0 < history.window < len(history.records) else ""
    if common := agreements(history):
        rows = "".join(
            f"<tr><td><code>{escape(each.choice)}</code></td><td>{each.value:g}</td>"
            f"<td>{each.count} of {each.having}</td><td>{each.share:.0%}</td></tr>"
            for each in common
        )
        heads = "<tr><th>choice</th><th>value</th><th>of the front</th><th>of all candidates</th></tr>"
        yield "<details><summary>What the front agrees on</summary>"
        yield f'<div class="wide"><table><thead>{heads}</thead><tbody>{rows}</tbody></table></div></details>'


def _foreseen(history: History) -> Iterator[str]:
    """Whether the predictor knew what would come."""
    guessed, scored = (figures[-MANY:] for figures in foreseen(history))
    if len(guessed) < FEW:
        return
    told = f"Kendall's tau {tau(guessed, scored):.2f} of what it expected and what was scored"
    yield f"<details><summary>The predictor: {told}, of the last {len(guessed):,} that it picked</summary>"
    yield f"{foreseen_picture(history)}</details>"


def _fidelity(found: Fidelity | None) -> Iterator[str]:
    """How far the scores are to be trusted."""
    if found is None:
        yield '<p class="quiet">How far these scores are to be trusted has not been measured: nas fidelity.</p>'
        return
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{told(value)}</td></tr>" for name, value in found.rows())
    heads = "<tr><th>agrees with networks trained alone</th><th>Kendall's tau, and where it lies (95 %)</th></tr>"
    yield f"<p>{escape(found.verdict)}</p>"
    yield f'<div class="wide"><table><thead>{heads}</thead><tbody>{rows}</tbody></table></div>'
    yield f'<p class="quiet">{len(found.archs)} networks, each trained alone {found.alone.shape[1]} times.</p>'
    yield fidelity_picture(found)


def _training(training: Training) -> Iterator[str]:
    yield "<h2>Training</h2>"
    if not training.steps:
        yield '<p class="quiet">No training step has been written yet.</p>'
        return
    yield '<p class="quiet">Losses are on training batches; the panel is a few fixed children scored on validation.</p>'
    for event in training.events:
        yield f'<p class="quiet">Step {event.step:,}: {escape(event.event)}: {escape(event.reason)}</p>'
    yield training_picture(training)


def _table(run: RunDir, history: History | None) -> Iterator[str]:
    yield "<h2>Children</h2>"
    rows = front_table(run)
    if not rows:
        yield '<p class="quiet">There is no front and no exported child yet.</p>'
        return
    children = read_children(run)
    name = metric_of(history, children)
    metric = escape(name)
    costs = shown_costs(history)
    again = any(
        row["exported_validation"] is not None and row["exported_validation"] != row["validation"] for row in rows
    )
    heads = ["id", *(escape(measure.title) for measure in costs.values()), f"validation {metric}"]
    others = [other for other in dict.fromkeys(other for row in rows for other in row["tested"]) if other != name]
    heads += [*([f"validation {metric}, as exported"] if again else []), f"test {metric}"]
    heads += [*(f"test {escape(other)}" for other in others), "files"]
    yield (
        '<div class="wide"><table><thead><tr>'
        + "".join(f'<th scope="col">{head}</th>' for head in heads)
        + "</tr></thead><tbody>"
    )
    for row in rows:
        cells = [f"<code>{escape(row['id'])}</code>", *(human(row[cost]) for cost in costs)]
        cells += [
            _figure(row["validation"], row["interval"]) + (" =" if row["tied"] else ""),
            *([_figure(row["exported_validation"])] if again else []),
            _figure(row["test"], row["intervals"].get(name)),
            *(_figure(row["tested"].get(other), row["intervals"].get(other)) for other in others),
        ]
        place = f"children/{quote(row['id'])}/"
        cells.append(f'<a href="{place}">{escape(place)}</a>' if row["exported"] else "")
        yield f"<tr{'' if row['front'] else ' class=off'}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    for baseline, test in _baselines(children, name).items():
        cells = [escape(baseline), *[""] * (len(heads) - 3 - len(others)), _figure(test), *[""] * (1 + len(others))]
        yield "<tr class=off>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</tbody></table></div>"
    if any(row["interval"] is not None for row in rows):
        tie = ' "=" marks who is not told apart from the next cheaper one on the front, on the same examples.'
        told = "± is what other examples of the same kind would change, with a chance of 95 %."
        yield f'<p class="quiet">{told}{tie if any(row["tied"] for row in rows) else ""}</p>'
    if not all(row["front"] for row in rows):
        yield f'<p class="quiet">Children in grey do not stand on the front{escape(_within(history))}.</p>'
    if not any(row["exported"] for row in rows):
        yield '<p class="quiet">No child has been exported yet, so none has been tested.</p>'


def _baselines(children: dict[str, dict[str, Any]], metric: str) -> dict[str, float]:
    """The test figure of what children must beat, by name."""
    return {
        name: figures[metric]
        for child in children.values()
        for name, figures in (child.get("baselines") or {}).items()
        if metric in figures
    }


def _pictures(run: RunDir) -> Iterator[str]:
    """What exported children do on test examples; one child open, the others folded."""
    ids = [row["id"] for row in front_table(run) if row["exported"]]  # not what an earlier supernet left
    found = {name: pictures for name, pictures in read_pictures(run).items() if name in ids}
    if not found:
        return
    yield "<h2>Pictures</h2>"
    yield '<p class="quiet">Test examples, the same ones for every child; each figure is that of the whole image.</p>'
    for number, name in enumerate(sorted(found, key=ids.index, reverse=True)):
        yield f"<details{'' if number else ' open'}><summary><code>{escape(name)}</code></summary>"
        for picture in found[name]:
            yield '<div class="row">' + "".join(_panel(panel) for panel in picture["panels"]) + "</div>"
        yield "</details>"


def _panel(panel: dict[str, Any]) -> str:
    image = base64.b64encode(panel["file"].read_bytes()).decode()
    zoom = " class=zoom" if panel["enlarged"] else ""
    label, note = escape(panel["label"]), escape(panel["note"])
    shown = f'<img{zoom} alt="{label}" src="data:image/png;base64,{image}">'
    return f"<figure>{shown}<figcaption><b>{label}</b> {note}</figcaption></figure>"


def _what_ran(run: RunDir, about: dict[str, Any], history: History | None) -> Iterator[str]:
    yield "<h2>What was run</h2>"
    facts = [("run", about.get("id")), ("supernet, sha256", history.supernet if history else None)]
    facts += [("Python", platform.python_version()), *((name, _version(name)) for name in SHOWN)]
    yield (
        '<p class="quiet">'
        + " · ".join(f"{name} <code>{escape(str(value))}</code>" for name, value in facts if value)
        + "</p>"
    )
    try:
        yield f"<pre>{escape(run.experiment.read_text(encoding='utf-8', errors='replace'))}</pre>"
    except OSError:
        yield '<p class="quiet">There is no experiment.yaml in the run directory.</p>'


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _seconds(training: Training) -> float:
    return max((line.seconds for line in training.steps), default=0.0)


def _figure(value: float | None, width: float | None = None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    places = 2 if abs(value) >= 10 else 4
    return f"{value:.{places}f}" + ("" if width is None else f" ± {width:.{places}f}")


def _duration(seconds: float) -> str:
    """A time for people: ``5 h 12 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
