"""Calibration of layers, one after the other: to the nearest level, or by AdaQuant (Hubara et al., arXiv:2006.10518).

Each layer is given weights, bias and grids for which its output differs least from that of the layer as it was, in mean
square over the calibration examples. It sees what the quantized layers before it give, and aims at what the network
gave before (the sequential variant of the paper).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.quantization.graph import Layer, float_layer
from nas.quantization.integer import (
    BIAS_LEVELS,
    Grid,
    IntegerConv2d,
    IntegerLayer,
    LayerBits,
    fake_quantize_affine,
    integer_layer,
)
from nas.quantization.levels import BYTE_BITS, top_level

PIXEL_BITS = 8
SAMPLE = 1 << 14  # values that the range of an activation is sought on
# Adam's, in levels; relative; in levels; share of the output's deviation
LEVELS_LR, SCALE_LR, ZERO_LR, BIAS_LR = 0.02, 0.003, 0.02, 0.003


class _Seen(Exception):
    """The layer has run; the rest of the network need not."""


@torch.no_grad()
def seen(net: nn.Module, name: str, batches: Sequence[Tensor], output: bool = False) -> list[Tensor]:
    """What comes into the layer of that name (or out of it) for each batch; the network is run up to there."""
    found: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor | None = None) -> None:
        found.append(args[0] if out is None else out)
        raise _Seen

    layer = net.get_submodule(name)
    handle = layer.register_forward_hook(hook) if output else layer.register_forward_pre_hook(hook)
    for x in batches:
        try:
            net(x)
        except _Seen:
            continue
    handle.remove()
    return found


@torch.no_grad()
def best_grid(x: Tensor, top: int, centred: bool = False) -> tuple[Tensor, Tensor]:
    """Scale and zero point ``(rows,)`` of the grid on which each row of ``(rows, n)`` has the least mean square error.

    Sought over the row's range, which is made to include 0, cut at either end.

    Args:
        top: the highest level.
        centred: zero stays amid the levels.
    """
    low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    if centred:
        high = torch.maximum(high, -low)
        low = -high
    best, scale, zero = torch.full_like(low, torch.inf), torch.ones_like(low), torch.zeros_like(low)
    cuts = torch.linspace(1, 0.2, 17).tolist()
    for below in [None] if centred else cuts[::2]:
        for above in cuts:
            bottom = low * (above if below is None else below)
            step = ((high * above - bottom) / top).clamp(min=1e-8)
            origin = torch.full_like(low, (top + 1) // 2) if centred else (-bottom / step).round().clamp(0, top)
            error = (fake_quantize_affine(x, step[:, None], origin[:, None], top) - x).square().mean(1)
            better, pairs = error < best, ((error, best), (step, scale), (origin, zero))
            best, scale, zero = (torch.where(better, new, old) for new, old in pairs)
    return scale, zero


class AdaQuantLayer(nn.Module):
    """A layer whose levels, bias and grids are trained; it starts with the nearest levels of its best grids.

    Args:
        layer: as it was, a convolution or linear layer.
        xs: batches of what comes in.
        given: the grid that this is on already, if it is.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        weight_bits: int,
        input_bits: int,
        xs: Sequence[Tensor],
        given: Grid | None = None,
    ) -> None:
        super().__init__()
        self.given, self.layer = [given], [layer]  # in lists: their parameters are not this module's
        self.weight_bits, self.input_bits = weight_bits, input_bits
        weight, bias = layer.weight.detach(), layer.bias
        bias = torch.zeros(len(weight), device=weight.device) if bias is None else bias.detach()
        if given is None:
            input_scale, input_zero = best_grid(sample(xs)[None], top_level(input_bits))
        else:
            input_scale, input_zero = given.scale[None], given.zero.float()[None]
        scale, zero = best_grid(weight.flatten(1), top_level(weight_bits), centred=weight_bits == BYTE_BITS)
        scale = torch.maximum(scale, bias.abs() / (input_scale * BIAS_LEVELS))
        self.step = scale.view(-1, *[1] * (weight.dim() - 1))
        self.levels = nn.Parameter(weight / self.step)
        self.bias = nn.Parameter(bias.clone())
        self.log_scale, self.zero = nn.Parameter(scale.log()), nn.Parameter(zero)
        self.log_input, self.input_zero = nn.Parameter(input_scale[0].log()), nn.Parameter(input_zero[0])

    def quantized_weight(self) -> Tensor:
        """The weights on the grid as it is now, as floats."""
        top, shape = top_level(self.weight_bits), self.step.shape
        scale, zero = self.log_scale.exp().view(shape), self.zero.clamp(0, top).view(shape)
        return fake_quantize_affine(self.levels * self.step, scale, zero, top)

    def forward(self, x: Tensor) -> Tensor:
        top = top_level(self.input_bits)
        x = fake_quantize_affine(x, self.log_input.exp(), self.input_zero.clamp(0, top), top)
        return run(self.layer[0], x, self.quantized_weight(), self.bias)

    def groups(self, deviation: float) -> list[dict[str, Any]]:
        """Adam's parameter groups; `deviation` is that of the layer's output."""
        scales, zeros = [self.log_scale], [self.zero] if self.weight_bits < BYTE_BITS else []
        if self.given[0] is None:
            scales, zeros = [*scales, self.log_input], [*zeros, self.input_zero]
        groups = [(self.levels, LEVELS_LR), (self.bias, BIAS_LR * deviation)]
        groups += [(scale, SCALE_LR) for scale in scales] + [(zero, ZERO_LR) for zero in zeros]
        return [{"params": [parameter], "lr": lr} for parameter, lr in groups]

    @torch.no_grad()
    def freeze(self, xs: Sequence[Tensor], relu: bool = False) -> IntegerLayer:
        """The integer layer.

        Args:
            xs: inputs that the grid of what goes out is sought on.
            relu: a ReLU follows, and what it would take away does not count.
        """
        layer = integer_layer(self.layer[0], self.weight_bits, self.input_bits).to(self.bias.device)
        if self.given[0] is not None:
            layer.input = self.given[0]  # one object, so that they stay the same
        else:
            layer.input.scale.copy_(self.log_input.exp())
            layer.input.zero.copy_(self.input_zero.clamp(0, top_level(self.input_bits)).round())
        layer.scale.copy_(self.log_scale.exp())
        layer.zero.copy_(self.zero.clamp(0, top_level(self.weight_bits)).round())
        layer.weight.copy_((self.quantized_weight() / layer.scale.view(self.step.shape)).round())
        put_bias(layer, self.bias)
        if isinstance(layer, IntegerConv2d):
            layer.relu = relu
            set_grid(layer.output, [self(x) for x in xs], relu)
        return layer


