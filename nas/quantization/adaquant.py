"""Layers onto grids: to the nearest level, or by AdaQuant (Hubara et al., arXiv:2006.10518), one after the other.

Each layer is given weights, bias and grids for which its output differs least from that of the layer as it was, in mean square over
the calibration examples. It sees what the quantized layers before it give, and aims at what the network gave before (the
sequential variant of the paper).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.quantization.graph import Layer
from nas.quantization.integer import BIAS_LEVELS, KINDS, MOST_BITS, Grid, QuantConv2d, fake_quantize, top_level

ITERATIONS = 200
PIXEL_BITS = 8
SAMPLE = 1 << 14  # values that the range of an activation is sought on
LEVELS_LR, SCALE_LR, ZERO_LR, BIAS_LR = 0.02, 0.003, 0.02, 0.003  # Adam's: levels; relative; levels; share of the output's deviation


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

    Sought over the row's range, which is made to include 0, cut at either end; `centred`: zero stays amid the levels.
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
            error = (fake_quantize(x, step[:, None], origin[:, None], top) - x).square().mean(1)
            better = error < best
            best, scale, zero = (torch.where(better, new, old) for new, old in ((error, best), (step, scale), (origin, zero)))
    return scale, zero


class Tuned(nn.Module):
    """A layer whose weights, bias and grids are being sought; it starts with the nearest levels of its best grids.

    Args:
        layer: as it was, a convolution or linear layer.
        xs: batches of what comes in.
        given: the grid that this is on already, if it is.
    """

    def __init__(self, layer: Any, weight_bits: int, input_bits: int, xs: Sequence[Tensor], given: Grid | None = None) -> None:
        super().__init__()
        self.given = [given]
        self.layer, self.weight_bits, self.input_bits = [layer], weight_bits, input_bits  # in a list: its parameters are not these
        weight, bias = layer.weight.detach(), layer.bias
        bias = torch.zeros(len(weight), device=weight.device) if bias is None else bias.detach()
        input_scale, input_zero = best_grid(sample(xs)[None], top_level(input_bits)) if given is None else (given.scale[None], given.zero.float()[None])
        scale, zero = best_grid(weight.flatten(1), top_level(weight_bits), centred=weight_bits == MOST_BITS)
        scale = torch.maximum(scale, bias.abs() / (input_scale * BIAS_LEVELS))
        self.step = scale.view(-1, *[1] * (weight.dim() - 1))
        self.levels = nn.Parameter(weight / self.step)
        self.bias = nn.Parameter(bias.clone())
        self.log_scale, self.zero = nn.Parameter(scale.log()), nn.Parameter(zero)
        self.log_input, self.input_zero = nn.Parameter(input_scale[0].log()), nn.Parameter(input_zero[0])

    def quantized_weight(self) -> Tensor:
        scale, zero = (value.view(self.step.shape) for value in (self.log_scale.exp(), self._zero(self.zero, top_level(self.weight_bits))))
        return fake_quantize(self.levels * self.step, scale, zero, top_level(self.weight_bits))

    def forward(self, x: Tensor) -> Tensor:
        top = top_level(self.input_bits)
        x = fake_quantize(x, self.log_input.exp(), self._zero(self.input_zero, top), top)
        return run(self.layer[0], x, self.quantized_weight(), self.bias)

    @staticmethod
    def _zero(zero: Tensor, top: int) -> Tensor:
        return zero.clamp(0, top)

    def groups(self, deviation: float) -> list[dict[str, Any]]:
        """Adam's parameter groups; `deviation` is that of the layer's output."""
        scales, zeros = [self.log_scale], [self.zero] if self.weight_bits < MOST_BITS else []
        if self.given[0] is None:
            scales, zeros = [*scales, self.log_input], [*zeros, self.input_zero]
        groups = [(self.levels, LEVELS_LR), (self.bias, BIAS_LR * deviation), *((s, SCALE_LR) for s in scales), *((z, ZERO_LR) for z in zeros)]
        return [{"params": [parameter], "lr": lr} for parameter, lr in groups]

    @torch.no_grad()
    def freeze(self, xs: Sequence[Tensor], relu: bool = False) -> nn.Module:
        """The layer of whole numbers; the grid of what goes out is sought on these inputs, without what a ReLU would take away."""
        layer: Any = KINDS[type(self.layer[0])](self.layer[0], self.weight_bits, self.input_bits).to(self.bias.device)
        if self.given[0] is not None:
            layer.input = self.given[0]  # one object, so that they stay the same
        else:
            layer.input.scale.copy_(self.log_input.exp())
            layer.input.zero.copy_(self._zero(self.input_zero, top_level(self.input_bits)).round())
        layer.scale.copy_(self.log_scale.exp())
        layer.zero.copy_(self._zero(self.zero, top_level(self.weight_bits)).round())
        layer.weight.copy_((self.quantized_weight() / layer.scale.view(self.step.shape)).round())
        put_bias(layer, self.bias)
        if isinstance(layer, QuantConv2d):
            layer.relu = relu
            set_grid(layer.output, [self(x) for x in xs], relu)
        return layer


@torch.no_grad()
def put_bias(layer: Any, bias: Tensor) -> None:
    """Give a layer of whole numbers a bias, rounded to whole steps of its products as integer kernels have it."""
    step = layer.input.scale * layer.scale
    layer.bias.copy_((bias / step).round().clamp(-BIAS_LEVELS, BIAS_LEVELS) * step)


def run(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution or linear layer with other weights."""
    return layer._conv_forward(x, weight, bias) if isinstance(layer, nn.Conv2d) else F.linear(x, weight, bias)


