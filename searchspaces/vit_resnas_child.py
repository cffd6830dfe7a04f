"""The child of a ViT-ResNAS supernet, as fixed torch layers. Imports torch and the shared blocks alone: export
copies this file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.static import Pixels, channels_last


class Stem(nn.Module):
    """Three 3x3 convolutions with a skip from the first to the last, and a projection of patches (spatial stride
    `patch` in all).

    An odd patch leaves the first convolution without its stride of 2.
    """

    def __init__(
        self, channels: int, mid: int, width: int, patch: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        stride = 1 if patch % 2 else 2
        self.conv1 = nn.Conv2d(channels, mid, 3, stride, 1, bias=False)
        self.norm1 = norm(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, padding=1, bias=False)
        self.norm2 = norm(mid)
        self.conv3 = nn.Conv2d(mid, mid, 3, padding=1, bias=False)
        self.norm3 = norm(mid)
        self.project = nn.Conv2d(mid, width, patch // stride, patch // stride)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, C, R, R)`` -> tokens ``(N, (R / patch) ** 2, width)``."""
        first = F.relu(self.norm1(channels_last(self.conv1(channels_last(x)))))
        out = F.relu(self.norm2(self.conv2(first)))
        out = F.relu(self.norm3(self.conv3(out))) + first
        return self.project(out).flatten(2).transpose(1, 2)


def pool(x: Tensor, width: int) -> Tensor:
    """The parameter-free skip of a spatial reduction: 2x2 means of the patches, the class token as it is, zeros for new
    channels.

    x: ``(N, 1 + S * S, c)`` -> ``(N, 1 + S * S / 4, width)``.
    """
    side = round((x.shape[1] - 1) ** 0.5)
    patches = x[:, 1:].unflatten(1, (side // 2, 2, side // 2, 2)).mean((2, 4)).flatten(1, 2)
    return F.pad(torch.cat((x[:, :1], patches), 1), (0, width - x.shape[-1]))


class Reduction(nn.Module):
    """Residual spatial reduction: a quarter of the patches, more channels; a learned branch and the skip of `pool`.

    Args:
        c_in, c_out: widths before and after.
        side: of the patches' grid afterwards.
    """

    def __init__(self, c_in: int, c_out: int, side: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c_in, eps=1e-6)
        self.conv = nn.Conv2d(c_in, c_out, 3, 2, 1)
        self.token = nn.Linear(c_in, c_out)
        self.position = nn.Parameter(torch.zeros(side * side, c_out))

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, 1 + (2 * side) ** 2, c_in)`` -> ``(N, 1 + side ** 2, c_out)``."""
        y = self.norm(x)
        side = round((x.shape[1] - 1) ** 0.5)
        patches = self.conv(y[:, 1:].transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)
        return torch.cat((self.token(y[:, :1]), patches + self.position), 1) + pool(x, self.token.out_features)


class Block(nn.Module):
    """Pre-norm transformer block: attention whose heads have a fixed size, then a GELU network of two layers, both
    residual."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.head_dim = head_dim
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        self.proj = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, tokens, width)`` -> the same shape."""
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(2, (-1, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Stage(nn.Module):
    """A spatial reduction (none in the first stage), then blocks, which keep the numbers that they had in the
    supernet."""

    def __init__(self, reduce: nn.Module | None, blocks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.reduce = reduce
        self.blocks = nn.ModuleDict(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, tokens, c)`` -> ``(N, tokens or a quarter, width)``."""
        x = x if self.reduce is None else self.reduce(x)
        for block in self.blocks.values():
            x = block(x)
        return x


class ViTResNASChild(nn.Module):
    """A multi-stage vision transformer cut out of a ViT-ResNAS supernet: pixels in [0, 1] to logits.

    Args:
        mean, std: of the pixels, one number a channel.
        side: in pixels, of what the stem sees; `pad` of them on each edge are zeros, the image is resized to the rest.
        patch: pixels along a token of the first stage.
        stem: channels within the stem.
        stages: for each its ``width``, ``head_dim`` and ``blocks``: by number, each with its ``heads`` and ``hidden``.
        classes: how many there are.
    """

    def __init__(
        self,
        mean: list[float],
        std: list[float],
        side: int,
        pad: int,
        patch: int,
        stem: int,
        stages: list[dict[str, Any]],
        classes: int,
    ) -> None:
        super().__init__()
        self.config = {
            "mean": mean,
            "std": std,
            "side": side,
            "pad": pad,
            "patch": patch,
            "stem": stem,
            "stages": stages,
            "classes": classes,
        }
        self.pad = pad
        grid, width = side // patch, stages[0]["width"]
        self.pixels = Pixels(mean, std, side - 2 * pad)
        self.stem = Stem(len(mean), stem, width, patch)
        self.token = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(torch.zeros(1 + grid * grid, width))
        self.stages = nn.ModuleList()
        for number, stage in enumerate(stages):
            reduce = Reduction(width, stage["width"], grid // 2**number) if number else None
            width = stage["width"]
            blocks = {key: Block(width, head_dim=stage["head_dim"], **sizes) for key, sizes in stage["blocks"].items()}
            self.stages.append(Stage(reduce, blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, C, H, W)``, pixels in [0, 1] -> logits ``(N, classes)``."""
        x = self.stem(F.pad(self.pixels(x), (self.pad,) * 4))
        x = torch.cat((self.token.expand(x.shape[0], 1, -1), x), 1) + self.position
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x[:, 0]))
