"""Image data sets from disk into memory. Nothing is downloaded; a missing set is told with the ways to get it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.draws import permutation, stratified
from nas.preprocess import Preprocess
from nas.tasks import shards
from nas.tasks.files import MOST_BYTES, Files, readable
from nas.tasks.index import current, stamp
from nas.tasks.options import ClassificationOptions
from nas.tasks.places import IMAGES, cifar10_root, digits_file, fashion_root, folder_base, wheel

SAMPLE = 5000  # images on disk of a part that are looked at before anything begins


@dataclass(frozen=True)
class Images:
    """A data set for classification.

    Attributes:
        train_x, test_x: uint8 ``(C, side, side)`` each, as networks are judged on them.
        varied_x: the training part as augmentation starts from it: larger, or of any size, where there is more of a
            picture than networks see.
        train_y, test_y: int64, ``(N,)``.
        classes: a name for each label.
        mean, std: of the training part's pixels / 255, one number a channel.
        preprocess: what made `train_x` and `test_x` of pictures.
    """

    train_x: Tensor | Files
    varied_x: Tensor | Files
    train_y: Tensor
    test_x: Tensor | Files
    test_y: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocess: Preprocess


def load_images(settings: ClassificationOptions) -> Images:
    """The data set that the settings name.

    Raises:
        DataMissing: it is not there (a `FileNotFoundError`).
        ValueError: it is there, but damaged, unreadable or too large for memory.
    """
    load: dict[str, Callable[[ClassificationOptions], Images]] = {
        "digits": _digits,
        "textures": _textures,
        "fashion-mnist": _fashion_mnist,
        "cifar10": _cifar10,
        "folder": _folder,
    }
    return load[settings.name](settings)


def _images(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: list[str]) -> Images:
    """A data set of images of one size, which networks take as they are."""
    x, preprocess = train[0], Preprocess(train[0].shape[1], train[0].shape[-1])
    return Images(x, x, train[1].long(), test[0], test[1].long(), tuple(classes), *_statistics([x]), preprocess)


def _statistics(parts: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of x / 255 for each channel of uint8 ``(N, C, H, W)`` in all, exactly, from the
    histogram."""
    value = torch.arange(256, dtype=torch.float64) / 255
    share = torch.stack([_histogram(x) for x in parts]).sum(0).double()
    share /= share.sum(1, keepdim=True)
    mean = share @ value
    std = ((share @ value**2) - mean**2).clamp_min(0).sqrt()
    std[std == 0] = 1.0  # a channel of one colour carries nothing, and must not be divided by 0
    return tuple(mean.tolist()), tuple(std.tolist())


def _histogram(x: Tensor) -> Tensor:
    """How often each grey level occurs: int64 ``(C, 256)``."""
    return torch.stack([torch.bincount(x[:, c].flatten(), minlength=256) for c in range(x.shape[1])])


def _digits(settings: ClassificationOptions) -> Images:
    """scikit-learn's 1,797 digits (UCI, 8 x 8, values 0..16); 297 are the test part, whatever the experiment's seed."""
    rows = np.loadtxt(digits_file(), delimiter=",", dtype=np.int64)
    grey, target = rows[:, :-1].reshape(-1, 1, 8, 8), rows[:, -1]  # read here: importing scikit-learn takes a second
    x, y = torch.from_numpy(np.round(grey * (255 / 16)).astype(np.uint8)), torch.from_numpy(target)
    test = np.isin(np.arange(len(y)), stratified(target, 297, 0, "digits test"))
    return _images((x[~test], y[~test]), (x[test], y[test]), [str(n) for n in range(10)])


TEXTURES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
TEXTURE, BLOCK = 8, 4  # side of a patch of a halved photograph, pixels; of what is wholly in one part, patches
TRAINED, TESTED = 36, 17  # blocks of each photograph; the smallest one has 54


