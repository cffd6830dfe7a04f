"""When a training has gone wrong: a loss that is not finite or explodes, a largest child that falls back to chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from nas.rundir.checkpoint import State
from nas.tasks.task import Task

FIRST_LOSSES = 20  # steps whose largest loss is where training began
RECENT = 100  # good losses that the next one is held against
EXPLODED = 4.0  # times their median
LOST = 0.1  # share of what the largest child had gained over chance, below which it has collapsed


class Diverged(RuntimeError):
    """The loss is not finite or exploded, or the panel fell to chance."""


def worst_of(losses: Sequence[float]) -> float:
    """The first loss of a step, which is the largest network's; infinite where any is not finite."""
    return losses[0] if all(map(math.isfinite, losses)) else math.inf


def check_loss(state: State, worst: float) -> None:
    """Hold the worst loss of all ranks against the recent good ones, which it becomes one of.

    A loss near zero may be many times the median for one odd example: none has exploded that is not above where
    training began. Nor may it creep up to many times that.

    Raises:
        Diverged: it is not finite, or far above what it was.
    """
    if not math.isfinite(worst):
        raise Diverged(f"at step {state.step} the loss is not finite")
    usual = median(state.recent or [worst])
    began = state.yardstick or worst  # 0 before the first step
    if worst > max(began, EXPLODED * min(usual, began)):
        raise Diverged(f"at step {state.step} the loss exploded to {worst:.3g} from {usual:.3g} in the steps before")
    state.recent = [*state.recent, worst][-RECENT:]
    if state.step < FIRST_LOSSES:
        state.yardstick = max(began, worst)


def check_panel(state: State, now: float, task: Task) -> None:
    """Hold the largest child's metric against its best so far.

    Raises:
        Diverged: it fell back to chance, or is no number.
    """
    if math.isnan(now):
        raise Diverged(f"at step {state.step} the largest child's {task.metric} is no number")
    best = None if state.best is None or math.isnan(state.best) else state.best
    sign = 1 if task.metrics[task.metric] == "higher" else -1
    learnt = best is not None and sign * (best - task.learnt) > 0
    if best is not None and learnt and sign * (now - task.chance) < LOST * sign * (best - task.chance):
        told = f"the largest child's {task.metric} fell from {best:.4g} to {now:.4g}: chance"
        raise Diverged(f"at step {state.step} {told}")
    state.best = now if best is None else sign * max(sign * best, sign * now)
