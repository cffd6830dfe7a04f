"""The metrics' file: torn lines, and a line a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.rundir.log import Log, StepLine
from tests.training.tiny import lines

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")]


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "train" / "metrics.jsonl"
    first = Log(path)
    first.write(StepLine(1, 3))
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    Log(path).write(StepLine(3, 3))
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


def test_a_line_a_second(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl", every_s=1e9)
    log.last = -2e9
    assert log.due()
    log.write(StepLine(1, 1))
    assert not log.due()
