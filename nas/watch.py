"""Who is told how a run goes on, and the words for what its training log says."""

from __future__ import annotations

from typing import Protocol

from nas.rundir.log import EventLine, Line, PanelLine, StepLine


class Watcher(Protocol):
    """Who is told how the work goes. All calls come from one process; those within a stage may come from a thread of
    it."""

    def begin(self, stage: str, note: str) -> None: ...

    def advance(self, done: float, total: float, note: str, unit: str, seconds: float | None = None) -> None:
        """`done` of `total` `unit`; `seconds` of work so far, where the stage knows better than the clock."""

    def say(self, text: str) -> None: ...

    def end(self, note: str) -> None: ...


class TrainingNotes:
    """Lines of the training log, told to people as the training goes on.

    Args:
        metric: the task's, that is shown of the panel.
        max_minutes: the bound of the training's time, if there is one.

    Attributes:
        panel: what the newest panel said, as the end of a line; empty before the first.
    """

    def __init__(self, metric: str, max_minutes: float | None, watch: Watcher) -> None:
        self.metric, self.max_minutes, self.watch, self.panel = metric, max_minutes, watch, ""
        self.before: StepLine | None = None

    def take(self, line: Line) -> None:
        match line:
            case PanelLine():
                figures = {name: figure[self.metric] for name, figure in line.panel.items()}
                shown = [name for name in ("chosen", "largest", "smallest") if name in figures][:2]
                self.panel = f" | {self.metric} {' '.join(f'{name} {figures[name]:.4g}' for name in shown)}"
            case EventLine():
                self.watch.say(f"{line.event}: {line.reason}")
            case StepLine():
                name, loss = next(iter(line.loss.items()))
                told = f"loss {loss:.3f}" if name == "loss" else f"loss {name} {loss:.3f}"
                note, done, total, unit = f"{told}{self.panel}", float(line.step), float(line.total), "steps"
                if self.max_minutes and line.share > done / total:  # time ends this training, not the schedule
                    note, done, total, unit = (
                        f"step {line.step:,}{self._rate(line)} | {note}",
                        line.seconds / 60,
                        self.max_minutes,
                        "minutes",
                    )
                self.before = line
                self.watch.advance(done, total, note, unit, line.seconds)

    def _rate(self, line: StepLine) -> str:
        """Steps a second since the line before; empty where there is none, or training went back in between."""
        before = self.before
        if before is None or line.seconds <= before.seconds or line.step <= before.step:
            return ""
        return f", {(line.step - before.step) / (line.seconds - before.seconds):.3g} steps/s"
