"""From a picture to what a network takes. This file imports torch alone: it is copied beside an exported child.

Resizing is antialiased and bilinear, a triangle filter as Pillow's, one axis after the other, in whole grey levels
after each. Its weights are multiples of 2 ** -15 that add up to exactly 1: every partial sum is a multiple of 2 ** -15
below 256, which float32 holds, so the order of adding changes nothing, and torch, NumPy and ONNX Runtime agree to the
bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL import Image

ONE = 1 << 15  # what the weights of a pixel add up to, as whole numbers
LUMA = (19595, 38470, 7471)  # of red, green and blue in grey, of 65536 (ITU-R BT.601, as Pillow has it)


class Preprocess(nn.Module):
    """A picture of any size in, pixels in [0, 1] out: what the network was scored on.

    Args:
        channels: 3, or 1 for grey.
        side: of what comes out, pixels square; None: as large as the picture.
        short: what the short side is resized to before the centre is cut out, pixels; None: `side`.
    """

    def __init__(self, channels: int, side: int | None = None, short: int | None = None) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"pictures have 1 channel or 3, not {channels}")
        self.channels, self.side, self.short = channels, side, short or side

    @property
    def config(self) -> dict[str, int | None]:
        """What the class is called with."""
        return {"channels": self.channels, "side": self.side, "short": self.short}

    def forward(self, picture: object) -> Tensor:
        """float32 ``(N, C, side, side)`` in [0, 1]; N is 1 but for a batch. See `levels`."""
        return self.levels(picture).float() / 255

    def levels(self, picture: object) -> Tensor:
        """uint8 ``(N, C, side, side)``, grey levels.

        Args:
            picture: a PIL image, turned upright as its EXIF says; an array uint8 ``(H, W)``, ``(H, W, 1)``, ``(H, W,
                3)`` or with alpha, which is dropped; or a tensor uint8 ``(C, H, W)`` or ``(N, C, H, W)``.

        Raises:
            TypeError, ValueError: it is none of these.
        """
        x = self.coloured(batch(picture))
        if self.side is None or self.short is None:
            return x
        height, width = x.shape[-2:]
        least = cast(int, torch.sym_min(height, width))  # min would fix the sizes of an exported program
        for axis, length in ((-1, width), (-2, height)):
            wanted = (2 * length * self.short + least) // (2 * least)
            x = resampled(x, axis, wanted, (wanted - self.side) // 2, self.side)
        return x

    def coloured(self, x: Tensor) -> Tensor:
        """uint8 ``(N, 1 to 4, H, W)`` -> ``(N, channels, H, W)``."""
        x = x[:, : 1 if x.shape[1] < 3 else 3]
        if x.shape[1] == self.channels:
            return x
        if self.channels == 3:
            return x.expand(-1, 3, -1, -1)
        red, green, blue = x.int().split(1, 1)
        return ((red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + 32768) // 65536).to(torch.uint8)


def resampled(x: Tensor, axis: int, wanted: int, first: int, count: int) -> Tensor:
    """uint8 ``(..., H, W)`` with one of these axes made `wanted` long, of which `count` pixels from `first` on are
    kept."""
    rows = weights(x.shape[axis], wanted, first, count).to(x.device)
    x = rows @ x.float() if axis == -2 else x.float() @ rows.T
    return (x + 0.5).floor().to(torch.uint8)


def weights(length: int, wanted: int, first: int, count: int) -> Tensor:
    """How much each of `length` pixels counts in `count` of `wanted` ones from `first` on: float32 ``(count,
    length)``."""
    # In units of 1 / (2 * wanted) pixels every centre and distance is a whole number.
    to, come = 2 * (torch.arange(count) + first) + 1, 2 * torch.arange(length) + 1
    apart = (come[None] * wanted - to[:, None] * length).abs()
    reach = 2 * cast(int, torch.sym_max(length, wanted))
    sums = torch.clamp_min(reach - apart, 0).cumsum(1)
    total = sums[:, -1:]
    edges = (2 * ONE * sums + total) // (2 * total)  # a sum's share of the whole, rounded, so that all add up to ONE
    return (edges - F.pad(edges[:, :-1], (1, 0))).float() / ONE


def batch(picture: object) -> Tensor:
    """A picture, or a tensor of several, as uint8 ``(N, C, H, W)``. See `Preprocess.levels`."""
    if hasattr(picture, "getexif"):
        return opened(cast("Image.Image", picture))
    upright = isinstance(picture, Tensor)  # channels stand before rows in tensors, after columns in arrays
    x = torch.as_tensor(picture)
    if x.dtype != torch.uint8:
        raise TypeError(f"pixels are {x.dtype}, whose range is not known; give uint8, 0 to 255")
    if x.ndim == 2:
        return x[None, None]
    if x.ndim == 3:
        x = (x if upright else x.permute(2, 0, 1))[None]
    if x.ndim != 4 or not 1 <= x.shape[1] <= 4:
        raise ValueError(
            f"a picture is an array (H, W) or (H, W, 1 to 4), or a tensor (1 to 4, H, W) or (N, 1 to 4, H, W); this "
            f"one has the shape {tuple(x.shape)}"
        )
    return x


def opened(image: Image.Image) -> Tensor:
    """A PIL image, upright, as uint8 ``(1, 1 or 3, H, W)``; of 16 bits the upper 8."""
    from PIL import ImageOps  # at hand where there is a PIL image

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        pairs = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 2)
        return pairs[None, None, ..., 0 if image.mode.endswith("B") else 1]
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no range of their own; save it with 8 or 16 bits a channel")
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(1, image.height, image.width, -1).permute(0, 3, 1, 2)
