"""Correction of a quantized child as a whole: means and deviations of its channels restored, then its biases trained.

Each is kept only where it lowers the calibration loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas.quantization.adaquant import put_bias, seen, set_grid
from nas.quantization.allocate import difference, outputs
from nas.quantization.graph import integer_layer_of
from nas.quantization.integer import IntegerConv2d

PASSES = 10
BIAS_LR = 1e-3  # of the deviation of a layer's output


def correct(
    net: nn.Module,
    child: nn.Module,
    names: Sequence[str],
    batches: Sequence[Tensor],
    held: int,
    step_done: Callable[[str], None] = lambda _: None,
) -> tuple[nn.Module, dict[str, float]]:
    """The quantized `net` with those corrections that lower its difference to `child` on the last `held` batches.

    Args:
        names: of the quantized layers, in the order they run.
        step_done: called with ``statistics`` and ``biases``.

    Returns:
        The network, and its difference: ``before``, and after ``statistics`` and ``biases`` each, kept or not.
    """
    targets = outputs(child, batches)
    best = difference(net, batches[-held:], targets[-held:])
    losses = {"before": best}
    for what, method in (("statistics", statistics), ("biases", biases)):
        corrected = method(net, child, names, batches[:-held], targets[:-held])
        losses[what] = difference(corrected, batches[-held:], targets[-held:])
        if losses[what] < best:
            net, best = corrected, losses[what]
        step_done(what)
    return net, losses


@torch.no_grad()
def statistics(
    net: nn.Module, child: nn.Module, names: Sequence[str], batches: Sequence[Tensor], targets: Sequence[Tensor]
) -> nn.Module:
    """A copy of `net` whose channels have the mean and deviation that they had in `child`; the levels stay."""
    net = copy.deepcopy(net)
    for name in names:
        layer, conv = integer_layer_of(net, name), False
        if isinstance(layer, IntegerConv2d):  # before its grid, which begins at 0 where a ReLU follows
            conv, now = True, [layer.accumulated(x) for x in seen(net, name, batches)]
        else:
            now = seen(net, name, batches, output=True)
        mean, deviation = _moments(now, conv)
        was_mean, was = _moments(seen(child, name, batches, output=True), conv)
        ratio = torch.where((deviation > 0) & (was > 0), was / deviation, 1.0).clamp(0.5, 2)
        layer.scale.mul_(ratio)
        put_bias(layer, (layer.bias - mean) * ratio + was_mean)
        if isinstance(layer, IntegerConv2d):
            set_grid(layer.output, [layer.accumulated(x) for x in seen(net, name, batches)], layer.relu)
    return net


def _moments(xs: Sequence[Tensor], conv: bool) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel."""
    rows = torch.cat([x.transpose(0, 1).flatten(1) if conv else x.flatten(0, -2).t() for x in xs], 1)
    return rows.mean(1), rows.std(1)


def biases(
    net: nn.Module, child: nn.Module, names: Sequence[str], batches: Sequence[Tensor], targets: Sequence[Tensor]
) -> nn.Module:
    """A copy of `net` whose biases are trained together, by Adam on the difference of outputs."""
    net = copy.deepcopy(net)
    layers = [integer_layer_of(net, name) for name in names]
    groups: list[dict[str, Any]] = []
    for name, layer in zip(names, layers, strict=True):
        layer.bias.requires_grad_()
        deviation = float(seen(child, name, batches[:1], output=True)[0].std()) or 1.0
        groups.append({"params": [layer.bias], "lr": BIAS_LR * deviation})
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PASSES * len(batches))
    for _ in range(PASSES):
        for x, y in zip(batches, targets, strict=True):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
            schedule.step()
    for layer in layers:
        put_bias(layer.requires_grad_(False), layer.bias)
    return net
