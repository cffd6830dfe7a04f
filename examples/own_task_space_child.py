"""The child of `own_task_space`, as fixed torch layers. Imports torch alone: export copies this file."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SegmenterChild(nn.Module):
    """Pixels in [0, 1] to a map of logits of the same height and width.

    Args:
        mean, std: of the pixels, one number a channel.
        width: channels of every layer.
        depth: convolutions at half of the resolution.
        classes: of a pixel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float], width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.config = {"mean": mean, "std": std, "width": width, "depth": depth, "classes": classes}
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        sizes = [(len(mean), 1), (width, 2), *[(width, 1)] * depth]
        self.convs = nn.ModuleList(nn.Conv2d(c_in, width, 3, stride, 1, bias=False) for c_in, stride in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in sizes)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, C, H, W)``, even sides -> logits ``(N, classes, H, W)``."""
        fine = x = (x - self.mean) / self.std
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            fine = x if number == 0 else fine
        return self.head(fine + F.interpolate(x, scale_factor=2.0, mode="nearest"))
