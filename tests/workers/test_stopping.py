"""Signals: the first asks a run to save and end, a second one ends it; the echo of the first is no second one."""

from __future__ import annotations

import signal

import pytest

from nas.rundir.fence import Fence
from nas.workers import stopping
from nas.workers.stopping import Stopper


class Open(Fence):
    """That of nobody."""

    def __init__(self) -> None:
        self.asked = 0

    def ask_to_stop(self) -> None:
        self.asked += 1


def test_the_same_signal_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout -s INT` sends it to the process and to its group."""
    now, said, fence = [50.0], [], Open()
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    stopper = Stopper(fence, said.append)
    stopper._heard(signal.SIGINT, None)
    now[0] += 0.2
    stopper._heard(signal.SIGINT, None)
    assert fence.asked == 1 and said == ["SIGINT: saving and ending; once more ends at once"]
    now[0] += 2
    with pytest.raises(KeyboardInterrupt):
        stopper._heard(signal.SIGINT, None)
