"""Layers of a quantized child, and how one is put together from its files. Imports torch alone: it is copied beside a quantized child.

Every grid is affine: ``x`` becomes ``(q - zero) * scale`` with ``q = clamp(round(x / scale) + zero, 0, top)`` and zero a whole number, so
that 0 is exact. Weights have a grid for each output channel, activations one for the tensor. Under `torch.onnx.export` the grids become
QuantizeLinear and DequantizeLinear of 8-bit types, so the ONNX file computes with the same integers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_BITS = 8
BIAS_LEVELS = 2**30  # a bias is a 32-bit number of steps input_scale * scale


def top_level(bits: int) -> int:
    """The highest level of a grid; the lowest is 0. Weights of 8 bits have their zero amid the levels: ``q - zero`` is a signed byte."""
    return 2**bits - 1


def rounded(x: Tensor) -> Tensor:
    """x to whole numbers, halves to even; the gradient passes as if nothing had been done (straight-through)."""
    return x + (x.round() - x).detach() if x.requires_grad else x.round()


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """x on the grid, as floats. Gradients: to x within the range; to scale and zero as in LSQ+ (arXiv:2004.09576)."""
    zero = rounded(zero)
    return (torch.clamp(rounded(x / scale) + zero, 0, top) - zero) * scale


class Grid(nn.Module):
    """The grid of one activation tensor: `bits` bits, learned scale and zero point."""

    scale: Tensor
    zero: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero", torch.zeros((), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape -> the same shape, on the grid."""
        zero, top = self.zero.float(), top_level(self.bits)
        if not torch.onnx.is_in_onnx_export():
            return fake_quantize(x, self.scale, zero, top)
        if self.bits < MOST_BITS:  # the byte that carries the levels would saturate later
            x = x.clamp(-zero * self.scale, (top - zero) * self.scale)
        levels = torch.onnx.ops.symbolic("QuantizeLinear", (x, self.scale, self.zero), dtype=torch.uint8, shape=x.shape)
        return _dequantize(levels, self.scale, self.zero)


def _dequantize(levels: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1) -> Tensor:
    """ONNX's DequantizeLinear of `levels`; a zero point of 0 is written too: some integer kernels of ONNX Runtime are chosen only then."""
    grid = (scale, torch.zeros_like(scale, dtype=levels.dtype) if zero is None else zero)
    return torch.onnx.ops.symbolic("DequantizeLinear", (levels, *grid), {"axis": axis}, dtype=torch.float32, shape=levels.shape)


class QuantConv2d(nn.Conv2d):
    """A convolution of whole numbers, computed in floats.

    Attributes:
        weight: int8 ``(c_out, c_in / groups, k, k)``: levels minus zero point.
        scale, zero: of the weights, ``(c_out,)``.
        input, output: grids of what comes in and of what goes out before any activation function; the latter has 8 bits.
        relu: negative outputs are of no account.
    """

    weight_bits: int
    input: Grid
    scale: Tensor
    zero: Tensor
    bias: nn.Parameter

    def __init__(self, layer: nn.Conv2d, weight_bits: int, input_bits: int) -> None:
        """`layer` gives the sizes alone."""
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
        super().__init__(*sizes, padding_mode=layer.padding_mode)  # type: ignore[arg-type]
        _prepare(self, weight_bits, input_bits)
        self.output, self.relu = Grid(MOST_BITS), False

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.accumulated(x))

    def accumulated(self, x: Tensor) -> Tensor:
        """What goes out before it is put on its grid."""
        x = self.input(x)
        if torch.onnx.is_in_onnx_export():
            return self._conv_forward(x, _dequantize(self.weight, self.scale, axis=0), _whole_bias(self))
        return self._conv_forward(x, self.weight * self.scale.view(-1, 1, 1, 1), self.bias)