def sample(xs: Sequence[Tensor]) -> Tensor:
    """Some of all values, drawn always alike; the least and the greatest are among them."""
    values = torch.cat([x.flatten() for x in xs])
    if values.numel() <= SAMPLE:
        return values
    drawn = torch.randint(values.numel(), (SAMPLE,), generator=torch.Generator().manual_seed(0)).to(values.device)
    return torch.cat((values[drawn], torch.stack(values.aminmax())))


def set_grid(grid: Any, outputs: Sequence[Tensor], relu: bool) -> None:
    """The best grid for these values, or for what a ReLU leaves of them."""
    values = sample(outputs)
    scale, zero = best_grid((values.relu() if relu else values)[None], top_level(grid.bits))
    grid.scale.copy_(scale[0])
    grid.zero.copy_(zero[0])


def adaquant(tuned: Tuned, xs: Sequence[Tensor], targets: Sequence[Tensor], held: int, iterations: int) -> None:
    """Bring the layer's output on `xs` nearer to `targets` in mean square; what is not better on the last `held` batches is undone."""

    def error() -> float:
        with torch.no_grad():
            return sum(float((tuned(x) - y).square().mean()) for x, y in zip(xs[-held:], targets[-held:], strict=True))

    deviation = float(torch.cat([y.flatten() for y in targets]).std()) or 1.0
    optimizer = torch.optim.Adam(tuned.groups(deviation))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    before, start = error(), copy.deepcopy(tuned.state_dict())
    for i in range(iterations):
        batch = i % (len(xs) - held)
        optimizer.zero_grad()
        ((tuned(xs[batch]) - targets[batch]).square().mean() / deviation**2).backward()
        optimizer.step()
        schedule.step()
    if not error() < before:
        tuned.load_state_dict(start)


def calibrate(
    child: nn.Module,
    layers: Sequence[Layer],
    bits: Mapping[str, int],
    batches: Sequence[Tensor],
    held: int,
    iterations: int,
    tick: Callable[[str], None] = lambda _: None,
) -> nn.Module:
    """A child with quantized layers.

    What comes in with 8 bits straight from a convolution, whose output has a grid of 8 bits, shares that grid: two different ones in a
    row would cost twice, and ONNX Runtime would make one of them, another one.

    Args:
        child: batch norms folded; it is left as it is.
        layers: of it, in the order they run.
        bits: for each layer's name.
        batches: examples of the training part; the last `held` batches only judge.
        iterations: of AdaQuant for each layer; 0 rounds to the nearest.
        tick: called with each layer's name when it is done.
    """
    net = copy.deepcopy(child)
    for layer in layers:
        weight_bits, input_bits = widths(layer, bits[layer.name])
        xs = seen(net, layer.name, batches)
        given = net.get_submodule(layer.source).output if layer.source and input_bits == MOST_BITS else None
        tuned = Tuned(child.get_submodule(layer.name), weight_bits, input_bits, xs, given)  # type: ignore[arg-type]
        if iterations:
            adaquant(tuned, xs, seen(child, layer.name, batches, output=True), held, iterations)
        net.set_submodule(layer.name, tuned.freeze(xs, layer.relu))
        tick(layer.name)
    return net


def widths(layer: Layer, bits: int) -> tuple[int, int]:
    """Bits of its weights and of its input: pixels keep the bits that they come with."""
    return bits, max(bits, PIXEL_BITS) if layer.first else bits
