"""The child of a BigNAS supernet, as fixed torch layers. Imports torch and the shared blocks alone: export copies
this file."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nas.static import ACTIVATIONS, ConvNorm, MBConv, Pixels, channels_last


class BigNASChild(nn.Module):
    """A convolutional classifier cut out of a BigNAS supernet: pixels in [0, 1] to logits.

    Args:
        mean, std: of the pixels, one number a channel.
        resolution: side in pixels that the input is resized to.
        stem: its channels; `stem_stride` its stride.
        stages: for each stage its blocks, each the keyword arguments of `MBConv`.
        head: channels of the 1x1 convolution before pooling.
        feature: width of the layer between pooling and classifier; 0 for none.
        classes: how many there are.
        act: of stem, head and feature layer, one of `nas.static.ACTIVATIONS`.
    """

    def __init__(
        self,
        mean: list[float],
        std: list[float],
        resolution: int,
        stem: int,
        stem_stride: int,
        stages: list[list[dict[str, Any]]],
        head: int,
        feature: int,
        classes: int,
        act: str = "silu",
    ) -> None:
        super().__init__()
        sizes = {"resolution": resolution, "stem": stem, "stem_stride": stem_stride, "stages": stages}
        ends = {"head": head, "feature": feature, "classes": classes, "act": act}
        self.config = {"mean": mean, "std": std, **sizes, **ends}
        self.act = ACTIVATIONS[act]
        self.pixels = Pixels(mean, std, resolution)
        self.stem = ConvNorm(len(mean), stem, 3, stem_stride, act=act)
        self.stages = nn.ModuleList(nn.ModuleList(MBConv(**block) for block in stage) for stage in stages)
        self.head = ConvNorm(stages[-1][-1]["c_out"], head, 1, act=act)
        self.feature = nn.Linear(head, feature, bias=False) if feature else None
        self.classifier = nn.Linear(feature or head, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, C, H, W)``, pixels in [0, 1] -> logits ``(N, classes)``."""
        x = channels_last(self.stem(channels_last(self.pixels(x))))
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
        x = self.head(x).mean((2, 3))
        if self.feature is not None:
            x = self.act(self.feature(x))
        return self.classifier(x)
