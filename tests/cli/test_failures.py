"""What a person is told when the machine fails, or a signal comes early: one line, with the path and what to do."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nas.cli import commands
from nas.cli.main import STOPPED
from nas.rundir import atomic
from tests.driving import environment

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], list[str]]:
    """What ``nas train`` in a run directory says that must fail, in this process."""

    def give(run: Path) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["nas", "train", "bignas-digits", "--run-dir", str(run)])
        with pytest.raises(SystemExit) as end:
            commands.main()
        assert end.value.code == 1
        return capsys.readouterr().out.splitlines()

    return give


def file_at(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("")


@pytest.mark.parametrize(
    ("place", "named", "make", "what"),
    [
        ("file/run", "file", lambda home: file_at(home / "file"), "a file stands where a directory belongs"),
        ("file", "file", lambda home: file_at(home / "file"), "a file stands where a directory belongs"),
        ("n" * 300, "n" * 300, lambda home: None, "the name is too long"),
        ("run", "run/.lock", lambda home: (home / "run" / ".lock").mkdir(parents=True), "a directory stands where"),
        ("run", "run/run.json", lambda home: (home / "run" / "run.json").mkdir(parents=True), "a directory stands"),
    ],
)
def test_what_cannot_be_a_run_directory(
    tmp_path: Path, said: Callable[[Path], list[str]], place: str, named: str, make: Callable[[Path], None], what: str
) -> None:
    make(tmp_path)
    lines = said(tmp_path / place)
    assert len(lines) == 2 and lines[1].startswith("error: ") and str(tmp_path / named) in lines[1], lines
    assert what in lines[1] and "the same command continues" in lines[1]


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, "no space left: make room"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "change its permissions"),
        (errno.EIO, "the disk fails"),
    ],
)
def test_a_write_that_fails_names_the_file_that_was_meant(
    tmp_path: Path, said: Callable[[Path], list[str]], monkeypatch: pytest.MonkeyPatch, number: int, what: str
) -> None:
    """The system's error has no path, and what is written beside has a name that nobody knows."""

    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "fsync", full)
    lines = said(tmp_path / "run")
    assert len(lines) == 2 and lines[1].startswith(f"error: {tmp_path}/run/run.json: ") and what in lines[1], lines
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"], "no rubbish"
    monkeypatch.undo()
    atomic.write_atomic(tmp_path / "run" / "run.json", "{}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.1, 0.4, 1.0, 3.0])
def test_a_signal_while_modules_are_imported_ends_with_one_line(
    tmp_path: Path, number: signal.Signals, delay: float
) -> None:
    words = [sys.executable, "-c", "print('up', flush=True); from nas.cli.main import main; main()"]
    words += ["train", "bignas-digits"]
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as it:
        assert it.stdout is not None and it.stdout.readline() == b"up\n"
        time.sleep(delay)
        it.send_signal(number)
        lines = it.stdout.read().decode().splitlines()
        assert it.wait(60) == 130, lines
    assert lines[-1] == STOPPED and lines[:-1] in ([], ["bignas-digits in runs/bignas-digits"]), lines