def _textures(settings: ClassificationOptions) -> Images:
    """Which of ten photographs of scikit-image's wheel a grey patch of 8 x 8 comes from: 5,760 to train on and 2,720 to
    test on.

    Patches do not overlap, and blocks of 4 x 4 of them are wholly in one part, so that few patches to test on touch one
    that is trained on.
    """
    train, test = [], []
    for number, name in enumerate(TEXTURES):
        with readable(wheel() / name) as image:
            grey = image.convert("L").reduce(2)
        rows, columns = grey.height // (TEXTURE * BLOCK), grey.width // (TEXTURE * BLOCK)
        side = TEXTURE * BLOCK
        pixels = np.asarray(grey)[: rows * side, : columns * side]
        blocks = pixels.reshape(rows, BLOCK, TEXTURE, columns, BLOCK, TEXTURE).transpose(0, 3, 1, 4, 2, 5)
        patches = blocks.reshape(rows * columns, BLOCK * BLOCK, TEXTURE, TEXTURE)
        drawn = permutation(len(patches), number, "textures")[: TESTED + TRAINED]
        test.append(patches[drawn[:TESTED]].reshape(-1, 1, TEXTURE, TEXTURE))
        train.append(patches[drawn[TESTED:]].reshape(-1, 1, TEXTURE, TEXTURE))
    (x, y), (test_x, test_y) = (
        (torch.from_numpy(np.concatenate(part)), torch.arange(len(TEXTURES)).repeat_interleave(len(part[0])))
        for part in (train, test)
    )
    return _images((x, y), (test_x, test_y), [Path(name).stem for name in TEXTURES])


def _fashion_mnist(settings: ClassificationOptions) -> Images:
    """Fashion-MNIST (arXiv:1708.07747): 60,000 + 10,000 of 28 x 28 in grey, read by torchvision."""
    from torchvision.datasets import FashionMNIST  # takes seconds to import, so where it is used

    root = fashion_root()
    try:
        parts = [FashionMNIST(str(root), train=train, download=False) for train in (True, False)]
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the files in {root / 'FashionMNIST' / 'raw'} are damaged; remove them and fetch them again"
        ) from error
    train, test = [(part.data.unsqueeze(1), part.targets) for part in parts]
    return _images(train, test, parts[0].classes)


