"""Elastic linear layer: prefix of the features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ElasticLinear(nn.Linear):
    """A linear layer whose input width comes from the input and whose output width is an argument of each call."""

    def forward(self, x: Tensor, out: int | None = None) -> Tensor:
        """x: ``(..., i)`` -> ``(..., out)``, the first i columns and `out` rows of the weight."""
        out = out or self.out_features
        if out > self.out_features:
            raise ValueError(f"asked for {out} features; this layer has {self.out_features}")
        return F.linear(x, self.weight[:out, : x.shape[-1]], None if self.bias is None else self.bias[:out])
