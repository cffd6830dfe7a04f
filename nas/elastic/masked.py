"""Several sub-networks in one pass of the largest network: channels that an example's own does not have are held at
zero.

Liao, Karaman, Sze, "Searching for Efficient Multi-Stage Vision Transformers" (2021), section 3.2. Every row costs what
the largest network costs. Masks are prefixes of ones, a row of the batch each. Imports torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.elastic.grouped import GroupedConv2d, GroupedLinear, Widths
from nas.elastic.layer_norm import ElasticLayerNorm


class Masked:
    """How the rows of one batch are divided among sub-networks; the methods are those of `Grouped`.

    The stream is zero wherever its row's mask is, after every method that changes it.

    Args:
        owner: int64 ``(N,)``, which sub-network each row belongs to.
    """

    def __init__(self, owner: Tensor) -> None:
        self.owner = owner
        self.known: dict[tuple[Widths, int, torch.dtype], Tensor] = {}

    def mask(self, widths: Widths, x: Tensor) -> Tensor:
        """``(N, 1, C)`` of ones and zeros for the C channels of x."""
        key = (tuple(widths), x.shape[-1], x.dtype)
        if key not in self.known:
            have = torch.tensor(widths, device=x.device)[self.owner]
            self.known[key] = (torch.arange(x.shape[-1], device=x.device) < have[:, None, None]).to(x.dtype)
        return self.known[key]

    def lay(self, whole: Tensor, widths: Widths) -> Tensor:
        """``(N, tokens, C)`` -> the same, masked."""
        return whole * self.mask(widths, whole)

    def whole(self, x: Tensor, width: int) -> Tensor:
        """As it is: ``(N, tokens, width)``."""
        return x

    def take(self, x: Tensor, widths: Widths, tokens: slice) -> Tensor:
        """Some of the tokens."""
        return x[:, tokens]

    def each(
        self, function: Callable[[Tensor, int], Tensor], x: Tensor, ins: Widths, outs: Widths, most: int
    ) -> Tensor:
        """``function((N, tokens, C), most)`` for all at once."""
        return function(x, most)

    def join(self, first: Tensor, second: Tensor, widths: Widths) -> Tensor:
        """The tokens of `second` after those of `first`."""
        return torch.cat((first, second), 1)

    def norm(self, layer: ElasticLayerNorm, x: Tensor, widths: Widths) -> Tensor:
        """Masked layer norm (the paper's MLN)."""
        return layer(x, self.mask(widths, x))

    def linear(self, layer: GroupedLinear, x: Tensor, ins: Widths, outs: Widths) -> Tensor:
        """The whole layer; x is masked already, the result is not."""
        return layer(x)

    def conv(self, layer: GroupedConv2d, x: Tensor, ins: Widths, outs: Widths) -> Tensor:
        """The whole convolution of the square image that the tokens are; the result is tokens again, not masked."""
        return layer(x.transpose(1, 2).unflatten(2, (round(x.shape[1] ** 0.5), -1))).flatten(2).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inner: Widths, head_dim: int) -> Tensor:
        """Self-attention with all heads, then the mask: heads do not see each other."""
        q, k, v = (t.unflatten(2, (-1, head_dim)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return out * self.mask(inner, out)

    def gelu(self, x: Tensor, widths: Widths) -> Tensor:
        """GELU, then the mask."""
        x = F.gelu(x)
        return x * self.mask(widths, x)

    def add(self, x: Tensor, branch: Tensor, widths: Widths, scale: Tensor | None = None) -> Tensor:
        """A residual branch added to the stream; its mask keeps the biases out of the dead channels."""
        mask = self.mask(widths, branch)
        return x + branch * (mask if scale is None else mask * scale[:, None, None])

    def run(
        self, block: nn.Module, x: Tensor, widths: Widths, sizes: Sequence[tuple[int, ...] | None], scales: Any
    ) -> Tensor:
        """``block(stream, layout, widths, *sizes, scales)``; both of its branches times 0 for the rows that do not
        have it."""
        have = [size for size in sizes if size is not None]
        if not have:
            return x
        if len(have) < len(sizes):
            there = torch.tensor([size is not None for size in sizes], device=x.device)[self.owner].to(x.dtype)
            scales = [there if scale is None else there * scale for scale in scales]
        told = zip(*(size or have[0] for size in sizes), strict=True)
        return block(x, self, widths, *told, scales)
