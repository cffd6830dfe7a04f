"""Integer layers, of which post-training quantization makes an exported child, and how it is built from its files.

Every grid is affine: ``x`` becomes ``(q - zero) * scale`` with ``q = clamp(round(x / scale) + zero, 0, top)`` and zero
a whole number, so that 0 is exact. Weights have a grid for each output channel, activations one for the tensor. Under
`torch.onnx.export` the grids become QuantizeLinear and DequantizeLinear of 8-bit types, so the ONNX file computes with
the same integers. Imports torch and `nas.quantization.levels` alone: both are bundled as quantized.py beside a child.
"""

from __future__ import annotations

from typing import Protocol, TypedDict, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.quantization.levels import (
    BYTE_BITS,
    NIBBLE_BITS,
    dequantize_linear,
    pack_nibbles,
    quantize_linear,
    rounded,
    top_level,
    unpack_nibbles,
)

BIAS_LEVELS = 2**30  # a bias is a 32-bit number of steps input_scale * scale


class LayerBits(TypedDict):
    """Bits of one integer layer."""

    weight_bits: int
    input_bits: int


class Plan(TypedDict):
    """How a child was quantized, ``quantization`` of arch.json.

    Attributes:
        of: the id of the child that it was made of.
        method: in words.
        plain: names of layers that had quantizers of their own.
        folded: names of batch norms that were folded into the layers before them.
        layers: for each integer layer's name its bits.
    """

    of: str
    method: str
    plain: list[str]
    folded: list[str]
    layers: dict[str, LayerBits]


@runtime_checkable
class HasFloatLayer(Protocol):
    """A layer with learnt quantizers of its own, which knows what it is without them."""

    def float_layer(self) -> nn.Module:
        """A module of the same weights that is called the same way, made of torch's own layers."""


def fake_quantize_affine(x: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """x on an affine grid, as floats.

    Gradients: to x within the range; to scale and zero as in LSQ+ (arXiv:2004.09576).

    Args:
        scale, zero: of shapes that broadcast to x.
        top: the highest level.
    """
    zero = rounded(zero)
    return (torch.clamp(rounded(x / scale) + zero, 0, top) - zero) * scale


class Grid(nn.Module):
    """The affine grid of one activation tensor: a number of bits, a scale and a zero point."""

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
            return fake_quantize_affine(x, self.scale, zero, top)
        if self.bits < BYTE_BITS:  # the byte that carries the levels would saturate later
            x = x.clamp(-zero * self.scale, (top - zero) * self.scale)
        return dequantize_linear(quantize_linear(x, self.scale, self.zero), self.scale, self.zero)


class IntegerConv2d(nn.Conv2d):
    """A convolution of whole numbers, computed in floats.

    Attributes:
        weight: int8 ``(c_out, c_in / groups, k, k)``: levels minus zero point.
        scale, zero: of the weights, ``(c_out,)``.
        input, output: grids of what comes in and of what goes out before any activation function; the latter has 8
            bits.
        relu: negative outputs are of no account.
    """

    weight_bits: int
    input: Grid
    scale: Tensor
    zero: Tensor
    bias: nn.Parameter

    def __init__(self, layer: nn.Conv2d, weight_bits: int, input_bits: int) -> None:
        """`layer` gives the sizes alone."""
        kernel = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        sizes = (layer.in_channels, layer.out_channels, *kernel, layer.groups)
        # torch declares what a convolution keeps as tuples of any length, and what it is given as pairs
        super().__init__(*sizes, padding_mode=layer.padding_mode)  # type: ignore[arg-type]
        _prepare(self, weight_bits, input_bits)
        self.output, self.relu = Grid(BYTE_BITS), False

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.accumulated(x))

    def accumulated(self, x: Tensor) -> Tensor:
        """What goes out before it is put on its grid."""
        x = self.input(x)
        if torch.onnx.is_in_onnx_export():
            return self._conv_forward(x, dequantize_linear(self.weight, self.scale, axis=0), _whole_bias(self))
        return self._conv_forward(x, self.weight * self.scale.view(-1, 1, 1, 1), self.bias)


