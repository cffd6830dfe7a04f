"""The pictures of docs/claims.md, drawn from the records of finished trainings (tests/benchmarks/records).

python -m tests.benchmarks.claims

A dot is what one supernet showed, or one training; a line is the mean over them with its interval of 95 % (Student's
t).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas.results.fidelity import Head, Trials, read_fidelity, told
from nas.results.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, svg
from nas.rundir.directory import RunDir
from nas.statistics import half_width
from tests.benchmarks.trainings import RECORDS, recorded

PICTURES = Path(__file__).parents[2] / "docs" / "claims"
PAGE = "#7f8894"  # ink that is read on white and on black: an image does not know the page's
KINDS = {
    "alone": "alone, as many steps",
    "alone, one of 5": "alone, a fifth of the computing",
    "alone, one of 20": "alone, a twentieth",
}
SETS = ("Set5", "Set14", "BSD100")
Row = tuple[str, list[float]]


def lines(name: str) -> list[dict[str, Any]]:
    """The records of a file, of the settings that the last one has; none where there is no file yet."""
    found = recorded(name)
    return [line for line in found if line.get("settings") == found[-1].get("settings")]


def family(name: str) -> Iterator[Row]:
    """Points by which children that were cut are better, by seed, of seeds that are whole."""
    found = lines(f"family-{name}")
    by = {(line["seed"], line["kind"], line["id"]): line["accuracy"] for line in found}
    ids = list(dict.fromkeys(line["id"] for line in sorted(found, key=lambda line: line["macs"])))
    for kind, label in KINDS.items():
        for what, some in (("all five", ids), ("the smallest", ids[:1]), ("the largest", ids[-1:])):
            seeds = [seed for seed in sorted({key[0] for key in by}) if all((seed, kind, id) in by for id in some)]
            gaps = [mean(by[seed, "cut", id] - by[seed, kind, id] for id in some) for seed in seeds]
            if gaps:
                yield f"{label}: {what}", gaps


def no_retraining() -> Iterator[Row]:
    found = lines("no-retraining-bignas-digits")
    yield (
        "children of the front",
        [
            mean(line["cut"] - line["alone"] for line in found if line["seed"] == seed)
            for seed in sorted({line["seed"] for line in found})
        ],
    )


def ablations(name: str) -> Iterator[Row]:
    """Points by which five networks are better in the mean where a part of the recipe is changed, by seed."""
    found = {(line["part"], line["seed"]): line["figures"]["accuracy"] for line in lines(f"ablations-{name}")}
    for part in dict.fromkeys(part for part, _ in found):
        seeds = sorted(seed for each, seed in found if each == part and ("as it is", seed) in found)
        if part != "as it is" and seeds:
            yield part, [found[part, seed] - found["as it is", seed] for seed in seeds]


def of_parts(name: str, figure: str) -> Iterator[Row]:
    """A figure of every part of an experiment, by seed."""
    found = lines(name)
    for part in dict.fromkeys(line["part"] for line in found):
        yield part, [line["figures"][figure] for line in found if line["part"] == part]


def gains(name: str, others: str) -> Iterator[Row]:
    """PSNR on BSD100 of what was found within a budget less that of the best network of a kind that costs no more, best
    by the same test images, which favours the kind. By seed, of seeds that have both."""
    found = lines(name)
    kinds = {
        "one size, from scratch": lines(others),
        "one size, from the supernet": [line for line in found if not line["part"].startswith(("guided", "random"))],
        "random search": [line for line in found if line["part"].startswith("random")],
    }
    for part in dict.fromkeys(line["part"] for line in found if line["part"].startswith("guided")):
        most = float(part.split()[-2])
        for kind, rivals in kinds.items():
            best: dict[int, float] = {}
            for rival in (line for line in rivals if line["figures"]["GBitOPs"] <= most):
                best[rival["seed"]] = max(best.get(rival["seed"], 0.0), rival["figures"]["BSD100"])
            values = [
                line["figures"]["BSD100"] - best[line["seed"]]
                for line in found
                if line["part"] == part and line["seed"] in best
            ]
            if values:
                yield f"{most:g} GBitOPs: over {kind}", values


def dots(rows: list[Row], label: str, zero: bool) -> Callable[[Figure], None]:
    """A row of dots for each."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for at, (_, values) in enumerate(rows):
            axes.scatter(values, [at] * len(values), s=26, color=BLUE, alpha=0.6, linewidths=0, zorder=3)
            spread = half_width(values) if len(values) > 1 else 0.0
            axes.errorbar(mean(values), at, xerr=spread, fmt="|", color=ORANGE, markersize=14, capsize=4, zorder=2)
        if zero:
            axes.axvline(0, color=GREY, linewidth=1)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.invert_yaxis()
        axes.set_xlabel(label)

    return draw


