"""A user's own image files: decoded when they are asked for, and kept while there is room."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

MOST_BYTES = 2 * 1024**3  # of pixels that every process keeps in memory


class Files:
    """Images on disk, asked for by rows as those of a tensor are.

    What was decoded is kept until it takes `MOST_BYTES` together; what came later is decoded at each use. A training
    step waits for its images if they cannot be decoded while the one before is computed.

    Args:
        prepare: an open image as uint8 ``(3, H, W)``.
    """

    def __init__(self, paths: list[Path], prepare: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.prepare = paths, prepare
        self._kept: dict[int, Tensor] = {}
        self._room = MOST_BYTES

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Tensor) -> list[Tensor]:
        """uint8 ``(3, H, W)`` each.

        Raises:
            ValueError: a file is not a readable image; it is named.
        """
        return [self._image(row) for row in rows.tolist()]

    def _image(self, row: int) -> Tensor:
        if row in self._kept:
            return self._kept[row]
        with readable(self.paths[row]) as image:
            found = self.prepare(image)
        if found.nbytes <= self._room:
            self._room -= found.nbytes
            self._kept[row] = found
        return found


def decoded(paths: list[Path], prepare: Callable[[Image.Image], Tensor], side: int) -> Tensor | Files:
    """Images that `prepare` makes ``(3, side, side)``: a tensor uint8 ``(N, 3, side, side)``, or `Files` where that
    would take more than `MOST_BYTES`.

    Raises:
        ValueError: a file is not a readable image; it is named.
    """
    files = Files(paths, prepare)
    return files if len(paths) * 3 * side * side > MOST_BYTES else torch.stack(files[torch.arange(len(paths))])


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
