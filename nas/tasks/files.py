"""A user's own image files: in memory where they are few, decoded at each use where they are many."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MOST_BYTES = 2 * 1024**3  # of pixels that every process keeps in memory


class Files:
    """Images on disk that look like a uint8 tensor ``(N, 3, side, side)``; rows are decoded when they are asked for.

    A training step waits for its images if they cannot be decoded while the one before is computed.
    """

    def __init__(self, paths: list[Path], side: int) -> None:
        self.paths, self.shape, self.side = paths, torch.Size((len(paths), 3, side, side)), side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """uint8 ``(n, 3, side, side)``.

        Raises:
            ValueError: a file is not a readable image; it is named.
        """
        return decode([self.paths[row] for row in rows.tolist()], self.side)


def read_files(paths: list[Path], side: int) -> Tensor | Files:
    """The images as a uint8 tensor ``(N, 3, side, side)``, or as `Files` where they would take more than 2 GiB."""
    return decode(paths, side) if len(paths) * 3 * side * side <= MOST_BYTES else Files(paths, side)


def decode(files: list[Path], side: int) -> Tensor:
    """uint8 ``(N, 3, side, side)``.

    Raises:
        ValueError: a file is not a readable image; it is named.
    """
    out = np.empty((len(files), 3, side, side), np.uint8)
    for row, file in zip(out, files, strict=True):
        with readable(file) as image:
            row[:] = square(rgb(image), side).transpose(2, 0, 1)
    return torch.from_numpy(out)


@contextmanager
def readable(file: Path) -> Iterator[Image.Image]:
    """An open image.

    Raises:
        ValueError: the file is not a readable image, found now or when its pixels are asked for; it is named.
    """
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore", UserWarning)  # palettes with transparency: Pillow would rather give RGBA
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {file}: {error}; mend or remove it") from error


def rgb(image: Image.Image) -> Image.Image:
    """An image as RGB with 8 bits a channel; of grey with 16 bits the upper 8.

    Raises:
        ValueError: its pixels are numbers whose range is not known.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no range of their own; save it with 8 or 16 bits a channel")
    return image.convert("RGB")


def square(image: Image.Image, side: int) -> np.ndarray:
    """uint8 ``(side, side, 3)``: short side resized to `side`, centre cut out."""
    scale = side / min(image.size)
    width, height = (max(side, round(n * scale)) for n in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(
        image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    )
