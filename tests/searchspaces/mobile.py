"""What tests of BigNAS share: small supernets, and images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nas.build import load_supernet
from nas.testing.space import ready
from searchspaces.bignas import BigNAS


def small(size: str = "d8", **options: Any) -> BigNAS:
    torch.manual_seed(0)
    return ready(load_supernet("bignas", size, **options))  # type: ignore[return-value]


def images(net: BigNAS, rows: int = 6, side: int | None = None) -> Tensor:
    channels, own, _ = net.input_shape
    return torch.rand(rows, channels, side or own, side or own, generator=torch.Generator().manual_seed(1))
