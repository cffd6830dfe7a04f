"""What the JSON files of children and checkpoints look like. They may come from anybody, so each is held to its form
when it is read, before anything is made of it.

Keys that a form does not name are kept: later versions add some, and a user's own costs are among the figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PositiveInt, RootModel, StringConstraints, ValidationError

from nas.rundir.atomic import Damaged

MOST_BYTES = 64_000_000  # of one file; the largest of ours has 300,000

Text = Annotated[str, StringConstraints(max_length=10_000)]
Figures = dict[Text, float | None]
Bits = Annotated[int, Field(ge=1, le=32)]


class Form(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Takes(Form):
    """What a child is given: ``(channels, height, width)``, and whether other heights and widths do too."""

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    any_size: bool = False


class LayerBits(Form):
    weight_bits: Bits
    input_bits: Bits


class Quantization(Form):
    """See `nas.quantization.integer.Plan`."""

    of: Text
    method: Text
    plain: list[Text]
    folded: list[Text]
    layers: dict[Text, LayerBits]


class Arch(Form):
    """arch.json of a child.

    Attributes:
        child: its class, ``module:name``.
        network: what that is called with.
        arch: choices by name.
    """

    child: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=300)]
    network: dict[Text, JsonValue]
    arch: dict[Text, int | float] = {}
    input: Takes
    quantization: Quantization | None = None


class Metrics(Form):
    """metrics.json of a child; its costs stand among the other keys."""

    id: Text
    validation: Figures = {}
    test: Figures = {}
    baselines: dict[Text, Figures] = {}
    interval: dict[Text, Figures] = {}


class Panel(Form):
    file: Text
    label: Text
    note: Text
    enlarged: bool


class Picture(Form):
    """One of the list in pictures.json."""

    title: Text
    panels: list[Panel]


class Pictures(RootModel[list[Picture]]):
    """pictures.json of a child."""


class Progress(Form):
    """See `nas.rundir.checkpoint.State`."""

    step: Annotated[int, Field(ge=0)]
    total: PositiveInt
    seconds: float = 0.0
    yardstick: float = 0.0
    recent: Annotated[list[float], Field(max_length=1000)] = []
    best: float | None = None


class State(Form):
    """state.json of a checkpoint."""

    state: Progress
    recipe: dict[Text, JsonValue]


Read = TypeVar("Read", bound=BaseModel)


def read(path: Path, form: type[Read]) -> Read:
    """A JSON file, as its form.

    Raises:
        Damaged: it is not there, is not JSON, or has another form; the message names the file and the key.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from error
    if len(text) > MOST_BYTES:
        raise Damaged(f"{path} is more than {MOST_BYTES:,} bytes long: it is not what it should be")
    try:
        return form.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise Damaged(f"{path} is not what it should be: {key + ': ' if key else ''}{first['msg']}") from error
