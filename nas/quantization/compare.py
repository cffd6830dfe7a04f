"""The ways to quantize a child to a target, each judged the same way, and the one that is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from torch import Tensor, nn

from nas.quantization.adaquant import calibrate
from nas.quantization.allocate import (
    FLOAT_BITS,
    Costs,
    allocated,
    check_budget,
    difference,
    outputs,
)
from nas.quantization.correction import correct
from nas.quantization.target import QuantizationTarget

HELD = 4  # batches of the calibration examples that no weight is fitted on: they judge
SENSITIVITY_BATCHES = 4
RTN, SENSITIVITY, CORRECTION = 0.2, 0.3, 2.0  # of the time that AdaQuant takes for a layer


@dataclass
class LayerProgress:
    """How many layers are calibrated, in units of the time that AdaQuant takes for one.

    Attributes:
        tell: called with what is done, the whole, and what was done last.
    """

    tell: Callable[[float, float, str], None]
    total: float
    done: float = 0.0

    def counter(self, stage: str, weight: float = 1.0) -> Callable[[str], None]:
        """Called with the name of each layer that a stage is done with, which counts `weight`."""

        def layer_done(name: str) -> None:
            self.done += weight
            self.tell(self.done, self.total, f"{stage} {name}")

        return layer_done


class Judged(TypedDict):
    """A network's figures by the task's metrics."""

    validation: dict[str, float]
    test: dict[str, float]


class Row(Judged):
    """The figures of one way to quantize a child, or of the child as it was.

    Attributes:
        bitops: MACs x weight bits x activation bits, for one example.
        bytes: of the weights' file.
        calibration_loss: of AdaQuant, what `correct` gives, that of rounding to the nearest, and that which was kept.
    """

    method: str
    bitops: int
    bytes: int
    calibration_loss: NotRequired[dict[str, float]]


@dataclass
class QuantizedChild:
    """The quantized child that is taken, beside the figures of every way that was tried.

    Attributes:
        net: its network.
        bits: for each layer's name.
        row: its figures, one of `rows`.
        rows: the child as it was first.
    """

    net: nn.Module
    bits: dict[str, int]
    row: Row
    rows: list[Row]


def compare(
    child: nn.Module,
    costs: Costs,
    target: QuantizationTarget,
    batches: Sequence[Tensor],
    judge: Callable[[nn.Module], Judged],
    tell: Callable[[float, float, str], None],
) -> QuantizedChild:
    """Round to the nearest and run AdaQuant, with the most bits that all layers can have alike and with allocated ones.

    Taken are the bits asked for, and of the two ways with these the one whose output is nearer to the child's on the
    last calibration batches. What `judge` says of each chooses nothing.

    Args:
        child: batch norms folded.
        batches: calibration examples, at least two batches.
        tell: see `LayerProgress`.
    """
    names, chooses = [layer.name for layer in costs.layers], bool(target.budget) and len(target.bits) > 1
    if target.budget:
        check_budget(costs, target.bits, target.budget)
    work = len(names) * ((RTN + 1) * (1 + chooses) + 2 * SENSITIVITY * chooses) + 2 * CORRECTION * (1 + chooses)
    progress, widest = LayerProgress(tell, work), _widest(costs, target)
    tries = [(f"{widest} bits", dict.fromkeys(names, widest))]
    if target.budget and chooses:
        few, layer_done = batches[:SENSITIVITY_BATCHES], progress.counter("sensitivity", SENSITIVITY)
        bits = allocated(child, costs, target.bits, target.budget, few, layer_done)
        tries += [("allocated bits", bits)] if bits != tries[0][1] else []
    size = costs.bytes + sum(4 * (layer.weights + layer.channels) for layer in costs.layers)
    rows: list[Row] = [{"method": "fp32", "bitops": costs.macs * FLOAT_BITS**2, "bytes": size, **judge(child)}]
    for title, bits in tries:
        nearest, best, losses = _both(child, costs, bits, batches, target.iterations, progress)
        bitops, packed = costs.total(bits, "bitops"), costs.total(bits, "bytes")
        rounding: Row = {"method": f"round to nearest, {title}", "bitops": bitops, "bytes": packed, **judge(nearest)}
        trained: Row = {"method": f"AdaQuant, {title}", "bitops": bitops, "bytes": packed, **judge(best)}
        trained["calibration_loss"] = losses
        rows += [rounding, trained]
        worse = losses["kept"] > losses["round to nearest"]
        found = QuantizedChild(nearest if worse else best, bits, rounding if worse else trained, rows)
    return found


def _both(
    child: nn.Module,
    costs: Costs,
    bits: dict[str, int],
    batches: Sequence[Tensor],
    iterations: int,
    progress: LayerProgress,
) -> tuple[nn.Module, nn.Module, dict[str, float]]:
    """The child rounded to the nearest, the child by AdaQuant and corrected, and the calibration losses."""
    held = min(HELD, len(batches) // 2)
    nearest = calibrate(child, costs.layers, bits, batches, held, 0, progress.counter("round to nearest", RTN))
    best = calibrate(child, costs.layers, bits, batches, held, iterations, progress.counter("AdaQuant"))
    best, losses = correct(best, child, list(bits), batches, held, progress.counter("correction", CORRECTION))
    judged = batches[-held:]
    rounding = difference(nearest, judged, outputs(child, judged))
    return nearest, best, {"round to nearest": rounding, **losses, "kept": min(losses.values())}


def _widest(costs: Costs, target: QuantizationTarget) -> int:
    """The most bits that all layers can have alike."""
    names, budget = [layer.name for layer in costs.layers], target.budget
    alike = {bits: dict.fromkeys(names, bits) for bits in target.bits}
    return max(bits for bits in alike if not budget or costs.total(alike[bits], budget.kind) <= budget.most)
