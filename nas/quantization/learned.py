"""Learnt grids: uniform quantizers whose steps a supernet learns, and the noise that stands in for them.

Real quantizers are those of LSQ (Esser et al. 2020), weights per output channel and activations per tensor, with the
steps kept as logarithms: under Adam a step itself is destroyed within a few updates. Noise follows QuantNAS
(arXiv:2208.14839). Imports torch and `nas.quantization.levels` alone: both are bundled into a child's model.py.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.quantization.levels import (
    BYTE_BITS,
    NIBBLE_BITS,
    dequantize_linear,
    level_range,
    pack_nibbles,
    quantize_linear,
    rounded,
    top_level,
    unpack_nibbles,
)

FULL = 32  # bits with which a tensor is left as it is
SAMPLES = 1 << 14  # most values that a step is fitted on
# Where steps of inputs start, for a unit Gaussian: its positive half (HWGQ, Cai et al. 2017) and the whole (Max 1960).
POSITIVE_STEPS = {2: 0.635637, 4: 0.213056, 8: 0.0203006, 16: 9.7148e-5}
SIGNED_STEPS = {2: 0.9957, 4: 0.3352, 8: 0.0308, 16: 1.94e-4}

Share = float | Tensor
Shares = Sequence[tuple[int, Share]]  # pairs (bits, weight); the weights need not sum to one


def fake_quantize_lsq(x: Tensor, log_step: Tensor, bits: int, signed: bool, elements: int) -> Tensor:
    """x on the grid ``exp(log_step) * levels``, as floats; no gradient to x beyond the grid.

    Args:
        log_step: of a shape that broadcasts to x.
        elements: values that share the tensor; scales the step's gradient by ``(largest level * elements) ** -0.5``
            (LSQ, section 2.2).
    """
    low, high = level_range(bits, signed)
    scale = (high * elements) ** -0.5
    step = ((log_step - log_step * scale).detach() + log_step * scale).exp()
    return rounded((x / step).clamp(low, high)) * step


@torch.no_grad()
def fit_log_step(x: Tensor, bits: int, signed: bool) -> Tensor:
    """The logarithm of the step of least squared error for each row of x, by a search down from its largest value.

    Args:
        x: ``(rows, values)``.

    Returns:
        ``(rows,)``.
    """
    low, high = level_range(bits, signed)
    largest = x.abs().amax(1, keepdim=True).clamp_min(1e-8) / high
    best, found = torch.full_like(largest, math.inf), largest.clone()
    for tenth in range(61):
        step = largest * 2 ** (-tenth / 10)
        error = ((x / step).round_().clamp_(low, high).mul_(step) - x).square_().sum(1, keepdim=True)
        found = torch.where(error < best, step, found)
        best = torch.minimum(error, best)
    return found.log().squeeze(1)


def rounds(shares: Shares) -> bool:
    """Whether any of the bit-widths changes a tensor."""
    return any(bits < FULL for bits, _ in shares)


def strength(shares: Shares) -> Share:
    """The mean step of the bit-widths, for a tensor that spans one."""
    return sum(share / top_level(bits) for bits, share in shares if bits < FULL) / sum(share for _, share in shares)


def noise_like(x: Tensor, spread: Tensor, generator: torch.Generator | None, only: Tensor | None = None) -> Tensor:
    """Uniform noise of the width `spread`, which broadcasts to x; where `only` is false there is none."""
    noise = torch.empty_like(x).uniform_(-0.5, 0.5, generator=generator).mul_(spread)
    return noise if only is None else noise.mul_(only)


def noisy(x: Tensor, spread: Tensor, shares: Shares, generator: torch.Generator | None) -> Tensor:
    """x with uniform noise as strong as rounding's, the mean over the bit-widths.

    There is one draw, the gradient to x is 1, and that to the shares is exact.

    Args:
        spread: what lies between the largest and the least value, of a shape that broadcasts to x; not differentiated.
    """
    return x + noise_like(x, spread, generator) * strength(shares) if rounds(shares) else x


def noisy_as_published(x: Tensor, shares: Shares, candidates: int, generator: torch.Generator | None) -> Tensor:
    """x with noise as QuantNAS's authors mix it: a constant share of x itself, the rest noisy and without gradient.

    The noise is Gaussian, a draw for each bit-width. The coefficients do not sum to one, and the gradient shrinks with
    every layer: kept to be compared with (`noisy` is the default).

    Args:
        candidates: how many bit-widths there are to choose from.
    """
    clean, mass = 1 / (candidates + 1), sum(share for _, share in shares)
    spread, mixed = (x.amax() - x.amin()).detach(), clean * x
    for bits, share in shares:
        noise: Share = 0.0
        if bits < FULL:
            noise = torch.empty_like(x).normal_(0, 0.5, generator=generator) * (spread / top_level(bits))
        mixed = mixed + share / (mass + clean) * (x + noise).detach()
    return mixed


def noisy_weight(weight: Tensor, shares: Shares, generator: torch.Generator | None) -> Tensor:
    """weight: ``(c_out, c_in / groups, h, w)`` with noise, every output channel by its own range."""
    values = weight.detach()
    spread = values.amax((1, 2, 3), keepdim=True) - values.amin((1, 2, 3), keepdim=True)
    return noisy(weight, spread, shares, generator)


def fresh_edge(c_in: int, kernel: tuple[int, int]) -> float:
    """What the weights of a fresh convolution are uniform within, as torch has them."""
    return (c_in * kernel[0] * kernel[1]) ** -0.5


class QuantConv2d(nn.Module):
    """A bias-free convolution whose weights and input are quantized, with a learnt step for each of its bit-widths.

    Steps start at the one of least squared error for fresh weights and for inputs of unit deviation; `fit` finds it for
    any others.

    Args:
        c_in, c_out, kernel, groups, stride: of the convolution.
        bits: the bit-widths it may have; 32 leaves it as it is.
        relu: its input goes through ReLU first, so that its grid begins at 0.
        input_bits: of its input; None for those of the weights, 0 for an input that lies on a grid already.
        padding: None keeps the size.
        edge: fresh weights are uniform within it; None for `fresh_edge`.
        own: it has weights; if not, `weight` is None and every call gives them (such a layer is not fitted or exported:
            its child is).

    A supernet may run it with fewer channels than it has, the first ones; their steps are the first ones too.
    """

    weight: nn.Parameter
    fitted: Tensor

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: tuple[int, int],
        bits: Sequence[int],
        groups: int = 1,
        stride: int = 1,
        relu: bool = True,
        input_bits: int | None = None,
        padding: tuple[int, int] | None = None,
        edge: float | None = None,
        own: bool = True,
    ) -> None:
        super().__init__()
        self.bits, self.groups, self.stride, self.relu, self.input_bits = tuple(bits), groups, stride, relu, input_bits
        self.padding = (kernel[0] // 2, kernel[1] // 2) if padding is None else padding
        edge = fresh_edge(c_in // groups, kernel) if edge is None else edge
        weight = torch.empty(c_out, c_in // groups, *kernel).uniform_(-edge, edge) if own else None
        self.register_parameter("weight", None if weight is None else nn.Parameter(weight))
        widths = [b for b in bits if b < FULL]
        spanning = {b: edge / (2 ** (b - 1) - 0.5) for b in widths}  # the best step spans the weights
        self.weight_step = nn.ParameterDict({str(b): _start(step, c_out) for b, step in spanning.items()})
        starts = POSITIVE_STEPS if relu else SIGNED_STEPS
        widths = widths if input_bits is None else [b for b in (input_bits,) if b]
        self.input_step = nn.ParameterDict({str(b): _start(starts[b], 1) for b in widths})
        self.register_buffer("fitted", torch.zeros(()))  # 1 once `fit` has set the steps; training goes on from there

    def forward(
        self,
        x: Tensor,
        shares: Shares | None = None,
        quant: str = "real",
        generator: torch.Generator | None = None,
        published: bool = False,
        weight: Tensor | None = None,
        out: int | None = None,
    ) -> Tensor:
        """x: ``(N, c_in, H, W)``, of the first channels that it takes.

        Args:
            shares: how much of each bit-width; None for the only one.
            quant: ``"off"``, ``"noise"`` or ``"real"``.
            generator: of the noise.
            published: noise mixed the authors' way.
            weight: in place of its own.
            out: output channels; None: all.
        """
        shares = [(self.bits[0], 1.0)] if shares is None else shares
        weight = self.first(x.shape[1], out) if weight is None else weight
        x, inputs = self.rectified(x), self.input_shares(shares)
        if quant == "real":
            x, weight = self._quantized_input(x, inputs) if inputs else x, self._quantized_weight(weight, shares)
        elif quant == "noise" and published:
            x = noisy_as_published(x, inputs, len(self.bits), generator) if inputs else x
            weight = noisy_as_published(weight, shares, len(self.bits), generator)
        elif quant == "noise":
            noise = self.input_noise(x, inputs, generator)
            x = x if noise is None else x + noise * strength(inputs)
            weight = noisy_weight(weight, shares, generator)
        return F.conv2d(x, weight, None, self.stride, self.padding, 1, self.groups)

    def first(self, c_in: int, c_out: int | None) -> Tensor:
        """Its own weight for its first channels. All of it is the parameter itself and no view, which under ZeRO 3
        would outlive what is gathered for a pass."""
        whole = self.weight
        shape = (c_out or len(whole), c_in // self.groups)
        return whole if shape == whole.shape[:2] else whole[: shape[0], : shape[1]]

    def rectified(self, x: Tensor) -> Tensor:
        """The input as it is quantized."""
        return F.relu(x) if self.relu else x

    def input_shares(self, shares: Shares) -> Shares:
        """How much of each bit-width the input has; none where it lies on a grid."""
        return shares if self.input_bits is None else [(self.input_bits, 1.0)] if self.input_bits else []

    def input_noise(self, x: Tensor, shares: Shares, generator: torch.Generator | None) -> Tensor | None:
        """Noise for a rectified input, before its `strength`; None for an input that is not rounded.

        Every example has its own range. Zeros after ReLU stay exact, as they do on a grid.
        """
        if not rounds(shares):
            return None
        values = x.detach()
        top = values.amax((1, 2, 3), keepdim=True)
        if self.relu:
            return noise_like(values, top, generator, only=values > 0)
        return noise_like(values, top - values.amin((1, 2, 3), keepdim=True), generator)

    def _quantized_weight(self, weight: Tensor, shares: Shares) -> Tensor:
        def on_grid(bits: int) -> Tensor:
            step = self.weight_step[str(bits)][: len(weight)].view(-1, 1, 1, 1)
            return fake_quantize_lsq(weight, step, bits, True, weight.numel())

        return _mean([(weight if bits == FULL else on_grid(bits), share) for bits, share in shares])

    def _quantized_input(self, x: Tensor, shares: Shares) -> Tensor:
        def on_grid(bits: int) -> Tensor:
            return fake_quantize_lsq(x, self.input_step[str(bits)], bits, not self.relu, x[0].numel())

        return _mean([(x if bits == FULL else on_grid(bits), share) for bits, share in shares])

    def float_layer(self) -> nn.Module:
        """A plain convolution of the same weights, called like this one: what is quantized anew."""
        return FloatConv2d(self)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set every step to the one of least squared error for the weights, and for an input such as `forward` gets."""
        for bits, step in self.weight_step.items():
            step.copy_(fit_log_step(self.weight.flatten(1), int(bits), True))
        values = self.rectified(x).flatten()
        stride = max(1, values.numel() // SAMPLES) | 1  # odd, so as not to meet one column alone
        values = values[::stride].unsqueeze(0)
        for bits, step in self.input_step.items():
            step.copy_(fit_log_step(values, int(bits), not self.relu))
        self.fitted.fill_(1)


class FloatConv2d(nn.Module):
    """A `QuantConv2d` without its quantizers: torch's own convolution of the same weights, behind the same ReLU."""

    def __init__(self, layer: QuantConv2d) -> None:
        super().__init__()
        c_out, c_in, *kernel = layer.weight.shape
        self.relu = layer.relu
        sizes = (c_in * layer.groups, c_out, (kernel[0], kernel[1]), layer.stride, layer.padding)
        self.conv = nn.Conv2d(*sizes, groups=layer.groups, bias=False)
        self.conv.weight = nn.Parameter(layer.weight.detach().clone())

    def forward(self, x: Tensor, *shares: object, **how: object) -> Tensor:
        """x: ``(N, c_in, H, W)``; how it would be quantized is not looked at."""
        return self.conv(F.relu(x) if self.relu else x)


def weight_levels(layer: QuantConv2d) -> Tensor:
    """The weights of a convolution of one bit-width up to 8 as levels of its grid, int8, of the weights' shape."""
    (bits,) = layer.bits
    step = layer.weight_step[str(bits)].detach().exp().view(-1, 1, 1, 1)
    return (layer.weight.detach() / step).clamp(*level_range(bits, True)).round().to(torch.int8)


class OnnxConv2d(nn.Module):
    """A `QuantConv2d` of one bit-width up to 8 as an ONNX file carries it: levels and steps between bytes.

    Attributes:
        levels: int8 ``(c_out, c_in / groups, h, w)``.
        step: of the weights, ``(c_out,)``.
        input_step: of the input; None for one that lies on a grid already.
    """

    levels: Tensor
    step: Tensor
    input_step: Tensor | None

    def __init__(self, layer: QuantConv2d) -> None:
        super().__init__()
        self.relu, self.conv, (bits,) = layer.relu, (layer.stride, layer.padding, 1, layer.groups), layer.bits
        input_bits = bits if layer.input_bits is None else layer.input_bits
        input_step = layer.input_step[str(input_bits)].detach().exp().squeeze() if input_bits else None
        self.register_buffer("step", layer.weight_step[str(bits)].detach().exp())
        self.register_buffer("levels", weight_levels(layer))
        self.register_buffer("input_step", input_step)
        if input_step is not None:
            self.range = [float(end * input_step) for end in level_range(input_bits, not self.relu)]

    def forward(self, x: Tensor, *shares: object, **how: object) -> Tensor:
        """x: ``(N, c_in, H, W)``. Exported, it goes through QuantizeLinear and DequantizeLinear, as the weights do."""
        x = F.relu(x) if self.relu else x
        if self.input_step is not None:
            x = x.clamp(*self.range)  # the byte that carries fewer bits would saturate later
            zero = torch.zeros((), dtype=torch.uint8 if self.relu else torch.int8)
            x = dequantize_linear(quantize_linear(x, self.input_step, zero), self.input_step, zero)
        return F.conv2d(x, dequantize_linear(self.levels, self.step, axis=0), None, *self.conv)


def for_onnx(net: nn.Module) -> nn.Module:
    """A copy of a child for export to ONNX, its `byte_layers` as `OnnxConv2d`; whatever else it is made of stays."""
    net = copy.deepcopy(net)
    for name, layer in byte_layers(net).items():
        net.set_submodule(name, OnnxConv2d(layer))
    return net


def byte_layers(net: nn.Module) -> dict[str, QuantConv2d]:
    """The quantized convolutions of a child whose levels fit a byte, by name."""
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, QuantConv2d)}
    return {name: layer for name, layer in layers.items() if max(layer.bits) <= BYTE_BITS}


