"""The child of `own_space`, as fixed torch layers. Imports torch alone: export copies this file beside the weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3x3 convolutions beside their input, which a 1x1 convolution brings to their size where `project` is 1."""

    def __init__(self, c_in: int, c_out: int, stride: int, project: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.norm2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class ResNetChild(nn.Module):
    """A residual classifier: pixels in [0, 1] to logits.

    Args:
        mean, std: of the pixels, one number a channel.
        stem: channels of the first convolution.
        stages: for each stage its blocks, each the keyword arguments of `Residual`.
        classes: how many there are.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: list[float], std: list[float], stem: int, stages: list[list[dict[str, int]]], classes: int
    ) -> None:
        super().__init__()
        self.config = {"mean": mean, "std": std, "stem": stem, "stages": stages, "classes": classes}
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.stem, self.norm = nn.Conv2d(len(mean), stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem)
        self.stages = nn.ModuleList(nn.ModuleList(Residual(**block) for block in stage) for stage in stages)
        self.classifier = nn.Linear(stages[-1][-1]["c_out"], classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, C, H, W)`` -> logits ``(N, classes)``."""
        x = F.relu(self.norm(self.stem((x - self.mean) / self.std)))
        for stage in self.stages:
            for block in stage.children():
                x = block(x)
        return self.classifier(x.mean((2, 3)))
