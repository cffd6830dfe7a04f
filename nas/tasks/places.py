"""Where data sets lie on this machine, without reading them; a missing one is told with the ways to get it. Imports the
standard library alone, so that a wrong path is told before torch is imported."""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts the four .gz
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # what files of images end in
TESTS = ("test", "val")  # names of a folder's test part, the first one that is there
FASHION_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
# What scikit-image carries inside its wheel and can be called a photograph; of the stereo pair one image alone, so that
# no scene is in two parts of the data.
TRAIN_PHOTOS = (
    "brick.png",
    "camera.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "page.png",
    "rocket.jpg",
)
TEST_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png")


def images(folder: Path) -> Iterator[Path]:
    """The image files in a folder and those in it; nothing hidden below it."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in IMAGES and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


class DataMissing(FileNotFoundError):
    """A data set is not on this machine: where it was looked for, what is expected there, how to get it."""


def roots() -> list[Path]:
    """Where data sets are looked for, in this order: the folders of RAYNAS_DATA, ``./data``, ``~/.cache/raynas``."""
    named = [Path(p).expanduser() for p in os.environ.get("RAYNAS_DATA", "").split(os.pathsep) if p]
    return [*named, Path("data").absolute(), _cache()]


def _cache() -> Path:
    return Path.home() / ".cache" / "raynas"


def missing(what: str, looked: list[Path], layout: str, ways: list[str]) -> DataMissing:
    """The error that tells of a data set that is not there."""
    lines = [f"  {path}{'' if path.exists() else ' (no such folder)'}" for path in looked]
    message = [
        f"{what} was not found. Looked in",
        *lines,
        f"for {layout}.",
        "To get it:",
        *(f"  - {way}" for way in ways),
    ]
    return DataMissing("\n".join(message))


def _by_torchvision(name: str) -> list[str]:
    return [
        f"where there is a network: python -c \"import torchvision; torchvision.datasets.{name}('data', "
        'download=True)"',
        "or set RAYNAS_DATA to the folder that holds it (several: separated as in PATH), on every machine of the "
        "cluster",
    ]


def fashion_root() -> Path:
    """A folder that torchvision can read; the four .gz are unpacked into the cache first where only they are there."""
    raw = Path("FashionMNIST", "raw")
    for root in roots():
        if all((root / raw / name).is_file() for name in FASHION_FILES):
            return root
    packed = [folder for root in roots() for folder in (root, root / "fashion-mnist", root / raw)] + [DEBIAN]
    for folder in packed:
        if all((folder / f"{name}.gz").is_file() for name in FASHION_FILES):
            for name in FASHION_FILES:
                _unpack(folder / f"{name}.gz", _cache() / raw / name)
            return _cache()
    raise missing(
        "Fashion-MNIST",
        [*roots(), DEBIAN],
        f"FashionMNIST/raw/{FASHION_FILES[0]} and its three fellows, or the four as .gz there, in fashion-mnist/ or in "
        "the folder itself",
        ["Debian and Ubuntu: apt-get install dataset-fashion-mnist", *_by_torchvision("FashionMNIST")],
    )


def _unpack(packed: Path, target: Path) -> None:
    """Unpack one .gz so that other processes see the whole file or none.

    Raises:
        ValueError: the file is damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with gzip.open(packed) as source, beside.open("wb") as sink:
            shutil.copyfileobj(source, sink)
            sink.flush()
            os.fsync(sink.fileno())
        beside.replace(target)
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{packed} is damaged ({error}); fetch it again") from error
    finally:
        beside.unlink(missing_ok=True)


def cifar10_root() -> Path:
    root = next((r for r in roots() if (r / "cifar-10-batches-py").is_dir()), None)
    if root is None:
        raise missing(
            "CIFAR-10",
            roots(),
            "the folder cifar-10-batches-py with data_batch_1 .. 5 and test_batch",
            _by_torchvision("CIFAR10"),
        )
    return root


def test_part(base: Path) -> str | None:
    """The name of a folder's test part."""
    return next((name for name in TESTS if (base / name).is_dir()), None)


def folder_base(path: str) -> tuple[Path, str]:
    """The folder that `path` means, and the name of its test part."""
    looked = [Path(path).expanduser(), *(root / path for root in roots())]
    looked = list(dict.fromkeys(p.absolute() for p in looked))
    for base in looked:
        test = test_part(base)
        if test and (base / "train").is_dir():
            return base, test
    raise missing(
        f"The image folder {path!r} (data.path)",
        looked,
        "train/<class>/<image> and test/<class>/<image> (or val/<class>/<image>), or train/*.tar and test/*.tar",
        ["give data.path in full, or set RAYNAS_DATA to the folder that holds it, on every machine of the cluster"],
    )


def wheel(package: str = "skimage", folder: str = "data") -> Path:
    """Where a package keeps its data, scikit-image its images; it is not imported, and nothing is fetched."""
    found = importlib.util.find_spec(package)
    return Path(found.origin if found and found.origin else package).parent / folder


def digits_file() -> Path:
    """scikit-learn's digits: a row for each, 64 grey levels of 0 to 16 and the class."""
    path = wheel("sklearn", "datasets/data") / "digits.csv.gz"
    if not path.is_file():
        raise missing(
            "scikit-learn's digits.csv.gz",
            [path.parent],
            "the file that its wheel carries",
            ["pip install --force-reinstall scikit-learn"],
        )
    return path


def photos() -> Path | None:
    """None, once scikit-image's photographs are seen to be there: what is made of them needs no place of its own."""
    home = wheel()
    if not all((home / name).is_file() for name in (*TRAIN_PHOTOS, *TEST_PHOTOS)):
        raise missing(
            "scikit-image's photographs",
            [home],
            "the images that its wheel carries",
            ["pip install --force-reinstall scikit-image"],
        )
    return None
