"""Tiles equal the whole image, and what they cost is told."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.build import load_supernet
from nas.tasks.pictures import most_different
from nas.tasks.super_resolution import SuperResolution
from nas.tasks.tiles import in_tiles
from nas.testing.space import ready
from tests.tasks.photographs import settings


def small_net(layers: int) -> nn.Module:
    """Sees `layers` pixels to each side."""
    torch.manual_seed(0)
    layered = [part for _ in range(layers) for part in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layered, nn.Conv2d(3, 12, 1), nn.PixelShuffle(2))


class Brightened(nn.Module):
    """Looks at the whole image: its mean goes a little towards the middle."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x + 0.1 * (0.5 - x.mean((1, 2, 3), keepdim=True)), scale_factor=2)


@pytest.mark.parametrize("shape", [(37, 53), (16, 40), (40, 16), (17, 17), (9, 8)])
@torch.no_grad()
def test_tiles_equal_the_whole_where_the_network_sees_no_further(shape: tuple[int, int]) -> None:
    x, net = torch.rand(2, 3, *shape), small_net(3)
    assert torch.allclose(in_tiles(net, x, 2, side=16, overlap=3), net(x), atol=1e-6)
    if max(shape) > 16:
        assert not torch.allclose(in_tiles(net, x, 2, side=16, overlap=2), net(x), atol=1e-6)


@torch.no_grad()
def test_the_largest_network_of_the_basic_space_sees_no_further_than_tiles_overlap() -> None:
    """By default; where ADQ does not look at the whole image."""
    torch.manual_seed(0)
    net = ready(load_supernet("quantnas", "basic", scale=2, adq=False)).double()
    for weight in net.parameters():
        weight.data.mul_(4.0)  # fresh ones are so small that the far end of what is seen is lost in rounding
    x, overlap = torch.rand(1, 3, 61, 50, dtype=torch.double), settings().overlap
    whole = net(x, net.space.largest())
    for given, same in ((overlap, True), (overlap - 2, False)):
        tiled = in_tiles(lambda part: net(part, net.space.largest()), x, 2, side=24, overlap=given)
        assert torch.allclose(tiled, whole, atol=1e-12) is same


def tile_loss(task: SuperResolution, child: Callable[[Tensor], Tensor], x: Tensor, truth: Tensor) -> float:
    """How much PSNR tiles cost, dB; 0 where the child sees no further than ``data.overlap``, or nothing is tiled."""
    whole, tiled = (task.summarise(task.scores(output, truth))["psnr"] for output in (child(x), task.predict(child, x)))
    return whole - tiled


@torch.no_grad()
def test_what_tiles_cost_is_told(photos: SuperResolution) -> None:
    task = SuperResolution(settings(tile=64, overlap=4), 0)
    x, y = task.test.batch(np.array([0]))
    assert abs(tile_loss(task, small_net(3), x, y)) < 1e-3
    lost = tile_loss(task, Brightened(), x, y)
    assert abs(lost) > 0.02 and tile_loss(photos, Brightened(), x, y) == 0
    picture = task.pictures(Brightened(), torch.device("cpu"))[0]
    tiled, whole = map(float, re.findall(r"(-?[\d.]+) dB", picture.panels[2].note))
    assert whole - tiled == pytest.approx(lost, abs=0.011)


def test_the_square_where_images_differ_most() -> None:
    torch.manual_seed(0)
    images = [torch.rand(1, 3, 30, 41).round(decimals=2) for _ in range(3)]
    variance = torch.cat(images).double().var(0, correction=0).sum(0)
    places = {(t, s): float(variance[t : t + 9, s : s + 9].sum()) for t in range(22) for s in range(33)}
    assert most_different(images, 9) == (*max(places, key=lambda place: places[place]), 9)
    images[1][..., 21:, 32:] += 5
    assert most_different(images, 9) == (21, 32, 9)
    assert most_different(images, 100) == (0, 11, 30)