class QuantLinear(nn.Linear):
    """A linear layer of whole numbers, computed in floats. Attributes as of `QuantConv2d`; what goes out has no grid."""

    weight_bits: int
    input: Grid
    scale: Tensor
    zero: Tensor
    bias: nn.Parameter

    def __init__(self, layer: nn.Linear, weight_bits: int, input_bits: int) -> None:
        """`layer` gives the sizes alone."""
        super().__init__(layer.in_features, layer.out_features)
        _prepare(self, weight_bits, input_bits)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        if not torch.onnx.is_in_onnx_export():
            return F.linear(x, self.weight * self.scale.view(-1, 1), self.bias)
        if x.dim() == 2:  # what ONNX Runtime computes with integers is Gemm with all of it, or a bare MatMul
            return F.linear(x, _dequantize(self.weight, self.scale, axis=0), _whole_bias(self))
        return x @ _dequantize(self.weight.t(), self.scale, axis=1) + self.bias


KINDS: dict[type[nn.Module], Any] = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}


def _prepare(layer: QuantConv2d | QuantLinear, weight_bits: int, input_bits: int) -> None:
    """Whole-number weights of 0, their grid, and the grid of the input."""
    layer.weight_bits, layer.input = weight_bits, Grid(input_bits)
    layer.weight = nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    layer.register_buffer("scale", torch.ones(len(layer.weight)))
    layer.register_buffer("zero", torch.zeros(len(layer.weight), dtype=torch.uint8))
    nn.init.zeros_(layer.bias)


def _whole_bias(layer: QuantConv2d | QuantLinear) -> Tensor:
    """The bias as ONNX's integer kernels want it: int32, in steps of the products."""
    step = layer.input.scale * layer.scale
    return _dequantize((layer.bias / step).round().to(torch.int32), step, axis=0)


def quantized(net: nn.Module, plan: dict[str, Any]) -> nn.Module:
    """`net` made ready for quantized weights, in place: its batch norms folded away, its layers of whole numbers.

    Args:
        plan: ``plain``: names of layers that had quantizers of their own; ``folded``: of the batch norms; ``layers``: for each layer's name
            its ``weight_bits`` and ``input_bits``.
    """
    for name in plan["plain"]:
        net.set_submodule(name, net.get_submodule(name).float_layer())  # type: ignore[operator]
    for name in plan["folded"]:
        net.set_submodule(name, nn.Identity())
    for name, bits in plan["layers"].items():
        layer = net.get_submodule(name)
        net.set_submodule(name, KINDS[type(layer)](layer, **bits))
    return net


def load_quantized(net: nn.Module, plan: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """A quantized child, ready to run.

    Args:
        net: an object of the child's class, its weights of no account; it is changed.
        plan: ``quantization`` of arch.json.
        tensors: of model.safetensors.
    """
    quantized(net, plan).load_state_dict(unpack(net, tensors))
    return net.eval()


def _packed(net: nn.Module) -> dict[str, Any]:
    """Names of the weights that lie two to a byte, with their layers."""
    layers = {f"{name}.weight": layer for name, layer in net.named_modules() if isinstance(layer, (QuantConv2d, QuantLinear))}
    return {name: layer for name, layer in layers.items() if layer.weight_bits <= 4}


def pack(net: nn.Module) -> dict[str, Tensor]:
    """The tensors of a quantized child as its file has them: weights of at most 4 bits as levels, two to a byte, the first one low."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}
    for name, layer in _packed(net).items():
        levels = (tensors[name].flatten(1).short() + layer.zero.cpu().short()[:, None]).flatten().to(torch.uint8)
        levels = F.pad(levels, (0, levels.numel() % 2))
        tensors[name] = levels[::2] | levels[1::2] << 4
    return tensors


def unpack(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `net` from the tensors of its file."""
    tensors = dict(tensors)
    for name, layer in _packed(net).items():
        levels = torch.stack((tensors[name] & 15, tensors[name] >> 4), 1).flatten()[: layer.weight.numel()].short()
        zero = tensors[name.removesuffix("weight") + "zero"].short()
        tensors[name] = (levels.view(len(zero), -1) - zero[:, None]).to(torch.int8).view(layer.weight.shape)
    return tensors
