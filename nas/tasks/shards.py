"""Images in tar files, read where they lie. A tar is looked through once; then each image is read by its place, as a
file is, so that an epoch's order stays a function of the seed, whatever shard an image is in.

What WebDataset writes is read as well (``key.jpg`` beside ``key.cls``). Its own reader is not used: it gives a stream,
whose order hangs on the number of readers, and which cannot go on from the middle of an epoch to the same images.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from nas.tasks.places import IMAGES

RECORD = 10_240  # bytes, which writers of tars fill up


class Member(NamedTuple):
    """An image in a tar: bytes `start` to ``start + size``."""

    tar: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}, bytes {self.start} to {self.start + self.size}"

    def read(self) -> io.BytesIO:
        """What is in the image's file."""
        with open(self.tar, "rb") as file:
            file.seek(self.start)
            return io.BytesIO(file.read(self.size))


class Members(Sequence[Member]):
    """Many images in few tars: 20 bytes for each."""

    def __init__(self, tars: list[str], counts: list[int], starts: np.ndarray, sizes: np.ndarray) -> None:
        self.tars, self.which = tars, np.repeat(np.arange(len(tars), dtype=np.int32), counts)
        self.starts, self.sizes = starts, sizes

    @classmethod
    def of(cls, part: dict[str, Any]) -> Members:
        """Those of a part, one of what `found` gives."""
        starts, sizes = (
            np.array([number for each in part.values() for number in each[key]], dtype=np.int64)
            for key in ("starts", "sizes")
        )
        return cls(list(part), [len(each["starts"]) for each in part.values()], starts, sizes)

    def __len__(self) -> int:
        return len(self.which)

    @overload
    def __getitem__(self, row: int) -> Member: ...
    @overload
    def __getitem__(self, row: slice) -> Members: ...
    def __getitem__(self, row: int | slice) -> Member | Members:
        if isinstance(row, slice):
            rows = range(len(self))[row]
            made = Members(self.tars, [0] * len(self.tars), self.starts[rows], self.sizes[rows])
            made.which = self.which[rows]
            return made
        return Member(self.tars[self.which[row]], int(self.starts[row]), int(self.sizes[row]))


def tars_in(part: Path) -> list[Path]:
    """The shards of a part, by name; none where it has folders of classes, beside which the tars lie that they were
    unpacked from."""
    shown = [path for path in part.iterdir() if not path.name.startswith(".")]
    return [] if any(path.is_dir() for path in shown) else sorted(path for path in shown if path.suffix == ".tar")


def found(parts: tuple[Path, Path]) -> tuple[list[str], list[dict[str, Any]]]:
    """The classes of a training and a test part, by name, numbers in their order; and of each part where its images lie
    and which class they have, plain values by shard; the part's own folder is among them, with its time and no images.

    Raises:
        ValueError: a shard is damaged, an image has no class or one that the training part has not, a part is empty.
    """
    folders = [{str(part): _plain(part, [], {})} for part in parts]  # first: a tar that comes meanwhile is told by it
    members = [{str(tar): _members(tar) for tar in tars_in(part)} for part in parts]
    names = [{name for each in part.values() for name, _, _ in each} for part in members]
    if empty := [str(part) for part, there in zip(parts, names, strict=True) if not there]:
        raise ValueError(f"no images in the tars of {' and '.join(empty)}; images end in {' '.join(IMAGES)}")
    if stray := sorted(names[1] - names[0]):
        raise ValueError(f"{parts[1]} has classes that {parts[0]} has not: {', '.join(stray[:10])}")
    classes = sorted(names[0], key=_in_order)
    label = {name: number for number, name in enumerate(classes)}
    shards = [{tar: _plain(tar, each, label) for tar, each in part.items()} for part in members]
    return classes, [folder | part for folder, part in zip(folders, shards, strict=True)]


def _plain(tar: str | Path, members: list[tuple[str, int, int]], label: dict[str, int]) -> dict[str, Any]:
    """What is kept of a shard, or of the folder of shards; its time tells whether it is still the same."""
    names, starts, sizes = zip(*members, strict=True) if members else ((), (), ())
    labels = [label[name] for name in names]
    return {"time": os.stat(tar).st_mtime_ns, "labels": labels, "starts": list(starts), "sizes": list(sizes)}


def _in_order(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (1 << 62, name)


def _members(path: Path) -> list[tuple[str, int, int]]:
    """Class, first byte and size of each image that is not hidden, in the order of their names."""
    images: dict[str, tuple[int, int]] = {}
    classes: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in (info for info in tar if not _hidden(info.name)):
                key, end = os.path.splitext(info.name)
                if end.lower() in IMAGES:
                    if not info.isreg():
                        raise tarfile.ReadError(f"{info.name} is a link")
                    if key in images:
                        raise tarfile.ReadError(f"it holds two images {key}")
                    images[key] = info.offset_data, info.size
                elif end == ".cls" and (file := tar.extractfile(info)):
                    classes[key] = file.read(300).decode().strip()
            _check_end(path, tar.offset)
    except (tarfile.TarError, UnicodeDecodeError, EOFError) as error:
        raise ValueError(f"the shard {path} is no whole tar, or is compressed: {error}") from error
    return [(_class_of(key, classes, path), *images[key]) for key in sorted(images)]


def _hidden(name: str) -> bool:
    """Whether a file in a tar, or a folder that it is in, is one that systems and editors hide; ``./`` is none."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _check_end(path: Path, end: int) -> None:
    """Raises: tarfile.ReadError, where a tar does not end with zeros, two blocks to a record of them. tarfile itself
    minds neither a file that is cut there, nor what comes after: another tar, or what was never downloaded."""
    with path.open("rb") as file:
        file.seek(end)
        left = file.read(RECORD + 1025)
    if not 1024 <= len(left) <= RECORD + 1024 or any(left):
        raise tarfile.ReadError("it does not end where its last image does")


def _class_of(key: str, classes: dict[str, str], path: Path) -> str:
    """What ``key.cls`` says, or the folder that the image is in."""
    folder = os.path.basename(os.path.dirname(os.path.normpath(key)))
    if not (name := classes.get(key) or folder):
        raise ValueError(
            f"the image {key} in {path} has no class: put it into a folder of its class, or a file {key}.cls beside it"
        )
    return name


def are(part: dict[str, Any]) -> bool:
    """Whether a part, one of what `found` gives or of what is known of folders, lies in shards."""
    return any("starts" in each for each in part.values())


def labels_of(part: dict[str, Any]) -> list[int]:
    """The classes of a part's images, by number, in the order of `Members`."""
    return [label for each in part.values() for label in each["labels"]]
