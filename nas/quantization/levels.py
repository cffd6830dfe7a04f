"""Levels, the whole numbers that stand for quantized values: range, rounding, two to a byte, and nodes of ONNX.

What learnt grids and integer layers share. Imports torch alone: bundled beside exported children.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BYTE_BITS, NIBBLE_BITS = 8, 4


def top_level(bits: int) -> int:
    """The highest level of an unsigned grid; the lowest is 0."""
    return 2**bits - 1


def level_range(bits: int, signed: bool) -> tuple[int, int]:
    """The least and the largest level of a grid: 0 to 15, or -8 to 7."""
    return (-(2 ** (bits - 1)), top_level(bits - 1)) if signed else (0, top_level(bits))


def rounded(x: Tensor) -> Tensor:
    """x to whole numbers, halves to even; the gradient passes as if nothing had been done (straight-through)."""
    return x + (x.round() - x).detach()


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes `count` levels take in a file: at most 4 bits lie two to a byte."""
    return (count + 1) // 2 if bits <= NIBBLE_BITS else count


def pack_nibbles(levels: Tensor) -> Tensor:
    """Levels of at most 4 bits, two to a byte, the first one low.

    Args:
        levels: whole numbers of any shape, 0 to 15 or -8 to 7 (two's complement).

    Returns:
        uint8 ``((n + 1) // 2,)``; an odd end is filled with 0.
    """
    nibbles = F.pad(levels.flatten() & 15, (0, levels.numel() % 2)).to(torch.uint8)
    return nibbles[::2] | nibbles[1::2] << 4


def unpack_nibbles(packed: Tensor, count: int, signed: bool) -> Tensor:
    """The levels that `pack_nibbles` was given: int8 ``(count,)``."""
    levels = torch.stack((packed & 15, packed >> 4), 1).flatten()[:count].to(torch.int8)
    return torch.where(levels > 7, levels - 16, levels) if signed else levels


def quantize_linear(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """ONNX's QuantizeLinear of a tensor with one grid: levels of the type of `zero`, uint8 or int8."""
    return torch.onnx.ops.symbolic("QuantizeLinear", (x, scale, zero), dtype=zero.dtype, shape=x.shape)


def dequantize_linear(levels: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1) -> Tensor:
    """ONNX's DequantizeLinear: ``(levels - zero) * scale``, by channels of `axis` where scale has several.

    A zero point of 0 is written too: some integer kernels of ONNX Runtime are chosen only then.
    """
    grid = (scale, torch.zeros_like(scale, dtype=levels.dtype) if zero is None else zero)
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (levels, *grid), {"axis": axis}, dtype=torch.float32, shape=levels.shape
    )