def _cifar10(settings: ClassificationOptions) -> Images:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 of 32 x 32 in colour, read by torchvision."""
    from torchvision.datasets import CIFAR10

    root = cifar10_root()
    # The batch files are pickles. torchvision compares the md5 of each with the published one before it opens any, and
    # raises RuntimeError where one differs, so that only the original files are ever unpickled; nothing here may go
    # round that check.
    try:
        parts = [CIFAR10(str(root), train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        raise ValueError(
            f"{root / 'cifar-10-batches-py'} is not the original CIFAR-10 (a file is missing or its md5 differs)"
        ) from error
    train, test = [(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets)) for p in parts]
    return _images(train, test, parts[0].classes)


def _folder(settings: ClassificationOptions) -> Images:
    """A user's own images: ``train/<class>/`` and ``test/<class>/`` (or ``val/``, where there is no ``test/``), or tars
    in place of the classes' folders.

    Networks see each with its short side resized to 8/7 of the wanted size and cut square at the centre: the usual 256
    for 224. Random crops are cut out of the original picture; shifted ones out of a square of 8/7 of the size.
    """
    assert settings.path is not None and settings.size is not None  # the experiment file sees to it
    base, test_name = folder_base(settings.path)
    short = round(settings.size * 8 / 7)
    preprocess, wider = Preprocess(3, settings.size, short), Preprocess(3, short)
    parts = base / "train", base / test_name
    known = current().recall(f"{base} {settings.size}", _as_it_was, lambda: _look(parts, preprocess))
    classes = known["classes"]
    (train, train_y), (test, test_y) = (_examples(part, preprocess) for part in known["parts"])
    varied = Files(train.paths, wider, MOST_BYTES)
    mean, std = (tuple(known[name]) for name in ("mean", "std"))
    return Images(train, varied, train_y, test, test_y, tuple(classes), mean, std, preprocess)


def _look(parts: tuple[Path, Path], preprocess: Preprocess) -> dict[str, Any]:
    """Folders and names of all images, and statistics: plain values.

    Raises:
        ValueError: as `_check_classes`; or one of the files that are looked at is not a readable image.
    """
    classes, listed = shards.found(parts) if shards.tars_in(parts[0]) else _found(parts)
    train, test = (_examples(part, preprocess)[0] for part in listed)
    mean, std = _statistics(_some(train))
    for _ in _some(test):
        pass  # a file that cannot be read is told now, not after the training
    seen = {
        str(path.tar if isinstance(path, shards.Member) else path)
        for files in (train, test)
        for path in files.paths[:: _every(files)]
    }
    some = {path: stamp(path) for path in sorted(seen)}
    return {"classes": classes, "parts": listed, "mean": mean, "std": std, "some": some}


def _as_it_was(known: dict[str, Any]) -> bool:
    """Whether no folder has got or lost a file, and the files that were looked at are the same."""
    folders = {folder: found["time"] for part in known["parts"] for folder, found in part.items()}
    return all(os.stat(folder).st_mtime_ns == time for folder, time in folders.items()) and all(
        stamp(path) == wanted for path, wanted in known["some"].items()
    )


def _found(parts: tuple[Path, Path]) -> tuple[list[str], list[dict[str, Any]]]:
    """The classes, and where the images of each part lie."""
    classes = _classes(parts[0])
    listed = [_listed(part, classes) for part in parts]
    _check_classes(parts, classes, listed)
    return classes, listed


def _listed(part: Path, classes: list[str]) -> dict[str, Any]:
    """The names of a part's images by folder, with the time of each folder and its class; in the order of classes and
    names."""
    found: dict[str, Any] = {str(part): {"time": os.stat(part).st_mtime_ns, "label": 0, "names": []}}
    for label, name in enumerate(classes):
        for folder, images in sorted(_walked(part / name)):
            found[folder] = {"time": os.stat(folder).st_mtime_ns, "label": label, "names": images}
    return found


def _walked(root: Path) -> Iterator[tuple[str, list[str]]]:
    """A folder and those in it, and the images of each by name; nothing hidden, as systems and editors leave it."""
    for folder, inside, names in os.walk(root, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith(".")]  # os.walk goes into what is left
        yield folder, sorted(name for name in names if name.lower().endswith(IMAGES) and not name.startswith("."))


def _examples(part: dict[str, Any], preprocess: Preprocess) -> tuple[Files, Tensor]:
    """The images that were listed, and their labels."""
    if shards.are(part):
        return Files(shards.Members.of(part), preprocess), torch.tensor(shards.labels_of(part))
    paths = [os.path.join(folder, name) for folder, found in part.items() for name in found["names"]]
    counts = [len(found["names"]) for found in part.values()]
    labels = torch.tensor([found["label"] for found in part.values()])
    return Files(paths, preprocess), labels.repeat_interleave(torch.tensor(counts))


def _every(files: Files) -> int:
    """Each how manieth image is looked at: `SAMPLE` at most, spread over all of them."""
    return max(1, -(-len(files) // SAMPLE))


def _some(files: Files) -> Iterator[Tensor]:
    """The images that are looked at: uint8 ``(n, C, side, side)``, some at a time."""
    for rows in torch.arange(0, len(files), _every(files)).split(64):
        yield torch.stack(files[rows])


def _check_classes(parts: tuple[Path, Path], classes: list[str], listed: list[dict[str, Any]]) -> None:
    """Raises: ValueError, where a class has no training images, one is in the test part alone, or nothing is there."""
    train, test = parts
    if odd := [name for name in classes if not name.isascii() and name.encode(errors="replace").decode() != name]:
        raise ValueError(
            f"the names of classes in {train} are not UTF-8: {', '.join(map(ascii, odd[:10]))}: rename them"
        )
    if stray := sorted(set(_classes(test)) - set(classes)):
        raise ValueError(f"{test} has classes that {train} has not: {', '.join(stray[:10])}")
    there = [{found["label"] for found in part.values() if found["names"]} for part in listed]
    empty = [name for label, name in enumerate(classes) if label not in there[0]]
    if empty or not there[1]:
        where = f"the classes {', '.join(empty[:10])} of {train}" if empty else test
        raise ValueError(f"no images in {where}; files are images when they end in {' '.join(IMAGES)}")


def _classes(folder: Path) -> list[str]:
    """The names of the class folders.

    Raises:
        ValueError: there are none.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ValueError(f"{folder} holds no folders; put the images of each class into a folder of its own there")
    return names