@torch.no_grad()
def put_bias(layer: IntegerLayer, bias: Tensor) -> None:
    """Give an integer layer a bias, rounded to whole steps of its products as integer kernels have it."""
    step = layer.input.scale * layer.scale
    layer.bias.copy_((bias / step).round().clamp(-BIAS_LEVELS, BIAS_LEVELS) * step)


def run(layer: nn.Conv2d | nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution or linear layer with other weights."""
    return layer._conv_forward(x, weight, bias) if isinstance(layer, nn.Conv2d) else F.linear(x, weight, bias)


def sample(xs: Sequence[Tensor]) -> Tensor:
    """Some of all values, drawn always alike; the least and the greatest are among them."""
    values = torch.cat([x.flatten() for x in xs])
    if values.numel() <= SAMPLE:
        return values
    drawn = torch.randint(values.numel(), (SAMPLE,), generator=torch.Generator().manual_seed(0)).to(values.device)
    return torch.cat((values[drawn], torch.stack(values.aminmax())))


def set_grid(grid: Grid, outputs: Sequence[Tensor], relu: bool) -> None:
    """The best grid for these values, or for what a ReLU leaves of them."""
    values = sample(outputs)
    scale, zero = best_grid((values.relu() if relu else values)[None], top_level(grid.bits))
    grid.scale.copy_(scale[0])
    grid.zero.copy_(zero[0])


def adaquant(layer: AdaQuantLayer, xs: Sequence[Tensor], targets: Sequence[Tensor], held: int, iterations: int) -> None:
    """AdaQuant for one layer: train it until its output on `xs` is nearer to `targets` in mean square.

    What is not better on the last `held` batches is undone.
    """

    def error() -> float:
        with torch.no_grad():
            return sum(float((layer(x) - y).square().mean()) for x, y in zip(xs[-held:], targets[-held:], strict=True))

    deviation = float(torch.cat([y.flatten() for y in targets]).std()) or 1.0
    optimizer = torch.optim.Adam(layer.groups(deviation))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    before, start = error(), copy.deepcopy(layer.state_dict())
    for i in range(iterations):
        batch = i % (len(xs) - held)
        optimizer.zero_grad()
        ((layer(xs[batch]) - targets[batch]).square().mean() / deviation**2).backward()
        optimizer.step()
        schedule.step()
    if not error() < before:
        layer.load_state_dict(start)


def calibrate(
    child: nn.Module,
    layers: Sequence[Layer],
    bits: Mapping[str, int],
    batches: Sequence[Tensor],
    held: int,
    iterations: int,
    layer_done: Callable[[str], None] = lambda _: None,
) -> nn.Module:
    """A child with quantized layers.

    What comes in with 8 bits straight from a convolution, whose output has a grid of 8 bits, shares that grid: two
    different ones in a row would cost twice, and ONNX Runtime would make a third one of them.

    Args:
        child: batch norms folded; it is left as it is.
        layers: of it, in the order they run.
        bits: for each layer's name.
        batches: examples of the training part; the last `held` batches only judge.
        iterations: of AdaQuant for each layer; 0 rounds to the nearest.
        layer_done: called with each layer's name.
    """
    net = copy.deepcopy(child)
    for layer in layers:
        layer_bits = widths(layer, bits[layer.name])
        xs, source = seen(net, layer.name, batches), net.get_submodule(layer.source) if layer.source else None
        byte = layer_bits["input_bits"] == BYTE_BITS
        given = source.output if isinstance(source, IntegerConv2d) and byte else None
        trained = AdaQuantLayer(float_layer(child, layer.name), **layer_bits, xs=xs, given=given)
        if iterations:
            adaquant(trained, xs, seen(child, layer.name, batches, output=True), held, iterations)
        net.set_submodule(layer.name, trained.freeze(xs, layer.relu))
        layer_done(layer.name)
    return net


def widths(layer: Layer, bits: int) -> LayerBits:
    """Bits of its weights and of its input: pixels keep the bits that they come with."""
    return {"weight_bits": bits, "input_bits": max(bits, PIXEL_BITS) if layer.first else bits}
