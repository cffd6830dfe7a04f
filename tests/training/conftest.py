"""Fixtures that tests of the training loop share: each step told, a recipe whose losses are changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

import nas.training.loop
from nas.build import load_recipe
from nas.recipes.recipe import Step
from nas.rundir.log import Log
from tests.training.tiny import Changed


@pytest.fixture
def every_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in the metrics for each step, not one a second."""
    monkeypatch.setattr(Log, "due", lambda self: True)


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor, str, Step], Tensor]], None]:
    """Let the losses of every recipe that the loop makes go through a function."""

    def put(change: Callable[[Tensor, str, Step], Tensor]) -> None:
        monkeypatch.setattr(
            nas.training.loop, "load_recipe", lambda task, options: Changed(load_recipe(task, options), change)
        )

    return put