class IntegerLinear(nn.Linear):
    """A linear layer of whole numbers, computed in floats.

    Attributes as of `IntegerConv2d`; what goes out has no grid.
    """

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
            return F.linear(x, dequantize_linear(self.weight, self.scale, axis=0), _whole_bias(self))
        return x @ dequantize_linear(self.weight.t(), self.scale, axis=1) + self.bias


IntegerLayer = IntegerConv2d | IntegerLinear
QUANTIZABLE = (nn.Conv2d, nn.Linear)  # the classes, and not their subclasses, that have an integer layer


def integer_layer(layer: nn.Module, weight_bits: int, input_bits: int) -> IntegerLayer:
    """An integer layer of a float one's sizes, its weights 0.

    Raises:
        TypeError: it is none of `QUANTIZABLE`.
    """
    if type(layer) is nn.Conv2d:
        return IntegerConv2d(layer, weight_bits, input_bits)
    if type(layer) is nn.Linear:
        return IntegerLinear(layer, weight_bits, input_bits)
    raise TypeError(f"a {type(layer).__name__} has no integer layer; allowed: torch's own Conv2d and Linear")


def _prepare(layer: IntegerLayer, weight_bits: int, input_bits: int) -> None:
    """Whole-number weights of 0, their grid, and the grid of the input."""
    layer.weight_bits, layer.input = weight_bits, Grid(input_bits)
    layer.weight = nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    layer.register_buffer("scale", torch.ones(len(layer.weight)))
    layer.register_buffer("zero", torch.zeros(len(layer.weight), dtype=torch.uint8))
    nn.init.zeros_(layer.bias)


def _whole_bias(layer: IntegerLayer) -> Tensor:
    """The bias as ONNX's integer kernels want it: int32, in steps of the products."""
    step = layer.input.scale * layer.scale
    return dequantize_linear((layer.bias / step).round().to(torch.int32), step, axis=0)


def quantized(net: nn.Module, plan: Plan) -> nn.Module:
    """A child made ready for quantized weights, in place: its batch norms folded away, its layers integer ones.

    Raises:
        TypeError: a layer of the plan is not what the plan says.
    """
    for name in plan["plain"]:
        layer = net.get_submodule(name)
        if not isinstance(layer, HasFloatLayer):
            kind = type(layer).__name__
            raise TypeError(f"{name} is a {kind}, without float_layer(); give a child of the class that was quantized")
        net.set_submodule(name, layer.float_layer())
    for name in plan["folded"]:
        net.set_submodule(name, nn.Identity())
    for name, bits in plan["layers"].items():
        net.set_submodule(name, integer_layer(net.get_submodule(name), **bits))
    return net


def load_quantized(net: nn.Module, plan: Plan, tensors: dict[str, Tensor]) -> nn.Module:
    """A quantized child, ready to run.

    Args:
        net: an object of the child's class, its weights of no account; it is changed.
        plan: ``quantization`` of arch.json.
        tensors: of model.safetensors.
    """
    quantized(net, plan).load_state_dict(unpack(net, tensors))
    return net.eval()


def _nibble_weights(net: nn.Module) -> dict[str, IntegerLayer]:
    """Names of the weights that lie two to a byte, with their layers."""
    layers = {f"{name}.weight": layer for name, layer in net.named_modules() if isinstance(layer, IntegerLayer)}
    return {name: layer for name, layer in layers.items() if layer.weight_bits <= NIBBLE_BITS}


def pack(net: nn.Module) -> dict[str, Tensor]:
    """The tensors of a quantized child as its file has them: weights of at most 4 bits as levels, two to a byte."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}
    for name, layer in _nibble_weights(net).items():
        tensors[name] = pack_nibbles(tensors[name].flatten(1).short() + layer.zero.cpu().short()[:, None])
    return tensors


def unpack(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `net` from the tensors of its file."""
    tensors = dict(tensors)
    for name, layer in _nibble_weights(net).items():
        levels = unpack_nibbles(tensors[name], layer.weight.numel(), signed=False)
        zero = tensors[name.removesuffix("weight") + "zero"].to(torch.int8)
        tensors[name] = (levels.view(len(zero), -1) - zero[:, None]).view(layer.weight.shape)
    return tensors
