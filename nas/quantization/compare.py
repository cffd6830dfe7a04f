"""Ways to quantize a child, each judged the same way, and the one that is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nas.config.section import count
from nas.quantization.adaquant import ITERATIONS, calibrate
from nas.quantization.allocate import FLOAT_BITS, Budget, Costs, allocated, check_budget, difference, outputs
from nas.quantization.integer import MOST_BITS
from nas.quantization.tuning import tune

HELD = 4  # batches of the calibration examples that no weight is fitted on: they judge
SENSITIVITY_BATCHES = 4
LEAST_BITS = 2
RTN, SENSITIVITY, TUNING = 0.2, 0.3, 2.0  # of the work on a layer that AdaQuant does


@dataclass(frozen=True)
class Wish:
    """What is asked of a quantized child.

    Attributes:
        bits: the numbers of bits that a layer may have, weights and input alike.
        budget: what chooses among them; None where there is nothing to choose.
        iterations: of AdaQuant for each layer.

    Raises:
        ValueError: bits out of range, or a choice without a budget.
    """

    bits: tuple[int, ...]
    budget: Budget | None = None
    iterations: int = ITERATIONS

    def __post_init__(self) -> None:
        if not self.bits or any(not LEAST_BITS <= bits <= MOST_BITS for bits in self.bits):
            raise ValueError(f"bits: given {', '.join(map(str, self.bits)) or 'none'}; allowed: {LEAST_BITS} to {MOST_BITS}, several with commas")
        if len(set(self.bits)) > 1 and self.budget is None:
            raise ValueError(f"bits {', '.join(map(str, self.bits))} leave a choice: give a budget (--max-bitops or --max-bytes), or one number of bits")

    @property
    def suffix(self) -> str:
        """Of the directory's name: ``w4a4``, ``bitops2000000``."""
        return f"{self.budget.kind}{self.budget.most}" if self.budget else f"w{self.bits[0]}a{self.bits[0]}"


def read_wish(bits: str | None, max_bitops: str | None, max_bytes: str | None) -> Wish:
    """What a person asked for, in words: bits as ``"4"`` or ``"4,8"``, budgets as ``"20M"`` or ``"40k"``.

    Raises:
        ValueError: what cannot be understood, or two budgets.
    """
    if max_bitops is not None and max_bytes is not None:
        raise ValueError(f"given max_bitops {max_bitops} and max_bytes {max_bytes}; allowed: one of them")
    budget = None
    for kind, text in (("bitops", max_bitops), ("bytes", max_bytes)):
        if text is not None:
            most = count(text)
            if not isinstance(most, int) or most <= 0:
                raise ValueError(f"max_{kind}: given {text!r}; allowed: a whole number above 0, plain or such as 300k, 1.5M, 2G")
            budget = Budget(kind, most)  # type: ignore[arg-type]
    text = bits or ("4,8" if budget else "8")
    if not all(part.strip().isdigit() for part in text.split(",")):
        raise ValueError(f"bits: given {text!r}; allowed: {LEAST_BITS} to {MOST_BITS}, several with commas, such as 4,8")
    return Wish(tuple(sorted({int(part) for part in text.split(",")})), budget)


@dataclass
class Work:
    """How far it is, in layers calibrated.

    Attributes:
        tell: called with what is done, the whole, and what was done last.
    """

    tell: Callable[[float, float, str], None]
    total: float
    done: float = 0.0

    def tick(self, what: str, weight: float = 1.0) -> Callable[[str], None]:
        def advance(name: str) -> None:
            self.done += weight
            self.tell(self.done, self.total, f"{what} {name}")

        return advance


@dataclass
class Found:
    """A quantized child.

    Attributes:
        net: its network.
        bits: for each layer's name.
        row: its figures, one of `rows`: ``method``, ``bitops``, ``bytes``, and what the judge says.
        rows: the figures of every way that was tried, the child as it was first.
    """

    net: nn.Module
    bits: dict[str, int]
    row: dict[str, Any]
    rows: list[dict[str, Any]]


def compare(
    child: nn.Module,
    costs: Costs,
    wish: Wish,
    batches: Sequence[Tensor],
    judge: Callable[[nn.Module], dict[str, Any]],
    tell: Callable[[float, float, str], None],
) -> Found:
    """Round to the nearest and run AdaQuant, with the most bits that all layers can have alike and with allocated ones.

    Taken are the bits asked for, and of the two ways with these the one whose output is nearer to the child's on the last calibration
    batches. What `judge` says of each chooses nothing.

    Args:
        child: batch norms folded.
        batches: calibration examples, at least two batches.
        tell: see `Work`.
    """
    names, chooses = [layer.name for layer in costs.layers], bool(wish.budget) and len(wish.bits) > 1
    if wish.budget:
        check_budget(costs, wish.bits, wish.budget)
    work = Work(tell, len(names) * ((RTN + 1) * (1 + chooses) + 2 * SENSITIVITY * chooses) + 2 * TUNING * (1 + chooses))
    tries = [(f"{_widest(costs, wish)} bits", dict.fromkeys(names, _widest(costs, wish)))]
    if wish.budget and chooses:
        few, tick = batches[:SENSITIVITY_BATCHES], work.tick("sensitivity", SENSITIVITY)
        bits = allocated(child, costs, wish.bits, wish.budget, few, tick)
        tries += [("allocated bits", bits)] if bits != tries[0][1] else []
    size = costs.bytes + sum(4 * (layer.weights + layer.channels) for layer in costs.layers)
    rows: list[dict[str, Any]] = [{"method": "fp32", "bitops": costs.macs * FLOAT_BITS**2, "bytes": size, **judge(child)}]
    for title, bits in tries:
        price = {kind: costs.total(bits, kind) for kind in ("bitops", "bytes")}
        nearest, best, losses = _both(child, costs, bits, batches, wish.iterations, work)
        rows.append({"method": f"round to nearest, {title}", **price, **judge(nearest)})
        rows.append({"method": f"AdaQuant, {title}", **price, **judge(best), "calibration_loss": losses})
        worse = losses["kept"] > losses["round to nearest"]
        found = Found(nearest if worse else best, bits, rows[-2 if worse else -1], rows)
    return found


def _both(
    child: nn.Module, costs: Costs, bits: dict[str, int], batches: Sequence[Tensor], iterations: int, work: Work
) -> tuple[nn.Module, nn.Module, dict[str, float]]:
    """Rounded to the nearest; by AdaQuant, tuned; and the calibration losses."""
    held = min(HELD, len(batches) // 2)
    nearest = calibrate(child, costs.layers, bits, batches, held, 0, work.tick("round to nearest", RTN))
    best = calibrate(child, costs.layers, bits, batches, held, iterations, work.tick("AdaQuant"))
    best, losses = tune(best, child, list(bits), batches, held, work.tick("tuning", TUNING))
    judged = batches[-held:]
    return nearest, best, {"round to nearest": difference(nearest, judged, outputs(child, judged)), **losses, "kept": min(losses.values())}


def _widest(costs: Costs, wish: Wish) -> int:
    """The most bits that all layers can have alike."""
    names = [layer.name for layer in costs.layers]
    fits = [b for b in wish.bits if not wish.budget or costs.total(dict.fromkeys(names, b), wish.budget.kind) <= wish.budget.most]
    return max(fits)
