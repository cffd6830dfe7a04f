"""What every section of an experiment file is made of. Imports pydantic alone, so that every plug-in can afford it.

A plug-in's options are a `Section` of its own, which stands in the plug-in's file: unknown keys are refused, and
``nas`` can explain each.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    field_validator,
)


class Kind(StrEnum):
    """Whether a run that has begun may continue under another value of a field."""

    IDENTITY = "identity"  # no: it would be another run
    FREE = "free"  # yes, at any resume; it is recorded
    EXTEND = "extend"  # yes: the run goes on from where it stands


LARGEST = 10**15


class Section(BaseModel):
    """Frozen, keyword only, no unknown keys, no silent conversion of types.

    Every field of an experiment has a `Kind`: its own, as in ``Annotated[int, Kind.FREE]``, or that of the field that
    holds its section.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _of_this_world(cls, value: object) -> object:
        """No number of an experiment is larger: what is computed of it stays within 64 bits."""
        if isinstance(value, int | float) and abs(value) > LARGEST:
            raise ValueError(f"given {value:.3g}; allowed: at most {LARGEST:.0e}")
        return value


def count(value: object) -> object:
    """``"1.5M"`` and ``3e5`` as whole numbers; anything else is left to pydantic."""
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMG]?)", value.strip())
        number = float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]] if found else 0.5
        if abs(number - round(number)) > 1e-6:
            raise ValueError(f'given {value!r}; allowed: a whole number, plain or such as "300k", "1.5M", "2G"')
        return round(number)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def amount(value: object) -> object:
    """As `count`, where a fraction is allowed: ``3.7``, ``"1.5M"``."""
    return value if isinstance(value, float) and not value.is_integer() else count(value)


def as_tuple(value: object) -> object:
    """A YAML list as the frozen tuple that it becomes."""
    return tuple(value) if isinstance(value, list) else value


_ABOVE_0 = {kind: {"type": kind, "exclusiveMinimum": 0} for kind in ("integer", "number")}
_SHORT = {"type": "string", "pattern": r"^\d[\d_]*(\.\d+)? ?[kMG]?$"}  # 1_000 is text to YAML 1.2
Share = Annotated[float, Field(ge=0, lt=1)]
Quant = Annotated[
    Literal["off", "noise", "real"],
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML reads off as false
    WithJsonSchema({"enum": ["off", "noise", "real", False]}),
]
Count = Annotated[int, BeforeValidator(count), Field(gt=0), WithJsonSchema({"anyOf": [_ABOVE_0["integer"], _SHORT]})]
Amount = Annotated[
    int | float, BeforeValidator(amount), Field(gt=0), WithJsonSchema({"anyOf": [_ABOVE_0["number"], _SHORT]})
]


class RecipeOptions(Section):
    """What the platform reads of any recipe; each recipe adds its own keys, in its own file."""

    name: str = Field(description="the recipe")
    epochs: Annotated[float, Kind.EXTEND] = Field(gt=0, le=1e6, description="passes over the training part")
    batch: int = Field(gt=0, le=2**20, description="examples a step over all workers")
    clip_norm: PositiveFloat | None = Field(default=None, description="largest gradient norm; null for no clipping")

    def too_few(self, examples: int) -> str:
        """What is wrong with so few examples in a pass on one worker, beginning with the key at fault; empty:
        nothing."""
        return ""


class ChildOptions(RecipeOptions):
    """What the platform reads of a recipe that trains one network, such as a child in finetune."""

    teacher: Annotated[str | None, Kind.FREE] = Field(
        default=None, description="directory of an exported child whose soft labels count half; null: labels alone"
    )


class DataOptions(Section):
    """What the platform reads of any data set; each task adds its own keys, in its own file."""

    name: str = Field(description="the data set")
    validation: PositiveInt = Field(description="examples held out of the training part for the search")

    def locate(self) -> Path | None:
        """Where the data set lies, without reading it; None for one that is built in.

        Raises:
            FileNotFoundError: it is not there; the message says how to get it.
        """
        return None


class CostOptions(Section):
    """What the platform reads of any cost in ``search.costs``; each adds its own keys, in its own file."""

    name: str = Field(description="latency, or your own my_module:MyCost")

    def locate(self) -> Path | None:
        """Where the file lies that it is read from, without reading it; None where there is none.

        Raises:
            FileNotFoundError: it is not there; the message says how to get it.
        """
        return None
