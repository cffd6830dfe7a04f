"""How training images are varied: crops, RandAugment, erased rectangles. Each is a function of an image and of draws
that are given, so that nothing here depends on the batch, the process or a global generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from nas.preprocess import opened

TRIES = 10  # crops drawn, of which the first that fits is taken
CROP_DRAWS = 2 * TRIES + 2  # uniform ones that a crop takes
SIDEWAYS = range(5, 9)  # EXIF's orientations whose rows are columns
ORIENTATION = 0x0112
MAGNITUDE = 0.9  # of 1, the largest in RandAugment: timm's m9, and so the recipes of transformers have it


def crop_place(height: int, width: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop of 8 to 100 % of the area and a side ratio of 3/4 to 4/3 (Szegedy et al.
    2015, section 6), as torchvision's RandomResizedCrop draws it: the first of ten that fits, else the middle.

    Args:
        draws: uniform in [0, 1), ``(CROP_DRAWS,)``.
    """
    area = (0.08 + 0.92 * draws[:TRIES]) * height * width
    ratio = np.exp((2 * draws[TRIES : 2 * TRIES] - 1) * math.log(4 / 3))
    talls, wides = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (talls > 0) & (talls <= height) & (wides > 0) & (wides <= width)
    if not fits.any():
        tall, wide = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
        return (height - tall) // 2, (width - wide) // 2, tall, wide
    tall, wide = int(talls[fits.argmax()]), int(wides[fits.argmax()])
    return int(draws[-2] * (height - tall + 1)), int(draws[-1] * (width - wide + 1)), tall, wide


def crop_of(image: Image.Image, side: int, draws: np.ndarray) -> Image.Image:
    """Such a crop of a picture as its file has it, upright, in RGB, resized to `side` pixels square.

    A JPEG is decoded at a half, a quarter or an eighth of its size where the crop has more pixels than are asked for
    even then.

    Args:
        image: open, nothing decoded yet.
    """
    (width, height), turned = image.size, image.getexif().get(ORIENTATION, 1)
    if turned in SIDEWAYS and image.format != "TIFF":  # whose size Pillow tells upright
        width, height = height, width
    place = crop_place(height, width, draws)
    less = next(less for less in (8, 4, 2, 1) if less == 1 or min(place[2:]) >= less * side)
    if less > 1 and image.draft(None, (image.width // less, image.height // less)):
        place = place[0] // less, place[1] // less, place[2] // less, place[3] // less
    if image.mode not in ("L", "RGB"):  # palettes and bits would be resized without a filter, colours by their alpha
        image = image_of(opened(image)[0])
    elif turned != 1:
        image = ImageOps.exif_transpose(image)
    cut = _resized(image, side, place)
    return cut if cut.mode == "RGB" else cut.convert("RGB")


def resized_crop(picture: Tensor, side: int, draws: np.ndarray) -> Image.Image:
    """The same of a picture in memory, uint8 ``(C, H, W)``, in its own colours."""
    height, width = picture.shape[-2:]
    return _resized(image_of(picture), side, crop_place(height, width, draws))


def image_of(picture: Tensor) -> Image.Image:
    """Uint8 ``(C, H, W)`` as Pillow has it, which is quicker in all that comes here."""
    from torchvision.transforms.v2 import functional  # takes seconds to import, so where it is used, here and below

    made: Image.Image = functional.to_pil_image(picture)
    return made


def tensor_of(images: Iterable[Image.Image]) -> Tensor:
    """Images of one size as uint8 ``(n, C, H, W)``."""
    from torchvision.transforms.v2 import functional

    return torch.stack([functional.pil_to_tensor(image) for image in images])


def _resized(image: Image.Image, side: int, place: tuple[int, int, int, int]) -> Image.Image:
    from torchvision.transforms.v2 import functional

    made: Image.Image = functional.resized_crop(image, *place, [side, side], antialias=True)
    return made


def erased(x: Tensor, seeds: np.ndarray) -> Tensor:
    """Random erasing (arXiv:1708.04896): a rectangle of 2 to 33 % of each uint8 ``(n, C, H, W)`` becomes random
    pixels, a seed an image."""
    x = x.clone()
    height, width = x.shape[-2:]
    for image, seed in zip(x, seeds, strict=True):
        rng = np.random.default_rng(seed)
        share, stretch = rng.uniform(0.02, 1 / 3), math.exp(rng.uniform(-1, 1) * math.log(1 / 0.3))
        tall, wide = (
            min(size, max(1, round(length)))
            for size, length in zip((height, width), _sides(share * height * width, stretch), strict=True)
        )
        top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        image[:, top : top + tall, left : left + wide] = torch.from_numpy(
            rng.integers(0, 256, (len(image), tall, wide), dtype=np.uint8)
        )
    return x


def _sides(area: float, stretch: float) -> tuple[float, float]:
    """Height and width of a rectangle whose width is `stretch` times its height."""
    return math.sqrt(area / stretch), math.sqrt(area * stretch)


def rand_augment(image: Image.Image, seed: np.uint64) -> Image.Image:
    """RandAugment (arXiv:1909.13719), 2 operations.

    They and their ranges are torchvision's, which draws from torch's global generator: other threads use that as well.
    """
    rng = np.random.default_rng(seed)
    for _ in range(2):
        operation = OPERATIONS[rng.integers(len(OPERATIONS))]
        image = operation(image, -MAGNITUDE if rng.random() < 0.5 else MAGNITUDE)
    return image


Operation = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, **given: object) -> Image.Image:
    from torchvision.transforms.v2 import functional

    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return functional.affine(image, **{**still, **given})


def _functional(name: str, argument: Callable[[float], float] | None = None) -> Operation:
    """One of torchvision's functions, and what it is given for a magnitude."""

    def operation(image: Image.Image, magnitude: float) -> Image.Image:
        from torchvision.transforms.v2 import functional

        made: Image.Image = getattr(functional, name)(image, *(() if argument is None else (argument(magnitude),)))
        return made

    return operation


def _sheared(magnitude: float) -> float:
    return math.degrees(math.atan(0.3 * magnitude))


# By a magnitude in [-1, 1], of which some take the size alone.
OPERATIONS: tuple[Operation, ...] = (
    lambda image, _: image,
    lambda image, m: _affine(image, shear=[_sheared(m), 0.0], center=[0, 0]),
    lambda image, m: _affine(image, shear=[0.0, _sheared(m)], center=[0, 0]),
    lambda image, m: _affine(image, translate=[int(150 / 331 * image.width * m), 0]),
    lambda image, m: _affine(image, translate=[0, int(150 / 331 * image.height * m)]),
    _functional("rotate", lambda m: 30 * m),
    *(
        _functional(f"adjust_{what}", lambda m: 1 + 0.9 * m)
        for what in ("brightness", "saturation", "contrast", "sharpness")
    ),
    _functional("posterize", lambda m: 8 - round(4 * abs(m))),
    _functional("solarize", lambda m: 255 * (1 - abs(m))),
    _functional("autocontrast"),
    _functional("equalize"),
)