def fronts(name: str, others: str) -> Callable[[Figure], None]:
    """PSNR against BitOPs on every test set: networks of one size, made by hand, found."""
    colours = {"guided": GREEN, "random": PURPLE}

    def points(axes: Axes, file: str, test: str) -> None:
        for line in lines(file):
            first = line["part"].split(",")[0]
            colour = GREY if file == others else colours.get(first, BLUE)
            label = "networks of one size, from scratch" if file == others else first if first in colours else "by hand"
            axes.scatter(
                line["figures"]["GBitOPs"], line["figures"][test], s=20, color=colour, linewidths=0, label=label
            )

    def draw(figure: Figure) -> None:
        for axes, test in zip(figure.subplots(1, len(SETS)), SETS, strict=True):
            points(axes, others, test)
            points(axes, name, test)
            axes.set(xscale="log", title=test, xlabel="GBitOPs", ylabel="PSNR, dB" if test == SETS[0] else None)
        handles, labels = axes.get_legend_handles_labels()
        first = {label: handle for handle, label in zip(handles, labels, strict=True)}
        figure.legend(first.values(), first.keys(), loc="outside lower center", ncols=len(first))

    return draw


def save(name: str, height: float, draw: Callable[[Figure], None]) -> None:
    """Draw a picture into docs/claims."""
    PICTURES.mkdir(exist_ok=True)
    file = PICTURES / f"{name}.svg"
    file.write_text(svg(draw, name, height).replace("currentColor", PAGE))
    print(file.relative_to(PICTURES.parents[1]))


def tell_fidelity() -> None:
    """Print what `nas fidelity` says of its records."""
    for file in sorted(RECORDS.glob("fidelity-*.jsonl")):
        with TemporaryDirectory() as folder:
            trials = Trials(RunDir(Path(folder)), Head.model_validate_json(file.read_text().splitlines()[0]))
            trials.path.parent.mkdir()
            shutil.copy(file, trials.path)
            (trials.path.parent / "current").write_text(trials.path.name)
            found = read_fidelity(trials.run, trials.head.supernet, candidates=100)
        if found:
            print(f"\n{file.stem}: {len(found.archs)} networks, {found.alone.shape[1]} trainings each")
            for name, value in found.rows():
                print(f"  {name}: Kendall's tau {told(value)}")
            for steps, value in found.at_equal_cost.items():
                print(f"  after {steps} steps: correlation at equal cost {told(value)}")
            print(f"  {found.verdict}")


def main() -> None:
    """Draw whatever has records, and tell the rest."""
    better = "points of accuracy by which cut is better than alone"
    rows = {
        "no-retraining": (list(no_retraining()), better, True),
        "family-bignas-textures": (list(family("bignas-textures")), better, True),
        "family-bignas-cifar10-16px": (list(family("bignas-cifar10-16px")), better, True),
        "ablations-bignas-textures": (list(ablations("bignas-textures")), "points against the recipe as it is", True),
        **{
            f"vit-resnas-{part}": (list(of_parts(f"vit-resnas-{part}", "accuracy")), "test accuracy, %", False)
            for part in ("archs", "variance", "search")
        },
        "quantnas-wide-gains": (
            list(gains("quantnas-wide", "quantnas-fixed")),
            "dB on BSD100 by which what was found is better",
            True,
        ),
        "quantnas-noise": (list(of_parts("quantnas-noise", "mean validation PSNR")), "validation PSNR, dB", False),
    }
    for name, (found, label, zero) in rows.items():
        if found:
            save(name, 1.2 + 0.3 * len(found), dots(found, label, zero))
    if lines("quantnas-wide"):
        save("quantnas-wide", 4.0, fronts("quantnas-wide", "quantnas-fixed"))
    tell_fidelity()


if __name__ == "__main__":
    main()
