"""Pairs of low and high resolution: photographs from disk into memory, crops to learn from, whole images to be tested
on.

The low-resolution image is made from the other by Pillow's bicubic filter, which is antialiased (a = -0.5) and gives
the figures that MATLAB's imresize gives within 0.02 dB. torch's differs by a grey level here and there, and enlarges
by another kernel (a = -0.75).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nas.draws import permutation, uniform
from nas.preprocess import opened
from nas.tasks import quality
from nas.tasks.files import MOST_BYTES, readable
from nas.tasks.options import SuperResolutionOptions
from nas.tasks.places import IMAGES, TEST_PHOTOS, TRAIN_PHOTOS, images, wheel
from nas.tasks.stored import StoredPhoto, stored

SMALLEST = 32  # sides of a test image, pixels: what metrics need when a border is cut off


@dataclass(frozen=True)
class Photo:
    """One image in memory: its name, uint8 ``(H, W, 3)``, and whether its file has one channel alone."""

    name: str
    pixels: np.ndarray
    grey: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def sums(self) -> np.ndarray:
        """Of each colour's grey levels: int64 ``(3,)``."""
        return self.pixels.sum((0, 1), dtype=np.int64)


def bicubic(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 ``(H, W, 3)`` -> ``(height, width, 3)``, either way."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def divisible(pixels: np.ndarray, scale: int) -> np.ndarray:
    """The image without the last rows and columns that the scale does not divide."""
    height, width = (size // scale * scale for size in pixels.shape[:2])
    return pixels[:height, :width]


def degrade(pixels: np.ndarray, scale: int) -> np.ndarray:
    """The low-resolution image of a high-resolution one whose sides the scale divides."""
    return bicubic(pixels, pixels.shape[0] // scale, pixels.shape[1] // scale)


def tensor(pixels: list[np.ndarray]) -> Tensor:
    """Images of one size: uint8 ``(H, W, 3)`` each -> float32 ``(n, 3, H, W)`` in [0, 1]."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous().float() / 255


def enlarge(x: Tensor, scale: int) -> Tensor:
    """What bicubic interpolation makes of low-resolution images: ``(n, 3, h, w)`` in [0, 1] -> ``(n, 3, h * scale, w
    * scale)``."""
    images = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    height, width = (size * scale for size in x.shape[-2:])
    return tensor([bicubic(image, height, width) for image in images]).to(x.device)


@dataclass(frozen=True)
class Crops:
    """Squares cut out of images: an example is a cell of an image, and no two cells share a pixel.

    Attributes:
        photos: whole images.
        cells: int64 ``(N, 5)``: image, top, left, bottom, right.
        side: of a low-resolution crop, pixels.
        settings: how examples are augmented.
        seed: of the augmentation.
    """

    photos: Sequence[Photo | StoredPhoto]
    cells: np.ndarray
    side: int
    settings: SuperResolutionOptions
    seed: int
    at_once: int | None = None

    def __len__(self) -> int:
        return len(self.cells)

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        """Low and high resolution in [0, 1]: float32 ``(n, 3, side, side)`` and ``(n, 3, side * scale, side * scale)``.

        With an epoch each crop lies somewhere in its cell, mirrored or turned; how depends on (seed, epoch, its index)
        alone. Without one it is the middle of the cell.
        """
        scale, indices = self.settings.scale, np.asarray(indices)
        image, top, left, bottom, right = self.cells[indices].T
        size = self.side * scale

        def draw(purpose: str, wanted: bool = True) -> np.ndarray:
            return (
                np.zeros(len(indices)) if epoch is None or not wanted else uniform(self.seed, purpose, epoch, indices)
            )

        room = bottom - top - size + 1, right - left - size + 1
        if epoch is None:
            tops, lefts = top + (room[0] - 1) // 2, left + (room[1] - 1) // 2
        else:
            tops, lefts = top + (draw("top") * room[0]).astype(int), left + (draw("left") * room[1]).astype(int)
        mirrored, turns = draw("flip", self.settings.flip) >= 0.5, (draw("turn", self.settings.rotate) * 4).astype(int)
        high = []
        for i, t, s, m, k in zip(image, tops, lefts, mirrored, turns, strict=True):
            crop = self.photos[i].pixels[t : t + size, s : s + size]
            high.append(np.ascontiguousarray(np.rot90(crop[:, ::-1] if m else crop, k)))
        return tensor([degrade(crop, scale) for crop in high]), tensor(high)


@dataclass(frozen=True)
class Wholes:
    """Whole images, cut to a multiple of the scale; they differ in size, so a batch is one image.

    Attributes:
        at_once: most examples in a batch.
    """

    photos: Sequence[Photo | StoredPhoto]
    scale: int
    at_once: int | None = 1

    def __len__(self) -> int:
        return len(self.photos)

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        """As `Crops.batch`: ``(n, 3, h, w)`` and ``(n, 3, h * scale, w * scale)``, of images of one size; of grey
        ones ``(n, 1, ...)``."""
        high = [divisible(self.photos[i].pixels, self.scale) for i in indices]
        grey = all(self.photos[i].grey for i in indices)
        return tensor([degrade(pixels, self.scale) for pixels in high]), tensor(high)[:, : 1 if grey else 3]


def cells(photos: Sequence[Photo | StoredPhoto], rows: np.ndarray, side: int) -> np.ndarray:
    """Some images in cells of at least `side` pixels square that cover them: int64 ``(N, 5)``; an image smaller than
    that is one cell."""
    found = [np.empty((0, 5), np.int64)]
    for image in rows:
        ends = []
        for size in photos[image].shape:
            edges = np.linspace(0, size, max(1, size // side) + 1).round().astype(np.int64)
            ends.append(np.stack((edges[:-1], edges[1:]), 1))
        grid = [(image, top, left, bottom, right) for top, bottom in ends[0] for left, right in ends[1]]
        found.append(np.array(grid, np.int64))
    return np.concatenate(found)


def divide(photos: Sequence[Photo | StoredPhoto], settings: SuperResolutionOptions, seed: int) -> tuple[Crops, Crops]:
    """Training and validation crops, of different images: a tenth of them, two at least, is held out, or more where
    they hold too few crops.

    A training crop comes from a cell twice as long. A validation crop is four times as long, so that a mean of PSNR
    over crops orders networks as one over whole images does: among smaller ones there are many of sky or wall, whose
    PSNR is high and says little.

    Raises:
        ValueError: an image is too small to be cropped, or there are too few.
    """
    crop = settings.patch * settings.scale
    cell = 4 * crop
    for photo in photos:
        if min(photo.shape) < crop:
            height, width = photo.shape
            raise ValueError(
                f"{photo.name} is {width} x {height} pixels; data.patch {settings.patch} at scale {settings.scale} "
                f"needs {crop}: lower data.patch or remove it"
            )
    order = permutation(len(photos), seed, "validation")
    order = np.array(
        sorted(order, key=lambda row: min(photos[row].shape) < cell), int
    )  # those that hold whole cells first
    fit = np.empty((0, 5), np.int64)
    for held in range(min(max(2, -(-len(photos) // 10)), len(photos) - 1), len(photos)):
        found = cells(photos, np.sort(order[:held]), cell)
        fit = found[(found[:, 3:] - found[:, 1:3] >= cell).all(1)]
        if len(fit) >= settings.validation:
            spread = fit[np.linspace(0, len(fit) - 1, settings.validation).round().astype(int)]
            train = Crops(photos, cells(photos, np.sort(order[held:]), 2 * crop), settings.patch, settings, seed)
            return train, Crops(photos, spread, 4 * settings.patch, settings, seed)
    raise ValueError(
        f"data.validation {settings.validation}: all but one of the {len(photos)} training images hold {len(fit)} "
        f"crops of {cell} x {cell} "
        "pixels; hold fewer out, lower data.patch or give more images"
    )


def load_photos(settings: SuperResolutionOptions) -> tuple[Sequence[Photo | StoredPhoto], list[Photo]]:
    """The images to train on and those to be tested on; the first in a file where memory would be short of room.

    Raises:
        DataMissing: they are not there (a `FileNotFoundError`).
        ValueError: a file is not a readable image, a test image is too small or trained on too, there are none, or
            those to be tested on are more than memory may take.
    """
    base = settings.locate()
    if base is None:
        parts = [[wheel() / name for name in names] for names in (TRAIN_PHOTOS, TEST_PHOTOS)]
    else:
        parts = [_files(base / settings.train), _files(base / settings.test)]
        _guard_test(*parts)
    _guard_memory(parts[1])
    judged = [_photo(file) for file in parts[1]]
    learnt = [_photo(file) for file in parts[0]] if _size(parts[0]) <= MOST_BYTES else stored(parts[0], _photo)
    border = settings.scale if settings.border is None else settings.border
    least = max(SMALLEST, 2 * border + quality.WINDOW + settings.scale)  # what is left of it must hold a window of SSIM
    for photo in judged:
        if min(photo.shape) < least:
            raise ValueError(
                f"the test image {photo.name} is smaller than {least} pixels (with data.border {border}); remove it"
            )
    return learnt, judged


def _files(folder: Path) -> list[Path]:
    """Those in a folder, sorted.

    Raises:
        ValueError: there are none.
    """
    if not (files := sorted(images(folder))):
        raise ValueError(f"no images in {folder}; files are images when they end in {' '.join(IMAGES)}")
    return files


def _guard_test(train: list[Path], test: list[Path]) -> None:
    """Refuse a test image that is among those to train on and to choose by, in whichever folder it lies."""
    sizes = {file.stat().st_size for file in test}
    known = {_digest(file) for file in train if file.stat().st_size in sizes}
    if both := [file for file in test if _digest(file) in known]:
        raise ValueError(
            f"{len(both)} of {len(test)} test images are in data.train too, such as {both[0]}: test on others, or "
            "remove them from one of the folders"
        )


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _size(files: list[Path]) -> int:
    """Bytes of the pixels of images."""
    size = 0
    for file in files:
        with readable(file) as image:
            size += image.width * image.height * 3
    return size


def _guard_memory(files: list[Path]) -> None:
    if (size := _size(files)) > MOST_BYTES:
        raise ValueError(
            f"{len(files)} test images would take {size / 1024**3:.1f} GiB; every process keeps them in memory, at "
            f"most {MOST_BYTES / 1024**3:.0f} GiB is allowed: give fewer, or parts cut out of them"
        )


def _photo(file: Path) -> Photo:
    with readable(file) as image:
        pixels = opened(image)
    return Photo(file.stem, pixels[0].expand(3, -1, -1).permute(1, 2, 0).numpy().copy(), grey=pixels.shape[1] == 1)
