"""How long children take, measured: whole children of a space on this machine, a table of what their parts take fitted
to that, and children that had no say in it to tell how far it may be trusted.

Weights do not matter, so a supernet that was never trained does. What is timed is what is handed over: the ONNX file in
ONNX Runtime on the CPU, or the extracted child in torch.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from nas.children.formats import onnx_pass, write_fixed_onnx
from nas.costs.latencies import PartTime, Seen, Table, Unseen, kind_of, values_of
from nas.device import configure_process, machine, synchronise
from nas.quantization.learned import for_onnx
from nas.space import Arch, Choice, Number, Space
from nas.supernet import Supernet

UNSEEN = 30  # children that are measured to judge the table
LEAST = 12  # children of a space, to say anything
ROUNDS = 10  # over all children, each in another order
BLOCK = 0.005  # seconds of passes at a time
PASSES = 3  # at a time, however long they take
LEAN = 2.0  # a child's choices lean to small or to large by at most this power of two
FOLDS = 5  # in choosing what a part's time depends on
FEW = 8  # values of a size that have a figure each
FORMS = ("macs", "sizes", "values")  # what a part's time depends on, from few figures to many

Told = Callable[[str, int, int], None]  # what is being done, how many children of how many
Column = tuple[Any, ...]  # a figure of the table: kind of part, field of `PartTime`, and the place in it


@dataclass(frozen=True)
class Setup:
    """What children are timed with.

    Attributes:
        runtime: the child's ONNX file, or its torch module.
        threads: that the runtime may take.
        batch: examples in a pass.
    """

    runtime: Literal["torch", "onnxruntime"] = "onnxruntime"
    threads: int = 1
    batch: int = 1

    def prepare(self) -> torch.device:
        """Give this process its threads; the GPU for torch where there is one, else the CPU."""
        return configure_process(self.runtime == "torch" and torch.cuda.is_available(), self.threads)


def measured_table(
    net: Supernet, space: str, children: int, setup: Setup, told: Told, unseen: int = UNSEEN, rounds: int = ROUNDS
) -> Table:
    """Measure children of a space, and make the table.

    Args:
        net: its supernet, whatever the weights.
        space: its name and size, for people.
        children: to make the table from; fewer where the space has fewer.
        told: called as the work goes on.
        unseen: children to judge it by; at most one of four where the space has too few for both.
        rounds: how often each is timed, 2 or more.

    Raises:
        ValueError: the space has too few networks, or the runtime does not take one.
    """
    if net.space.cardinality < LEAST:
        raise ValueError(f"the space has {net.space.cardinality} networks, too few to predict one from others")
    archs = spread(net.space, children + unseen)
    kept = children if len(archs) == children + unseen else len(archs) - min(unseen, len(archs) // 4)
    times = measure(net, archs, setup, told, rounds)
    once, again = np.median(times[:, ::2], 1), np.median(times[:, 1::2], 1)
    where, ms = setup.prepare(), np.median(times, 1)
    base, parts = fit(net, archs[:kept], ms[:kept])
    table = Table(
        space=space,
        choices=values_of(net.space),
        input=net.input_shape,
        machine=f"{machine(where)}, {platform.system()} {platform.machine()}",
        runtime=f"{setup.runtime} {version(setup.runtime)}",
        threads=setup.threads,
        batch=setup.batch,
        children=kept,
        base=base,
        parts=parts,
        unseen=Unseen(median_error=0, worst_error=0, rank_correlation=0, repeat_error=0, children=[]),
    )
    judged = judge(table, net, archs[kept:], ms[kept:], float(np.median(abs(once / again - 1))))
    return table.model_copy(update={"unseen": judged})


def spread(space: Space, count: int) -> list[Arch]:
    """Different children over the whole range of costs: both ends, then random ones of which some lean to small and
    some to large; fewer where the space does not have so many."""
    rng = np.random.default_rng(0)
    found = dict.fromkeys([space.smallest(), space.largest()])

    def lean(choice: Choice, power: float) -> Number:
        return choice.values[int(len(choice.values) * rng.random() ** power)]

    for _ in range(50 * count):
        if len(found) >= min(count, space.cardinality):
            break
        power = 2.0 ** rng.uniform(-LEAN, LEAN)
        found[space.arch({choice.name: lean(choice, power) for choice in space.choices.values()})] = None
    return list(found)


# --- timing


def measure(net: Supernet, archs: Sequence[Arch], setup: Setup, told: Told, rounds: int = ROUNDS) -> np.ndarray:
    """Milliseconds of a pass: ``(children, rounds)``, float64.

    A neighbour on the machine slows whatever runs beside it, for seconds or minutes. So each child is visited in every
    round, in another order, and timed by a yardstick: a child of middle size, before and after. How many times longer
    it takes than that is what a slow minute leaves as it is; what the yardstick takes is the least of the whole
    session.
    """
    where = setup.prepare()
    net = net.to(where)
    x = torch.rand(setup.batch, *net.input_shape, generator=torch.Generator().manual_seed(0)).to(where)
    with TemporaryDirectory() as folder, torch.inference_mode():
        files = _write_all(net, archs, x, Path(folder), told) if setup.runtime == "onnxruntime" else []

        def ready(index: int) -> Callable[[], object]:
            """A pass of a child, made anew: where its memory lies counts too."""
            if files:
                return onnx_pass(files[index], x, setup.threads)
            return _torch_pass(net.extract(archs[index]), x)

        middle = sorted(range(len(archs)), key=lambda index: net.cost(archs[index])["macs"])[len(archs) // 2]
        yardstick, rng = ready(middle), np.random.default_rng(0)
        times, bests = np.empty((len(archs), rounds)), []
        for visit in range(rounds * len(archs)):
            if visit % len(archs) == 0:
                order = rng.permutation(len(archs))
            index = order[visit % len(archs)]
            child = ready(index)
            before, own, after = quickest(yardstick), quickest(child), quickest(yardstick)
            bests.append(min(before, after))
            times[index, visit // len(archs)] = own / bests[-1]
            told("time", visit + 1, rounds * len(archs))
    return times * 1e3 * min(bests)


def quickest(once: Callable[[], object]) -> float:
    """Seconds of the quickest of some passes, after one that does not count."""
    once()
    best, end, done = float("inf"), time.perf_counter() + BLOCK, 0
    while done < PASSES or time.perf_counter() < end:
        start = time.perf_counter()
        once()
        best, done = min(best, time.perf_counter() - start), done + 1
    return best


def _torch_pass(child: nn.Module, x: Tensor) -> Callable[[], None]:
    """One pass of a child in torch, ended when the device has done it."""
    child = child.to(memory_format=torch.channels_last).eval()

    def once() -> None:
        child(x)
        synchronise(x.device)

    return once


def _write_all(net: Supernet, archs: Sequence[Arch], x: Tensor, folder: Path, told: Told) -> list[Path]:
    """The children as ONNX files.

    Raises:
        ValueError: torch.export or ONNX does not take one.
    """
    files = [folder / f"{number}.onnx" for number in range(len(archs))]
    for number, (arch, path) in enumerate(zip(archs, files, strict=True), start=1):
        try:
            with torch.inference_mode(False):
                write_fixed_onnx(for_onnx(net.extract(arch).eval()), x.clone(), path)
        except torch.onnx.OnnxExporterError as error:
            why = " ".join(str(error).split())[:300]
            raise ValueError(f"ONNX does not take the child {arch.id}; measure with --runtime torch: {why}") from error
        told("export", number, len(archs))
    return files


# --- the table


def fit(net: Supernet, archs: Sequence[Arch], ms: np.ndarray) -> tuple[float, dict[str, PartTime]]:
    """What any child takes, and what parts take by kind: a ridge regression of relative errors, whose penalty the
    children decide (Bayesian ridge). What a part's time depends on is that of `FORMS` that predicts children best which
    are left out in turn."""
    values: dict[tuple[str, int], set[Number]] = {}
    for kind, sizes in (kind_of(part) for arch in archs for part in net.parts(arch)):
        for place, size in enumerate(sizes):
            values.setdefault((kind, place), set()).add(size)
    listed = {size for size, known in values.items() if len(known) <= FEW}
    fold, best = np.random.default_rng(0).permutation(len(archs)) % FOLDS, (np.inf, 0.0, dict[Column, float]())
    for form in FORMS:
        rows = [_row(net, arch, form, listed) for arch in archs]
        predicted = np.empty(len(ms))
        for each in range(FOLDS):
            inside = np.flatnonzero(fold != each)
            base, figures = _regress([rows[i] for i in inside], ms[inside])
            for i in np.flatnonzero(fold == each):
                predicted[i] = base + sum(figures.get(column, 0.0) * value for column, value in rows[i].items())
        error = float(np.mean(abs(predicted / ms - 1)))
        best = min(best, (error, *_regress(rows, ms)), key=lambda found: found[0])
    return best[1], _by_kind(net, archs, best[2])


def _row(net: Supernet, arch: Arch, form: str, listed: Collection[tuple[str, int]]) -> dict[Column, float]:
    """What the time of a child is linear in.

    Args:
        form: one of `FORMS`.
        listed: the sizes, by kind of part and place, whose values have a figure each.
    """
    row: dict[Column, float] = {}

    def add(kind: str, *column: Any, value: float = 1.0) -> None:
        row[(kind, *column)] = row.get((kind, *column), 0.0) + value

    for part in net.parts(arch):
        (kind, sizes), cost = kind_of(part), net.part_cost(part)
        add(kind, "ms")
        add(kind, "per_mac", value=cost.macs)
        if form != "macs":
            add(kind, "per_param", value=cost.params)
        for place, size in enumerate(sizes):
            if form == "values" and (kind, place) in listed:
                add(kind, "of_value", place, repr(size))
            elif form != "macs":
                add(kind, "per_size", place, value=size)
    return row


def _regress(rows: Sequence[dict[Column, float]], ms: np.ndarray) -> tuple[float, dict[Column, float]]:
    """Milliseconds of any child, and for one of each column."""
    from sklearn.linear_model import BayesianRidge  # takes time to import, so where it is used

    columns = list(dict.fromkeys(column for row in rows for column in row))
    x = np.array([[row.get(column, 0.0) for column in columns] for row in rows])
    middle, width = x.mean(0), x.std(0)
    varies = width > 1e-9 * (1 + abs(middle))
    scaled = (x[:, varies] - middle[varies]) / width[varies]
    weights = 1 / ms**2
    found = BayesianRidge(max_iter=1000).fit(scaled, ms, sample_weight=weights / weights.mean())
    figures = np.zeros(len(columns))
    figures[varies] = found.coef_ / width[varies]
    return float(found.intercept_ - figures @ middle), dict(zip(columns, figures.tolist(), strict=True))


def _by_kind(net: Supernet, archs: Sequence[Arch], figures: dict[Column, float]) -> dict[str, PartTime]:
    """The figures as a table has them."""
    lengths = {kind: len(sizes) for arch in archs for kind, sizes in map(kind_of, net.parts(arch))}
    parts: dict[str, dict[str, Any]] = {kind: {} for kind in lengths}
    for (kind, field, *place), figure in figures.items():
        match place:
            case []:
                parts[kind][field] = figure
            case [index]:
                parts[kind].setdefault(field, [0.0] * lengths[kind])[index] = figure
            case [index, value]:
                parts[kind].setdefault(field, [{} for _ in range(lengths[kind])])[index][value] = figure
    return {kind: PartTime(**part) for kind, part in parts.items()}


def judge(table: Table, net: Supernet, archs: Sequence[Arch], ms: np.ndarray, repeat: float) -> Unseen:
    """How well a table predicts children; `repeat` is how far two measurements of one are apart."""
    predicted = np.array([table.child(table.part(net, part) for part in net.parts(arch)) for arch in archs])
    error = abs(predicted / ms - 1)
    ranked = spearmanr(predicted, ms).statistic if np.ptp(predicted) and np.ptp(ms) else 0.0
    return Unseen(
        median_error=float(np.median(error)),
        worst_error=float(error.max()),
        rank_correlation=float(np.clip(ranked, -1, 1)),
        repeat_error=repeat,
        children=[
            Seen(arch=dict(arch), measured=float(now), predicted=float(then))
            for arch, now, then in zip(archs, ms, predicted, strict=True)
        ],
    )
