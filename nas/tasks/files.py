"""A user's own images, in files of their own or in tars, decoded when they are asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from PIL import Image
from torch import Tensor

from nas.preprocess import Preprocess
from nas.tasks.shards import Member

MOST_BYTES = 2 * 1024**3  # of pixels that a process keeps in memory


class Files:
    """Images on disk, asked for by rows as those of a tensor are.

    Args:
        paths: where they lie.
        preprocess: what is made of them.
        room: bytes of what was made that are kept; what comes later is decoded at each use.
    """

    def __init__(self, paths: Sequence[str | Member], preprocess: Preprocess, room: int = 0) -> None:
        self.paths, self.preprocess, self._room = paths, preprocess, room
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Tensor) -> list[Tensor]:
        """uint8 ``(C, H, W)`` each.

        Raises:
            ValueError: a file is not a readable image; it is named.
        """
        return [self._image(row) for row in rows.tolist()]

    def opened(self, row: int) -> AbstractContextManager[Image.Image]:
        """The picture as its file has it. Raises as `readable`."""
        return readable(self.paths[row])

    def _image(self, row: int) -> Tensor:
        if row in self._kept:
            return self._kept[row]
        with self.opened(row) as image:
            found = self.preprocess.levels(image)[0]
        if found.nbytes <= self._room:
            self._room -= found.nbytes
            self._kept[row] = found
        return found


@contextmanager
def readable(file: Path | str | Member) -> Iterator[Image.Image]:
    """An open image.

    Raises:
        ValueError: the file is not a readable image, found now or when its pixels are asked for; it is named.
    """
    try:
        with warnings.catch_warnings(), Image.open(file.read() if isinstance(file, Member) else file) as image:
            warnings.simplefilter("ignore", UserWarning)  # palettes with transparency: Pillow would rather give RGBA
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {file}: {error}; mend or remove it") from error
