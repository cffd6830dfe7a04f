"""A slot of a QuantNAS supernet: every operation that it may hold, at any of its widths, alone or mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.quantization.learned import QuantConv2d, noisy_weight, strength
from searchspaces.quantnas_child import OPERATIONS, SlotShape, chain


class ElasticSlot(nn.Module):
    """The operations that one place may hold, all of the same sizes outside.

    A narrower slot has the first channels of a wider one, in and out: so output channel o of any width and operation
    is made for the same feature, and has the same quantizer steps.

    Args:
        shape: where it stands, at its widest.
        operations, bits: what it may be.
        input_bits: as in `QuantConv2d`, of the first convolution of each.
        shared: single convolutions are windows of one whole kernel: smaller ones its centre, groups the blocks on its
            diagonal. The diagonal is that of the channels there are, so the blocks of a narrower slot lie elsewhere.
    """

    def __init__(
        self, shape: SlotShape, operations: Sequence[str], bits: Sequence[int], input_bits: int | None, shared: bool
    ) -> None:
        super().__init__()
        self.name, self.operations, self.bits = shape.name, tuple(operations), tuple(bits)
        sides = [OPERATIONS[name].kernel for name in operations if OPERATIONS[name].kind == "one"]
        shared = shared and len(sides) > 1
        common = None
        if shared:
            kernel = (max(sides), max(sides))
            common = shape.edge(shape.c_in, kernel, True)
            self.whole = nn.Parameter(torch.empty(shape.c_out, shape.c_in, *kernel).uniform_(-common, common))
        else:
            self.register_parameter("whole", None)
        for name in operations:
            lent = common if OPERATIONS[name].kind == "one" else None
            self.add_module(name, chain(shape, name, bits, input_bits, lent))

    def windows(self, shape: SlotShape) -> dict[str, Tensor]:
        """The weights of operations that have a window of the whole kernel, by their names in a child of that shape."""
        lent = {name: self._lent(name, shape) for name in self.operations}
        return {f"{name}.0.weight": weight for name, weight in lent.items() if weight is not None}

    def _lent(self, operation: str, shape: SlotShape) -> Tensor | None:
        """The window of the whole kernel that an operation is in a slot of that shape; None where its weights are its
        own."""
        if self.whole is None or OPERATIONS[operation].kind != "one":
            return None
        ((c_in, c_out, (side, _), groups),) = shape.layers(operation)
        edge = (self.whole.shape[-1] - side) // 2
        centre = self.whole[:c_out, :c_in, edge : edge + side, edge : edge + side]
        if groups == 1:
            return centre
        return torch.cat([rows.chunk(groups, 1)[n] for n, rows in enumerate(centre.chunk(groups))])

    def forward(self, x: Tensor, pick: tuple[str, int] | Tensor, shape: SlotShape, **how: Any) -> Tensor:
        """x: ``(N, c_in, H, W)`` -> ``(N, c_out, H, W)``.

        Args:
            pick: one operation and bit-width, or the probabilities ``(operations, bits)`` of a mixture.
            shape: with the channels of this pass.
            how: as `QuantConv2d` takes it.
        """
        if not isinstance(pick, Tensor):
            name, bits = pick
            return self._alone(name, x, [(bits, 1.0)], shape, how)
        shares = {}
        for name, row, values in zip(self.operations, pick, pick.detach().tolist(), strict=True):
            if any(values):
                shares[name] = [
                    (bits, share) for bits, share, value in zip(self.bits, row, values, strict=True) if value
                ]
        if how["quant"] == "real" or how["published"]:
            parts = [_mass(some) * self._alone(name, x, some, shape, how) for name, some in shares.items()]
        else:
            parts = self._merged(x, shares, shape, how)
        return sum(parts[1:], parts[0])

    def _merged(
        self, x: Tensor, shares: Mapping[str, list[tuple[int, Any]]], shape: SlotShape, how: Mapping[str, Any]
    ) -> list[Tensor]:
        """The parts of a mixture, of which all single convolutions are one, and all operations see one draw of noise.

        Their outputs are linear in the input and in its noise, which each takes in its own strength: so one convolution
        of both, with the sums of their kernels, gives the sum of all.
        """
        first = self._convs(next(iter(shares)))[0]
        generator, noise, x = how["generator"], None, first.rectified(x)
        if how["quant"] == "noise":
            each = [one for some in shares.values() for one in some]
            noise = first.input_noise(x, first.input_shares(each), generator)
        parts, kernels, side = [], [], max(OPERATIONS[name].kernel for name in shares)
        for name, some in shares.items():
            (conv, *rest), ((c_in, c_out, *_), *later) = self._convs(name), shape.layers(name)
            lent = self._lent(name, shape)
            weight = conv.first(c_in, c_out) if lent is None else lent
            weight = noisy_weight(weight, some, generator) if how["quant"] == "noise" else weight
            amount = 0.0 if noise is None else strength(conv.input_shares(some))
            if rest:
                seen = x if noise is None else x + noise * amount
                hidden = F.conv2d(seen, weight, None, 1, conv.padding)
                parts.append(_mass(some) * rest[0](hidden, some, out=later[0][1], **how))
            else:
                kernel = _mass(some) * _whole(weight, conv.groups, side)
                kernels.append(kernel if noise is None else torch.cat((kernel, kernel * amount), 1))
        if kernels:
            seen = x if noise is None else torch.cat((x, noise), 1)
            parts.append(F.conv2d(seen, sum(kernels[1:], kernels[0]), padding=side // 2))
        return parts

    def _alone(
        self, name: str, x: Tensor, shares: list[tuple[int, Any]], shape: SlotShape, how: Mapping[str, Any]
    ) -> Tensor:
        lent = self._lent(name, shape)
        for conv, (_, c_out, *_) in zip(self._convs(name), shape.layers(name), strict=True):
            x = conv(x, shares, weight=lent, out=c_out, **how)
        return x

    def _convs(self, operation: str) -> list[QuantConv2d]:
        return list(self.get_submodule(operation).children())  # type: ignore[arg-type]


def _mass(shares: Sequence[tuple[int, Any]]) -> Any:
    return sum(share for _, share in shares)


def _whole(weight: Tensor, groups: int, side: int) -> Tensor:
    """The kernels of a grouped or smaller convolution as those of a whole one of `side`: zeros elsewhere."""
    if groups > 1:
        blocks = [
            F.pad(part, (0, 0, 0, 0, n * part.shape[1], (groups - 1 - n) * part.shape[1]))
            for n, part in enumerate(weight.chunk(groups))
        ]
        weight = torch.cat(blocks)
    edge = (side - weight.shape[-1]) // 2
    return F.pad(weight, (edge,) * 4) if edge else weight