def pack(net: nn.Module) -> dict[str, Tensor]:
    """A child's tensors, its quantized weights as levels: int8, or two to a byte where they have at most 4 bits."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    for name, layer in byte_layers(net).items():
        levels = weight_levels(layer).cpu().contiguous()
        tensors[f"{name}.weight"] = pack_nibbles(levels) if layer.bits[0] <= NIBBLE_BITS else levels
    return tensors


def unpack(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a child from what `pack` gave; weights lie on their grid, so that it computes what it did."""
    tensors = dict(tensors)
    for name, layer in byte_layers(net).items():
        levels, (bits,) = tensors[f"{name}.weight"], layer.bits
        if bits <= NIBBLE_BITS:
            levels = unpack_nibbles(levels, layer.weight.numel(), signed=True)
        step = tensors[f"{name}.weight_step.{bits}"].exp().view(-1, 1, 1, 1)
        tensors[f"{name}.weight"] = levels.view(layer.weight.shape) * step
    return tensors


def _start(step: float, rows: int) -> nn.Parameter:
    return nn.Parameter(torch.full((rows,), math.log(step)))


def _mean(parts: Sequence[tuple[Tensor, Share]]) -> Tensor:
    """The weighted mean of tensors; a single one as it is."""
    if len(parts) == 1:
        return parts[0][0]
    mass = sum(share for _, share in parts)
    return sum((value * (share / mass) for value, share in parts), torch.zeros(()))


@torch.no_grad()
def fit(net: nn.Module, batches: Iterable[tuple[Tensor, object]]) -> None:
    """Fit the quantizers of a child that are not yet, each to what reaches it when those before it are fitted.

    Args:
        batches: of ``(x, anything)``; the first one is used, and none where all quantizers are fitted.
    """
    layers = [module for module in net.modules() if isinstance(module, QuantConv2d) and not module.fitted]
    hooks = [layer.register_forward_pre_hook(lambda module, args: module.fit(args[0])) for layer in layers]
    try:
        if layers:
            net(next(iter(batches))[0])
    finally:
        for hook in hooks:
            hook.remove()
