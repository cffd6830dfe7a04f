"""What commands show as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table

if TYPE_CHECKING:
    from nas.results.fidelity import Fidelity
    from nas.space import Measure


def quantized(figures: Mapping[str, Any]) -> Table:
    """What each way of quantizing costs and gives."""
    from nas.results.plots import human

    metrics = list(figures["validation"])
    table = Table(
        Column(no_wrap=True),
        "BitOPs",
        "bytes",
        *(f"{part} {metric}" for metric in metrics[:1] for part in ("validation", "test")),
        box=None,
    )
    for row in figures["rows"]:
        values = [f"{row[part][metric]:.2f}" for metric in metrics[:1] for part in ("validation", "test")]
        table.add_row(row["method"], human(row["bitops"]), f"{row['bytes']:,}", *values)
    if "onnx" in figures:
        layers = f"ONNX Runtime ({figures['parity']['integer_layers']:.0f} integer layers)"
        table.add_row(
            layers, human(figures["bitops"]), f"{figures['bytes']:,}", f"{figures['onnx'][metrics[0]]:.2f}", ""
        )
    return table


def fidelity(found: Fidelity) -> Table:
    """Who agrees with networks trained alone, and how far."""
    from nas.results.fidelity import told

    heads = (Column("score", no_wrap=True), Column("Kendall's tau", no_wrap=True))
    table = Table(*heads, f"correlation at equal {found.head.cost}", box=None)
    equal = [*(told(value) for value in found.at_equal_cost.values()), "", ""]  # of the supernet's rungs alone
    for (name, value), beyond in zip(found.rows(), equal, strict=True):
        table.add_row(name, told(value), beyond)
    return table


def children(rows: list[dict[str, Any]], costs: Mapping[str, Measure]) -> Table:
    """Children as a table.

    Args:
        rows: of `nas.results.history.front_table`, one at least. Test figures have columns where any child has some.
        costs: those that are shown, by name.
    """
    from nas.results.plots import human

    metric = rows[0]["metric"]
    given = dict.fromkeys(name for row in rows for name in row["tested"])
    tested = sorted(given, key=lambda name: name != metric)  # what the search wanted comes first
    heads = [measure.title for measure in costs.values()]
    heads += [
        head.replace("_", " ") for head in (f"validation {metric}", *(f"test {name}" for name in tested))
    ]  # so that it may be broken
    told = [_told(row, tested) for row in rows]
    wide = {len(costs): max(len(cells[0]) for cells in told)}  # what the search saw, with its interval, is not broken
    columns = [Column(head, min_width=max(wide.get(at, 0), *map(len, head.split()))) for at, head in enumerate(heads)]
    table = Table(Column("child", no_wrap=True, min_width=max(len(row["id"]) for row in rows)), *columns, box=None)
    for row, cells in zip(rows, told, strict=True):
        table.add_row(row["id"], *(human(row[name]) for name in costs), *cells)
    return table


def _told(row: dict[str, Any], tested: list[str]) -> list[str]:
    """A child's figures: on validation, with ``=`` where it is tied, and the test ones."""
    validation = row["validation"] if row["validation"] is not None else row["exported_validation"]
    seen = _figure(validation, row["interval"]) + ("\N{NO-BREAK SPACE}=" if row["tied"] else "")
    return [seen, *(_figure(row["tested"].get(name), None) for name in tested)]


def _figure(value: float | None, width: float | None) -> str:
    """``57.65 ±0.81``, which is not broken; without an interval where none is known."""
    if value is None:
        return ""
    places = 2 if value >= 10 else 4
    return f"{value:.{places}f}" + ("" if width is None else f"\N{NO-BREAK SPACE}±{width:.{places}f}")
