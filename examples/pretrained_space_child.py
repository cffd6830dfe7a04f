"""The child of `pretrained_space`, as fixed torch layers. Imports torch alone: export copies this file beside the
weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Basic(nn.Module):
    """ResNet's basic block (He et al. 2016, figure 5 left): two 3x3 convolutions beside their input, `middle` channels
    between them."""

    def __init__(self, c_in: int, middle: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c_in, middle, 3, stride, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2, self.norm2 = nn.Conv2d(middle, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.shortcut, self.shortcut_norm = None, None
        if c_in != c_out:
            self.shortcut, self.shortcut_norm = nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return F.relu(out + x)


class ResNet18Child(nn.Module):
    """A residual classifier: pixels in [0, 1] to logits.

    Args:
        mean, std: of the pixels, one number a channel.
        stages: for each stage its blocks, each the keyword arguments of `Basic`.
        classes: how many there are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float], stages: list[list[dict[str, int]]], classes: int) -> None:
        super().__init__()
        self.config = {"mean": mean, "std": std, "stages": stages, "classes": classes}
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        stem = stages[0][0]["c_in"]
        self.stem, self.norm = nn.Conv2d(len(mean), stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem)
        self.stages = nn.ModuleList(nn.ModuleList(Basic(**block) for block in stage) for stage in stages)
        self.classifier = nn.Linear(stages[-1][-1]["c_out"], classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, C, H, W)`` -> logits ``(N, classes)``."""
        x = F.relu(self.norm(self.stem((x - self.mean) / self.std)))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            for block in stage.children():
                x = block(x)
        return self.classifier(x.mean((2, 3)))
