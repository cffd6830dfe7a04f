"""Bits for each layer under a budget: what each choice costs, how much it hurts, and the integer program that chooses.

Hubara et al., arXiv:2006.10518, section 4, in the form ``min sum of losses such that the cost is within the budget``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nas.quantization.adaquant import AdaQuantLayer, seen, widths
from nas.quantization.graph import Layer, float_layer
from nas.quantization.levels import NIBBLE_BITS, packed_bytes
from nas.quantization.target import BitBudget, Kind

FLOAT_BITS = 32


@dataclass(frozen=True)
class Costs:
    """What a child's layers cost at each number of bits, and what is not quantized.

    Attributes:
        layers: of the child.
        macs: of the whole child; those outside of `layers` count with 32 bits.
        bytes: of the tensors that no layer holds.
    """

    layers: tuple[Layer, ...]
    macs: int
    bytes: int

    @classmethod
    def of(cls, child: nn.Module, layers: tuple[Layer, ...], macs: int) -> Costs:
        """The costs of a child whose batch norms are folded."""
        own = {f"{layer.name}.{part}" for layer in layers for part in ("weight", "bias")}
        return cls(layers, macs, sum(tensor.nbytes for name, tensor in child.state_dict().items() if name not in own))

    def layer(self, layer: Layer, bits: int, kind: Kind) -> int:
        """The cost of one layer."""
        if kind == "bitops":
            width = widths(layer, bits)
            return layer.macs * width["weight_bits"] * width["input_bits"]
        # scale, zero, bias of a channel; scale, zero of input and output
        grids = 9 * layer.channels + 5 * (1 + layer.conv)
        return packed_bytes(layer.weights, bits) + grids

    def rest(self, kind: Kind) -> int:
        """The cost of what is not quantized."""
        if kind == "bytes":
            return self.bytes
        return (self.macs - sum(layer.macs for layer in self.layers)) * FLOAT_BITS**2

    def total(self, bits: Mapping[str, int], kind: Kind) -> int:
        """The cost of the child with these bits for each layer's name."""
        return self.rest(kind) + sum(self.layer(layer, bits[layer.name], kind) for layer in self.layers)


def check_budget(costs: Costs, choices: Sequence[int], budget: BitBudget) -> None:
    """Refuse a budget that even the fewest bits everywhere exceed.

    Raises:
        ValueError: it is; and by how much.
    """
    rest = costs.rest(budget.kind)
    least = sum(min(costs.layer(layer, bits, budget.kind) for bits in choices) for layer in costs.layers) + rest
    if least > budget.most:
        fixed = f", {rest:,} of them for what is not quantized" if rest else ""
        fewer_help = min(choices) > (2 if budget.kind == "bitops" else NIBBLE_BITS) and rest < budget.most
        advice = "fewer bits (--bits)" if fewer_help else "a smaller child"
        raise ValueError(
            f"max_{budget.kind} is {budget.most:,}, but {min(choices)} bits in every layer already take {least:,}"
            f"{fixed}: {least - budget.most:,} are missing; raise it, or take {advice}"
        )


def sensitivities(
    child: nn.Module,
    layers: Sequence[Layer],
    choices: Sequence[int],
    batches: Sequence[Tensor],
    layer_done: Callable[[str], None] = lambda _: None,
) -> np.ndarray:
    """The output's sensitivity to each layer: how much it moves when that layer alone has fewer bits than the most.

    All layers are rounded to the nearest, which takes seconds where layers trained for every width (as in
    arXiv:2006.10518) take minutes.

    Args:
        layer_done: called twice with each layer's name.

    Returns:
        Increase of the mean square difference to the child's own output, ``(layers, choices)``, at least 0.
    """
    found, base = {}, copy.deepcopy(child)
    for layer in layers:
        xs = seen(child, layer.name, batches)
        for bits in choices:
            one = AdaQuantLayer(float_layer(child, layer.name), **widths(layer, bits), xs=xs)
            found[layer.name, bits] = one.freeze(xs, layer.relu)
        base.set_submodule(layer.name, found[layer.name, max(choices)])
        layer_done(layer.name)
    targets = outputs(child, batches)
    least, rows = difference(base, batches, targets), []
    for layer in layers:
        row = []
        for bits in choices:
            base.set_submodule(layer.name, found[layer.name, bits])
            row.append(max(difference(base, batches, targets) - least, 0.0) if bits != max(choices) else 0.0)
        base.set_submodule(layer.name, found[layer.name, max(choices)])
        rows.append(row)
        layer_done(layer.name)
    return np.array(rows)


def allocated(
    child: nn.Module,
    costs: Costs,
    choices: Sequence[int],
    budget: BitBudget,
    batches: Sequence[Tensor],
    layer_done: Callable[[str], None] = lambda _: None,
) -> dict[str, int]:
    """Bits for each layer's name, within the budget, with the least sum of `sensitivities`.

    Raises:
        ValueError: there are none, and by how much.
    """
    check_budget(costs, choices, budget)
    losses = sensitivities(child, costs.layers, choices, batches, layer_done)
    prices = np.array([[costs.layer(layer, bits, budget.kind) for bits in choices] for layer in costs.layers])
    chosen = allocate(losses, prices, budget.most - costs.rest(budget.kind))
    return {layer.name: choices[column] for layer, column in zip(costs.layers, chosen, strict=True)}


@torch.no_grad()
def outputs(net: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """The network's output for each batch."""
    return [net(x) for x in batches]


@torch.no_grad()
def difference(net: nn.Module, batches: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    """The calibration loss: mean square difference of outputs over batches of the same size.

    It needs no labels, and suits every task.
    """
    return sum(float((net(x) - y).square().mean()) for x, y in zip(batches, targets, strict=True)) / len(batches)


def allocate(losses: np.ndarray, prices: np.ndarray, most: int) -> list[int]:
    """The choice for each layer with the least sum of losses within a budget, by integer programming (HiGHS).

    Args:
        losses: ``(layers, choices)``.
        prices: whole numbers ``(layers, choices)``.
        most: the largest sum of prices.

    Raises:
        ValueError: there is none.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # a second of importing, so where it is used

    count, choices = losses.shape
    extra = prices - prices.min(1, keepdims=True)
    # over the least that any choice costs: what the solver's tolerance is relative to
    left = most - int(prices.min(1).sum())
    if left < 0:
        raise ValueError(f"no choice of bits costs at most {most:,}; the least is {most - left:,}")
    weights = np.minimum(extra, left + 1).reshape(1, -1) / max(left, 1)
    affordable = Bounds(0, (extra <= left).ravel().astype(float))
    one_each = LinearConstraint(np.kron(np.eye(count), np.ones(choices)), 1, 1)
    scale = losses.max() or 1.0  # the solver's tolerances are absolute
    bound = 1.0
    for _ in range(3):
        within = LinearConstraint(weights, -np.inf, bound)
        found = milp(
            losses.ravel() / scale,
            integrality=np.ones(losses.size),
            bounds=affordable,
            constraints=[one_each, within],
            options={"mip_rel_gap": 0},
        )
        if found.x is None:
            break
        chosen = found.x.reshape(count, choices).argmax(1)
        if sum(int(prices[row, column]) for row, column in enumerate(chosen)) <= most:
            return [int(column) for column in chosen]
        bound -= 1e-6  # within the solver's tolerance, but over the budget
    raise ValueError(f"the solver found no choice of bits that costs at most {most:,}; give some more")
