"""When a training has gone wrong: a loss that is not finite or explodes, a largest child that falls back to chance."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nas.rundir.checkpoint import State
from nas.tasks.task import Task

FIRST_LOSSES = 20  # steps whose largest loss is the yardstick for an exploding one
EXPLODED = 4.0  # times that yardstick
LOST = 0.1  # share of what the largest child had gained over chance, below which it has collapsed


class Diverged(RuntimeError):
    """The loss is not finite or exploded, or the panel fell to chance."""


def worst_of(losses: Mapping[str, float]) -> float:
    """The first loss of a step, which is the largest network's; infinite where any is not finite."""
    return next(iter(losses.values())) if all(math.isfinite(value) for value in losses.values()) else math.inf


def check_loss(state: State, worst: float) -> None:
    """Hold the worst loss of all ranks against those of the first steps, which it becomes one of.

    Raises:
        Diverged: it is not finite, or far above what it was.
    """
    if state.step == 0 and math.isfinite(worst):
        state.yardstick = worst
    if state.step < FIRST_LOSSES and worst <= EXPLODED * state.yardstick:
        state.yardstick = max(state.yardstick, worst)
    elif worst > EXPLODED * state.yardstick:
        exploded = f"exploded to {worst:.3g} from {state.yardstick:.3g} in the first steps"
        raise Diverged(f"at step {state.step} the loss {exploded if math.isfinite(worst) else 'is not finite'}")


def check_panel(state: State, now: float, task: Task) -> None:
    """Hold the largest child's metric against its best so far.

    Raises:
        Diverged: it fell back to chance.
    """
    best, sign = state.best, 1 if task.metrics[task.metric] == "higher" else -1
    learnt = best is not None and sign * (best - task.learnt) > 0
    if best is not None and learnt and sign * (now - task.chance) < LOST * sign * (best - task.chance):
        told = f"the largest child's {task.metric} fell from {best:.4g} to {now:.4g}: chance"
        raise Diverged(f"at step {state.step} {told}")
    state.best = now if best is None else sign * max(sign * best, sign * now)
