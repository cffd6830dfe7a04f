"""A GPU whose memory is too small for a step, or for what the panel scores: one error that names the keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import nas.children.evaluate
from nas.device import MemoryShort, enough_memory
from nas.training.engine import Engine
from tests.training.tiny import BATCH, newest, train

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")]

TORCH = (  # its own words, and the advice after them that is not about an experiment
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.20 GiB is free."
    " Of the allocated memory 70.00 GiB is allocated by PyTorch. If reserved memory is large try setting"
)


def short(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError(TORCH)


@pytest.mark.parametrize(("given", "micro"), [([], BATCH), (["train.micro_batch=50"], 50)])
def test_a_step_that_is_too_large_names_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], micro: int
) -> None:
    """And it goes on from its checkpoint once that is lower."""
    backward, seen = Engine.backward, 0

    def sometimes(self: Engine, loss: torch.Tensor) -> None:
        nonlocal seen
        seen += 1
        if seen > 20:
            short()
        backward(self, loss)

    settings = ["train.checkpoint_every=1", *given]
    with monkeypatch.context() as injected, pytest.raises(MemoryShort) as told:
        injected.setattr(Engine, "backward", sometimes)
        train(tmp_path / "run", *settings)
    assert f"lower train.micro_batch (now {micro}) or raise train.zero_stage (now 0" in str(told.value)
    assert "2.00 GiB" in str(told.value) and "try setting" not in str(told.value)
    before = newest(tmp_path / "run")
    assert train(tmp_path / "run", *settings, "train.micro_batch=25") != before


def test_the_panel_names_keys_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller train.micro_batch would not help there."""
    monkeypatch.setattr(nas.children.evaluate, "judge", short)
    with pytest.raises(MemoryShort, match=r"lower search.score_batch \(now 500\) or search.trials") as told:
        train(tmp_path / "run")
    assert "train." not in str(told.value)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="a shape") as other, enough_memory("nothing"):
        raise RuntimeError("a shape")
    assert not isinstance(other.value, MemoryShort)
