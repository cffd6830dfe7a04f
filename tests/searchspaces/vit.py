"""What tests of ViT-ResNAS share: small supernets with random weights, images, children."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nas.build import load_supernet
from nas.space import Arch
from nas.supernet import inherit
from searchspaces.vit_resnas import ViTResNAS


def random_weights(net: nn.Module, seed: int = 0) -> None:
    """Every parameter random, also those that begin as zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.1)


def supernet(size: str = "d8", multi: str = "grouped") -> ViTResNAS:
    """In float64, with random weights."""
    torch.manual_seed(0)
    net = load_supernet("vit_resnas", size, multi=multi).double()
    random_weights(net)
    assert isinstance(net, ViTResNAS)
    return net


def draw(net: ViTResNAS, count: int, seed: int = 0) -> list[Arch]:
    rng = np.random.default_rng(seed)
    return [net.space.sample(rng) for _ in range(count)]


def images(net: ViTResNAS, count: int) -> Tensor:
    return torch.rand(count, *net.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def child_of(net: ViTResNAS, arch: Arch) -> nn.Module:
    """Extracted, in the supernet's precision, its stem normalising over the batch as the supernet's does."""
    child = net.extract(arch).double()
    inherit(child, net)
    return child.train()
