"""Pictures of what a child does, for the report: images side by side with a line under each. Which ones is the
task's business."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

ZOOM = 72  # pixels square that are enlarged
OVERVIEW = 288  # longer side of the whole image, pixels
MARK = ("black", "white", "black")  # of the square in the whole image, from the inside: seen on any colour
FOLDER, INDEX = "pictures", "pictures.json"


@dataclass(frozen=True)
class Panel:
    """One image with its line: uint8 ``(H, W, 3)``; `enlarged` ones are shown larger than they are, pixel by pixel."""

    label: str
    note: str
    pixels: np.ndarray
    enlarged: bool = True


@dataclass(frozen=True)
class Picture:
    """Panels that belong side by side."""

    title: str
    panels: tuple[Panel, ...]


def compare(title: str, images: Mapping[str, Tensor], notes: Mapping[str, str]) -> Picture:
    """The last image as a whole, then all of them enlarged where they differ most.

    Args:
        images: each ``(1, 3, H, W)`` in [0, 1], of one size.
        notes: a line for each.
    """
    pixels = {label: _pixels(image) for label, image in images.items()}
    top, left, side = most_different(list(images.values()), ZOOM)
    window = np.s_[top : top + side, left : left + side]
    whole = Image.fromarray(list(pixels.values())[-1])
    for away, colour in enumerate(MARK):
        ImageDraw.Draw(whole).rectangle(
            (left - 2 * away, top - 2 * away, left + side - 1 + 2 * away, top + side - 1 + 2 * away),
            outline=colour,
            width=2,
        )
    whole.thumbnail((OVERVIEW, OVERVIEW))
    overview = Panel(
        title, f"enlarged: {side} x {side} pixels, where they differ most", np.asarray(whole), enlarged=False
    )
    return Picture(title, (overview, *(Panel(label, notes[label], image[window]) for label, image in pixels.items())))


def most_different(images: Sequence[Tensor], side: int) -> tuple[int, int, int]:
    """Top, left and side of the square in which the variance between images ``(1, 3, H, W)`` is the largest."""
    side = min(side, *images[0].shape[-2:])
    apart = torch.cat(list(images)).double().var(0, correction=0).sum(0)
    sums = F.pad(apart, (1, 0, 1, 0)).cumsum(0).cumsum(1)
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = divmod(int(inside.argmax()), inside.shape[1])
    return top, left, side


def _pixels(image: Tensor) -> np.ndarray:
    return (image[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def save_pictures(pictures: Sequence[Picture], directory: Path) -> None:
    """PNG files in `directory`, and a list of them that `read_pictures` in the report follows; nothing for no
    pictures."""
    if not pictures:
        return
    (directory / FOLDER).mkdir()
    index = []
    for i, picture in enumerate(pictures):
        panels = []
        for j, panel in enumerate(picture.panels):
            file = f"{FOLDER}/{i}-{j}.png"
            Image.fromarray(panel.pixels).save(directory / file)
            panels.append({"label": panel.label, "note": panel.note, "enlarged": panel.enlarged, "file": file})
        index.append({"title": picture.title, "panels": panels})
    (directory / INDEX).write_text(json.dumps(index, indent=1))
