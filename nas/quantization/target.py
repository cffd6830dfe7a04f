"""What a child shall be quantized to: bits, and the budget that chooses among them. Imports no torch, so that a wrong
one is told before that is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nas.config.section import count

Kind = Literal["bitops", "bytes"]
KINDS: tuple[Kind, ...] = ("bitops", "bytes")
LEAST_BITS, MOST_BITS = 2, 8
ITERATIONS = 200  # of AdaQuant for a layer


@dataclass(frozen=True)
class BitBudget:
    """The most that a quantized child may cost.

    Attributes:
        kind: BitOPs (MACs x weight bits x activation bits, for one example) or bytes of its weights' file.
        most: how many.
    """

    kind: Kind
    most: int


@dataclass(frozen=True)
class QuantizationTarget:
    """The bits that a child's layers may be quantized to, and the budget that chooses among them.

    Attributes:
        bits: the numbers of bits that a layer may have, weights and input alike.
        budget: what chooses among them; None where there is nothing to choose.
        iterations: of AdaQuant for each layer.

    Raises:
        ValueError: bits out of range, or a choice without a budget.
    """

    bits: tuple[int, ...]
    budget: BitBudget | None = None
    iterations: int = ITERATIONS

    def __post_init__(self) -> None:
        listed = ", ".join(map(str, self.bits))
        if not self.bits or any(not LEAST_BITS <= bits <= MOST_BITS for bits in self.bits):
            given = listed or "none"
            raise ValueError(f"bits: given {given}; allowed: {LEAST_BITS} to {MOST_BITS}, several with commas")
        if len(set(self.bits)) > 1 and self.budget is None:
            raise ValueError(
                f"bits {listed} leave a choice: give a budget (--max-bitops or --max-bytes), or one number of bits"
            )

    @property
    def suffix(self) -> str:
        """What the directory's name ends in: ``w4a4``, ``bitops2000000``."""
        return f"{self.budget.kind}{self.budget.most}" if self.budget else f"w{self.bits[0]}a{self.bits[0]}"


def read_target(bits: str | None, max_bitops: str | None, max_bytes: str | None) -> QuantizationTarget:
    """The target of a command line: bits as ``"4"`` or ``"4,8"``, budgets as ``"20M"`` or ``"40k"``.

    Raises:
        ValueError: what cannot be understood, or two budgets.
    """
    if max_bitops is not None and max_bytes is not None:
        raise ValueError(f"given max_bitops {max_bitops} and max_bytes {max_bytes}; allowed: one of them")
    budget = None
    for kind, text in zip(KINDS, (max_bitops, max_bytes), strict=True):
        if text is not None:
            most = count(text)
            if not isinstance(most, int) or most <= 0:
                allowed = "a whole number above 0, plain or such as 300k, 1.5M, 2G"
                raise ValueError(f"max_{kind}: given {text!r}; allowed: {allowed}")
            budget = BitBudget(kind, most)
    text = bits or ("4,8" if budget else "8")
    if not all(part.strip().isdigit() for part in text.split(",")):
        raise ValueError(
            f"bits: given {text!r}; allowed: {LEAST_BITS} to {MOST_BITS}, several with commas, such as 4,8"
        )
    return QuantizationTarget(tuple(sorted({int(part) for part in text.split(",")})), budget)
