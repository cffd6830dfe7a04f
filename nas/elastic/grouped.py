"""Several sub-networks in one pass, each at its own size: a small one costs what it costs. Imports torch alone.

The activations of all sub-networks lie one after another in one flat tensor: group g holds ``(examples, tokens,
width)`` of its own. What works element by element runs once over all; a linear layer runs once a group, on the prefix
of its weight, and adds all their gradients into one buffer of the weight's size (slicing with autograd would make and
add a full-size one for each).

Layers take and give plain tensors and are called as modules, which DeepSpeed's ZeRO 3 needs to see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.elastic.layer_norm import ElasticLayerNorm, merged, views

Widths = Sequence[int]  # of one axis, a number for each sub-network
TABLES = 128  # of indices that are kept: numbers of examples and heads come again, at three sizes of a picture
Prefix = tuple[int, int, int]  # rows, input features, output features of a layer that several sub-networks run


class GroupedLinear(nn.Linear):
    """A linear layer that runs any number of prefixes of itself; without `groups`, all of itself."""

    def forward(self, x: Tensor, groups: Sequence[Prefix] | None = None) -> Tensor:
        """x: flat, ``rows * in`` for each group -> flat, ``rows * out``; without `groups` ``(..., in)`` -> ``(...,
        out)``."""
        return F.linear(x, self.weight, self.bias) if groups is None else _linear(x, self.weight, self.bias, groups)


class GroupedConv2d(nn.Conv2d):
    """A convolution that runs any number of prefixes of itself on patches that were cut out already
    (`torch.nn.functional.unfold`)."""

    def forward(self, x: Tensor, groups: Sequence[Prefix] | None = None) -> Tensor:
        """x: flat, ``rows * in * kernel * kernel`` for each group -> flat, ``rows * out``; without `groups` an
        image, as usual."""
        if groups is None:
            return super().forward(x)
        taps = self.kernel_size[0] * self.kernel_size[1]
        assert self.bias is not None
        return _linear(
            x, self.weight.flatten(1), self.bias, [(rows, c_in * taps, c_out) for rows, c_in, c_out in groups]
        )


def _linear(x: Tensor, weight: Tensor, bias: Tensor, groups: Sequence[Prefix]) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):  # autocast knows torch's own functions alone
        x, weight, bias = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, weight, bias))
    return _GroupedLinear.apply(x, weight, bias, groups)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: Sequence[Prefix]) -> Tensor:
        groups = merged(groups)
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        out, pitch = x.new_empty(sum(rows * o for rows, _, o in groups)), weight.stride(0)
        inputs, outputs = (
            views(x, [(rows, i) for rows, i, _ in groups]),
            views(out, [(rows, o) for rows, _, o in groups]),
        )
        for (_, i, o), part, result in zip(groups, inputs, outputs, strict=True):
            torch.addmm(bias[:o], part, weight.as_strided((i, o), (1, pitch)), out=result)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (x, weight), groups = ctx.saved_tensors, ctx.groups
        of_x, of_weight, of_bias, pitch = (
            torch.empty_like(x),
            torch.zeros_like(weight),
            weight.new_zeros(len(weight)),
            weight.stride(0),
        )
        ins, outs = [(rows, i) for rows, i, _ in groups], [(rows, o) for rows, _, o in groups]
        for (_, i, o), part, into, grad in zip(
            groups, views(x, ins), views(of_x, ins), views(gradient.contiguous(), outs), strict=True
        ):
            torch.mm(grad, weight.as_strided((o, i), (pitch, 1)), out=into)
            of_weight.as_strided((o, i), (pitch, 1)).addmm_(grad.t(), part)
            of_bias[:o].add_(grad.sum(0))
        return of_x, of_weight, of_bias, None


class _Reorder(torch.autograd.Function):
    """Rows in another order; `back` undoes it. (Autograd's own gradient of indexing would add row by row.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.orders = back, order
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Reorder.apply(gradient, *ctx.orders), None, None


class Grouped:
    """How the rows of one batch are divided among sub-networks that run side by side, and what is done to their
    activations.

    `Masked` has the same methods; a layer is written once for both.

    Args:
        counts: examples of each sub-network.
        order: int64, their rows of the batch, those of one sub-network after those of another.
    """

    def __init__(self, counts: Sequence[int], order: Tensor) -> None:
        self.counts = counts
        self.order = order

    def _rows(self, x: Tensor, widths: Widths) -> list[int]:
        """Rows of each group (examples times tokens): how many tokens an example has follows from the length."""
        tokens = x.numel() // sum(count * width for count, width in zip(self.counts, widths, strict=True))
        return [count * tokens for count in self.counts]

    def _views(self, x: Tensor, widths: Widths) -> list[Tensor]:
        """The groups as ``(examples, tokens, width)``."""
        parts = x.split([rows * width for rows, width in zip(self._rows(x, widths), widths, strict=True)])
        return [part.view(n, -1, width) for n, width, part in zip(self.counts, widths, parts, strict=True)]

    def lay(self, whole: Tensor, widths: Widths) -> Tensor:
        """``(N, tokens, largest width)`` in the order of the batch -> the first channels of every row."""
        parts = whole[self.order].split(list(self.counts))
        return torch.cat([part[..., :width].reshape(-1) for part, width in zip(parts, widths, strict=True)])

    def whole(self, x: Tensor, width: int) -> Tensor:
        """Activations of one common width -> ``(N, tokens, width)`` in the order of the batch."""
        return x.view(len(self.order), -1, width)[self.back]

    @cached_property
    def back(self) -> Tensor:
        """int64, where each row of the batch is."""
        return self.order.argsort()

    def take(self, x: Tensor, widths: Widths, tokens: slice) -> Tensor:
        """Some of the tokens."""
        return torch.cat([part[:, tokens].reshape(-1) for part in self._views(x, widths)])

    def each(
        self, function: Callable[[Tensor, int], Tensor], x: Tensor, ins: Widths, outs: Widths, most: int
    ) -> Tensor:
        """``function((examples, tokens, in), out)`` for each sub-network; `most` is the largest `out` of all."""
        return torch.cat([function(part, out).reshape(-1) for part, out in zip(self._views(x, ins), outs, strict=True)])

    def join(self, first: Tensor, second: Tensor, widths: Widths) -> Tensor:
        """The tokens of `second` after those of `first`."""
        pairs = zip(self._views(first, widths), self._views(second, widths), strict=True)
        return torch.cat([torch.cat(pair, 1).view(-1) for pair in pairs])

    def norm(self, layer: ElasticLayerNorm, x: Tensor, widths: Widths) -> Tensor:
        """Layer norm over every row's own channels."""
        return layer(x, list(zip(self._rows(x, widths), widths, strict=True)))

    def linear(self, layer: GroupedLinear, x: Tensor, ins: Widths, outs: Widths) -> Tensor:
        """A linear layer, the first `ins` columns and `outs` rows of its weight."""
        return layer(x, list(zip(self._rows(x, ins), ins, outs, strict=True)))

    def conv(self, layer: GroupedConv2d, x: Tensor, ins: Widths, outs: Widths) -> Tensor:
        """A convolution of the square image that the tokens are; the result is tokens again."""

        def cut(tokens: Tensor, width: int) -> Tensor:
            image = tokens.transpose(1, 2).unflatten(2, (round(tokens.shape[1] ** 0.5), -1))
            return F.unfold(image, layer.kernel_size, padding=layer.padding, stride=layer.stride).transpose(1, 2)  # type: ignore[arg-type]

        taps = layer.kernel_size[0] * layer.kernel_size[1]
        patches = self.each(cut, x, ins, ins, layer.in_channels)
        return layer(patches, list(zip(self._rows(patches, [width * taps for width in ins]), ins, outs, strict=True)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inner: Widths, head_dim: int) -> Tensor:
        """Self-attention; heads do not see each other, so those of all sub-networks are one batch."""
        tokens = self._rows(q, inner)[0] // self.counts[0]
        order, back = _heads_first(self.counts, tokens, [width // head_dim for width in inner], q.device)
        heads = (_Reorder.apply(t.view(-1, head_dim), order, back).view(1, -1, tokens, head_dim) for t in (q, k, v))
        out = F.scaled_dot_product_attention(*heads)
        return _Reorder.apply(out.reshape(-1, head_dim), back, order).view(-1)

    def gelu(self, x: Tensor, widths: Widths) -> Tensor:
        """GELU of activations of these widths."""
        return F.gelu(x)

    def add(self, x: Tensor, branch: Tensor, widths: Widths, scale: Tensor | None = None) -> Tensor:
        """A residual branch added to the stream, each example's times its entry of `scale` ``(N,)``."""
        if scale is None:
            return x + branch
        tokens = self._rows(x, widths)[0] // self.counts[0]
        sizes = torch.tensor(
            [tokens * width for count, width in zip(self.counts, widths, strict=True) for _ in range(count)],
            device=x.device,
        )
        return x + branch * scale[self.order].repeat_interleave(sizes, output_size=len(x))

    def run(
        self, block: nn.Module, x: Tensor, widths: Widths, sizes: Sequence[tuple[int, ...] | None], scales: Any
    ) -> Tensor:
        """``block(stream, layout, widths, *sizes, scales)`` for the sub-networks that have the block; the others'
        stream goes by.

        Args:
            widths: of the stream.
            sizes: what else the block is told about each sub-network, in a list for each number; None for one that
                drops it.
            scales: of its residual branches, see `add`.
        """
        have = [group for group, size in enumerate(sizes) if size is not None]
        if not have:
            return x
        told = zip(*(size for size in sizes if size is not None), strict=True)
        if len(have) == len(sizes):
            return block(x, self, widths, *told, scales)
        parts = list(x.split([rows * width for rows, width in zip(self._rows(x, widths), widths, strict=True)]))
        out = block(
            torch.cat([parts[group] for group in have]),
            self._of(have),
            [widths[group] for group in have],
            *told,
            scales,
        )
        for group, part in zip(have, out.split([len(parts[group]) for group in have]), strict=True):
            parts[group] = part
        return torch.cat(parts)

    def _of(self, groups: Sequence[int]) -> Grouped:
        """Some of the sub-networks alone; `scale` of `add` is still that of the whole batch."""
        rows = self.order.split(list(self.counts))
        return Grouped([self.counts[group] for group in groups], torch.cat([rows[group] for group in groups]))


def _heads_first(
    counts: Sequence[int], tokens: int, heads: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where the rows of groups ``(examples, tokens, heads)`` are once they are ``(examples, heads, tokens)``, and
    the way back."""
    groups = list(zip(counts, heads, strict=True))
    starts = list(accumulate((count * tokens * number for count, number in groups), initial=0))[:-1]
    there, back = zip(*(_of_one(count, tokens, number, device) for count, number in groups), strict=True)
    return torch.cat(torch._foreach_add(there, starts)), torch.cat(torch._foreach_add(back, starts))


@lru_cache(TABLES)
def _of_one(count: int, tokens: int, heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`_heads_first` of one group alone; it stays on the device, to which a table of every pass would be sent anew."""
    rows = torch.arange(count * tokens * heads)
    there = rows.view(count, tokens, heads).transpose(1, 2).reshape(-1)
    back = rows.view(count, heads, tokens).transpose(1, 2).reshape(-1)
    return there.to(device), back.to(device)
