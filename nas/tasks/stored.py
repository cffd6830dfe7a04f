"""Photographs that are too many for memory: their pixels in one file of the run, which all processes of a node map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nas.tasks.index import Index, current, stamp


class Decoded(Protocol):
    """An image in memory, see `nas.tasks.pairs.Photo`."""

    @property
    def pixels(self) -> np.ndarray: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def sums(self) -> np.ndarray: ...
    @property
    def grey(self) -> bool: ...


@dataclass(frozen=True)
class StoredPhoto:
    """One of them: as `nas.tasks.pairs.Photo`, its pixels where they are asked for."""

    name: str
    shape: tuple[int, int]
    sums: np.ndarray
    grey: bool
    read: Callable[[], np.ndarray]

    @property
    def pixels(self) -> np.ndarray:
        """uint8 ``(H, W, 3)``."""
        return self.read()


class Store:
    """The pixels of images one after the other in a file; without a run to keep it in, decoded at each use.

    Args:
        sizes: bytes of each image.
        index: of the run; it may be told later where the file may lie.
    """

    def __init__(self, files: list[Path], sizes: list[int], decode: Callable[[Path], Decoded], index: Index) -> None:
        self.files, self.decode, self.index = files, decode, index
        self.starts = np.cumsum([0, *sizes])
        self._mapped: np.ndarray | None = None

    def read(self, number: int) -> np.ndarray:
        """uint8 ``(H * W * 3,)``."""
        if self._mapped is None and self.index.shared is not None:
            path = self.index.shared / "photographs"
            self.index.once(path, self._write)
            self._mapped = np.memmap(path, np.uint8, "r", shape=(int(self.starts[-1]),))
        if self._mapped is None:
            return self.decode(self.files[number]).pixels.reshape(-1)
        return self._mapped[self.starts[number] : self.starts[number + 1]]

    def _write(self, path: Path) -> None:
        with path.open("wb") as file:
            for each in self.files:
                file.write(self.decode(each).pixels.tobytes())


def stored(files: list[Path], decode: Callable[[Path], Decoded]) -> list[StoredPhoto]:
    """Images of files, of which no more is in memory than what is known of them.

    Raises:
        ValueError: one is not a readable image.
    """

    def look() -> dict[str, Any]:
        found = {}
        for file in files:
            photo = decode(file)
            found[str(file)] = [stamp(file), photo.shape, photo.sums.tolist(), photo.grey]
        return found

    def as_they_were(known: dict[str, Any]) -> bool:
        return {str(file): stamp(file) for file in files} == {path: found[0] for path, found in known.items()}

    index = current()
    known = list(index.recall(f"photographs {files[0].parent}", as_they_were, look).values())
    store = Store(files, [3 * height * width for _, (height, width), _, _ in known], decode, index)

    def read(number: int, height: int, width: int) -> np.ndarray:
        return store.read(number).reshape(height, width, 3)

    return [
        StoredPhoto(file.stem, (height, width), np.array(sums), grey, partial(read, number, height, width))
        for number, (file, (_, (height, width), sums, grey)) in enumerate(zip(files, known, strict=True))
    ]
