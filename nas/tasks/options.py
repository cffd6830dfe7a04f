"""The options of the tasks that come with raynas. Imports pydantic alone, so that an experiment is read before torch
is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from nas.config.section import DataOptions, Share
from nas.tasks.places import cifar10_root, digits_file, fashion_root, folder_base, missing, photos, roots


class ClassificationOptions(DataOptions):
    """Which images, how they are divided, how they are varied in training."""

    name: Literal["digits", "textures", "fashion-mnist", "cifar10", "folder"] = Field(description="the data set")
    path: str | None = Field(default=None, description="folder only: has train/<class> and val/<class> or test/<class>")
    size: PositiveInt | None = Field(default=None, description="folder only: side of the square images, pixels")
    validation: PositiveInt = Field(
        description="examples held out of the training part for the search, of each class in proportion to its size"
    )
    shift: NonNegativeInt = Field(default=0, description="random crop after padding each side by so many pixels")
    flip: bool = Field(default=False, description="mirror left and right with probability 1/2")
    resized_crop: bool = Field(
        default=False,
        description="random crops of 8 to 100 % of the area of the original picture, resized, instead of shift",
    )
    erase: Share = Field(
        default=0.0, description="probability that a rectangle of a training image becomes random pixels"
    )
    rand_augment: bool = Field(
        default=False, description="RandAugment (arXiv:1909.13719) on every training image; slow"
    )
    mix: bool = Field(
        default=False, description="CutMix of half of each training batch, Mixup of the other, labels mixed alike"
    )

    @model_validator(mode="after")
    def _folder(self) -> ClassificationOptions:
        given = {key: getattr(self, key) is not None for key in ("path", "size")}
        if self.name == "folder" and not all(given.values()):
            raise ValueError("name: folder needs path (where the images are) and size (pixels)")
        if self.resized_crop and self.shift:
            raise ValueError("resized_crop and shift are two ways to crop: set one of them")
        if self.name != "folder" and any(given.values()):
            raise ValueError(f"path and size are for name: folder alone; {self.name} has its own: leave them out")
        return self

    @property
    def place(self) -> dict[str, str]:
        """What a child keeps of where its data lay: the last part of the path."""
        return {"folder": Path(self.path).name} if self.path else {}

    def locate(self) -> Path | None:
        if self.name == "folder":
            return folder_base(str(self.path))[0]
        places = {
            "digits": digits_file,
            "textures": photos,
            "fashion-mnist": fashion_root,
            "cifar10": cifar10_root,
        }
        return places[self.name]()


class SuperResolutionOptions(DataOptions):
    """Which photographs, how they are divided, how pairs of low and high resolution are made of them."""

    name: Literal["photos", "sr-folder"] = Field(
        description="photos: those that scikit-image carries; sr-folder: your own"
    )
    path: str | None = Field(
        default=None, description="sr-folder only: has the folders train and test with high-resolution images"
    )
    train: str = Field(default="train", description="sr-folder only: the folder in path to train on")
    test: str = Field(default="test", description="sr-folder only: the folder in path to test on, for example Set5")
    scale: Literal[2, 3, 4] = Field(description="how many times larger the output is")
    patch: Annotated[int, Field(ge=8)] = Field(description="side of a low-resolution training crop, pixels")
    validation: PositiveInt = Field(
        description="crops held out for the search, four times patch square, of images that are not trained on"
    )
    flip: bool = Field(default=True, description="mirror left and right with probability 1/2")
    rotate: bool = Field(default=False, description="turn by 0, 90, 180 or 270 degrees")
    border: NonNegativeInt | None = Field(
        default=None, description="pixels cut off before PSNR and SSIM; null: as many as the scale"
    )
    round_luma: bool = Field(
        default=False, description="PSNR and SSIM on luma rounded to whole numbers, as some papers do"
    )
    tile: PositiveInt | None = Field(
        default=None, description="larger images are run in tiles of so many low-resolution pixels; null: whole"
    )
    overlap: NonNegativeInt = Field(
        default=20,
        description=(
            "low-resolution pixels around a tile that its network sees too; networks of the space basic see 19 at "
            "most, of rfdn 40"
        ),
    )

    @model_validator(mode="after")
    def _places(self) -> SuperResolutionOptions:
        if self.name == "sr-folder" and self.path is None:
            raise ValueError("name: sr-folder needs path (where the images are)")
        if self.name != "sr-folder" and (self.path, self.train, self.test) != (None, "train", "test"):
            raise ValueError(
                f"path, train and test are for name: sr-folder alone; {self.name} has its own: leave them out"
            )
        if (self.border or 0) > self.patch:
            raise ValueError(
                f"border {self.border} leaves too little of a validation crop: at most patch, {self.patch}"
            )
        return self

    @property
    def place(self) -> dict[str, str]:
        """What a child keeps of where its data lay: the last part of the path."""
        return {"folder": Path(self.path).name} if self.path else {}

    def locate(self) -> Path | None:
        if self.name == "photos":
            return photos()
        assert self.path is not None  # see _places
        looked = [Path(self.path).expanduser(), *(root / self.path for root in roots())]
        looked = list(dict.fromkeys(path.absolute() for path in looked))
        for base in looked:
            if (base / self.train).is_dir() and (base / self.test).is_dir():
                return base
        raise missing(
            f"The image folder {self.path!r} (data.path)",
            looked,
            f"the folders {self.train} (data.train) and {self.test} (data.test), with high-resolution images in them",
            [
                "give data.path in full, or set RAYNAS_DATA to the folder that holds it, on every machine of the "
                "cluster",
                "BSDS500 and DIV2K are usual to train on; Set5, Set14 and BSD100 to test on; low-resolution images are "
                "made from them",
                "where there is nothing: data.name=photos needs no files",
            ],
        )
