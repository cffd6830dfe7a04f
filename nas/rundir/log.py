"""The log of a training: typed lines, written by the loop and read by whoever shows or tracks it. The one file that
knows their keys.

The file grows while it is read, and may end in a torn line after a crash; both are expected here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from nas.rundir.atomic import naming

Figures = Mapping[str, float]


@dataclass(frozen=True)
class StepLine:
    """An optimizer step.

    Attributes:
        step, total: done and planned.
        epoch: passes over the recipe's first feed.
        seconds: spent in the loop so far, over all attempts.
        share: how much of the training is done, in [0, 1].
        lr: learning rate.
        loss: by the names that the recipe gives.
    """

    kind: ClassVar[str] = "step"
    step: int
    total: int
    epoch: float = 0.0
    seconds: float = 0.0
    share: float = 0.0
    lr: float = 0.0
    loss: Figures = field(default_factory=dict)

    def figures(self) -> Iterator[tuple[str, float]]:
        """By name: ``loss/largest``, ``lr``, ``epoch``."""
        yield "lr", self.lr
        yield "epoch", self.epoch
        yield from ((f"loss/{name}", value) for name, value in self.loss.items())


@dataclass(frozen=True)
class PanelLine:
    """The children whose figures are followed in training, judged on validation.

    Attributes:
        panel: child to its figures.
        recipe: what else the recipe follows.
        seconds: spent in the loop when they were judged, over all attempts.
    """

    kind: ClassVar[str] = "panel"
    step: int
    panel: Mapping[str, Figures]
    recipe: Figures = field(default_factory=dict)
    seconds: float = 0.0

    def figures(self) -> Iterator[tuple[str, float]]:
        """By name: ``panel/smallest/accuracy``, ``recipe/entropy``."""
        for child, figures in self.panel.items():
            yield from ((f"panel/{child}/{name}", value) for name, value in figures.items())
        yield from ((f"recipe/{name}", value) for name, value in self.recipe.items())


@dataclass(frozen=True)
class EventLine:
    """Something that a person should know: a rollback, a checkpoint that was passed over, a machine that is taken away.

    Attributes:
        event: its kind.
        step: the furthest that was reached before; -1 where the line is not read in its place.
    """

    kind: ClassVar[str] = "event"
    event: str
    reason: str = ""
    step: int = -1


Line = StepLine | PanelLine | EventLine


@dataclass
class Training:
    """The log in the order of steps; of a step that was done twice the later line."""

    steps: list[StepLine]
    panels: list[PanelLine]
    events: list[EventLine]


class Lines:
    """The JSON objects of a growing file, each given once; a last line that is not whole is left for the next time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """Objects that came since the last call. A damaged line in the middle is passed over."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                raw = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        found = [parsed(line) for line in raw]
        if found and found[-1] is None:  # whoever opens the file for writing next cuts this one off
            found, raw = found[:-1], raw[:-1]
        self._offset += sum(len(line) + 1 for line in raw)
        return [line for line in found if isinstance(line, dict)]


class TrainingLines:
    """The lines of a growing training log, each given once."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)

    def new(self) -> list[Line]:
        """Lines that came since the last call."""
        return [line for form in self._lines.new() if (line := _line(form)) is not None]


def read_training(path: Path) -> Training:
    """All that training wrote so far; empty lists before it began."""
    steps: dict[int, StepLine] = {}
    panels: dict[int, PanelLine] = {}
    events: list[EventLine] = []
    for line in TrainingLines(path).new():
        match line:
            case StepLine():
                steps[line.step] = line
            case PanelLine():
                panels[line.step] = line
            case EventLine():
                step = line.step if line.step >= 0 else max(steps, default=0)  # most do not know theirs
                events.append(EventLine(line.event, line.reason, step))
    return Training([steps[s] for s in sorted(steps)], [panels[s] for s in sorted(panels)], events)


class Log:
    """Adds lines to a training log, whole ones only; what a killed writer left unfinished is cut off first."""

    def __init__(self, path: Path, every_s: float = 1.0) -> None:
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            kept = path.read_bytes()
            if not kept.endswith(b"\n"):
                with path.open("r+b") as file:
                    file.truncate(kept.rfind(b"\n") + 1)
        self.path, self.file, self.every_s, self.last = path, path.open("a"), every_s, 0.0

    def due(self) -> bool:
        """Whether it is time for another line of those that come at every step."""
        return time.monotonic() - self.last >= self.every_s

    def write(self, line: Line) -> None:
        """On its way to the disk when this returns."""
        form = {key: value for key, value in asdict(line).items() if not (key == "step" and value < 0)}
        with naming(self.path):
            self.file.write(json.dumps({"kind": line.kind, **form}) + "\n")
            self.file.flush()
        if isinstance(line, StepLine):  # the first step of an attempt is told, whatever was told before it
            self.last = time.monotonic()


def parsed(raw: bytes) -> Any:
    """The value of a line of JSON; None where it is not whole."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _line(form: Mapping[str, Any]) -> Line | None:
    """What a line of the file means; None for one of another kind."""
    kind = form.get("kind") or _kind_of_old(form)
    for known in (StepLine, PanelLine, EventLine):
        if known.kind == kind:
            given = {f.name: form[f.name] for f in fields(known) if f.name in form}
            try:
                return known(**given)
            except TypeError:  # a line that lacks what it must have
                return None
    return None


def _kind_of_old(form: Mapping[str, Any]) -> str:
    """Lines of before 0.2 do not say what they are."""
    return (
        "event" if "event" in form else "panel" if "panel" in form else "step" if "loss" in form or "lr" in form else ""
    )
