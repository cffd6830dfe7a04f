"""What tests of QuantNAS share: supernets, architectures by their groups, and images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nas.build import load_supernet
from nas.space import Arch
from searchspaces.quantnas import QuantNAS


def supernet(size: str, **options: Any) -> QuantNAS:
    torch.manual_seed(0)
    return load_supernet("quantnas", size, **options)  # type: ignore[return-value]


def basic(net: QuantNAS, bits: int, **operations: str) -> Arch:
    """An architecture of the first layout by its groups: ``head="conv3", body="fact3", ...``."""
    return net.space.named(
        {
            f"{shape.name}.{what}": value
            for shape in net.table.shapes
            for what, value in (("op", operations.get(shape.name, operations[shape.group])), ("bits", bits))
        }
    )


def pixels(rows: int = 2, side: int = 16) -> Tensor:
    """Images of whole grey levels."""
    return torch.randint(0, 256, (rows, 3, side, side), generator=torch.Generator().manual_seed(1)) / 255
