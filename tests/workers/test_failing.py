"""Ray that dies, and what is left of it; failures that another try would not mend. Without Ray."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock, Timeout

from nas.config.experiment import load_experiment
from nas.device import MemoryShort
from nas.rundir.atomic import Damaged
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence, Gone
from nas.training.guard import Diverged
from nas.workers import local, session
from nas.workers import train as training
from nas.workers.stopping import RayDied, wait_for
from nas.workers.train import TrainingFailed, train

HOLDS = """
import sys, time
from pathlib import Path
from filelock import FileLock
folder, mode = Path(sys.argv[1]), sys.argv[2]
if mode == "lock":
    file = FileLock(folder / "raynas.lock")
    file.acquire()
else:
    file = open(folder / "log", mode)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder() -> Iterator[object]:
    """Starts a process that has a file of a directory open, or its mark locked."""
    begun: list[subprocess.Popen[str]] = []

    def start(folder: Path, mode: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HOLDS, str(folder), mode]
        begun.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        assert begun[-1].stdout is not None and begun[-1].stdout.readline() == "ready\n"
        return begun[-1]

    yield start
    for each in begun:
        each.kill()
        each.wait()


def make(root: Path, name: str, marked: bool) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "log").touch()
    if marked:
        (folder / local.MARK).touch()
    return folder


def test_what_killed_runs_left_of_ray_goes_and_what_is_of_others_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: object
) -> None:
    monkeypatch.setattr(local, "get_default_ray_temp_dir", lambda: str(tmp_path))
    assert callable(holder)
    others, alive, dead = make(tmp_path, "session_1_1", False), make(tmp_path, "session_2_2", True), None
    dead, mine = make(tmp_path, "session_3_3", True), make(tmp_path, f"session_4_{os.getpid()}", False)
    writers = [holder(others, "a"), holder(alive, "lock"), holder(dead, "r"), holder(dead, "a")]
    with local.swept():
        assert not dead.exists() and others.exists() and alive.exists()
        assert writers[3].wait(10) is not None, "it wrote into the session of a dead run"
        begun = make(tmp_path, f"session_5_{os.getpid()}", False)
        writers.append(holder(begun, "w"))
    assert writers[4].wait(10) is not None and not begun.exists(), "what was started within is gone"
    assert [each.poll() for each in writers[:3]] == [None] * 3, "neither others' nor who only reads"
    assert mine.exists(), "another container's process of our number"


def test_a_session_is_known_to_be_alive_until_its_ray_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command on this machine that sweeps meanwhile would take it for a killed one's, and kill its owner."""
    monkeypatch.setattr(local, "get_default_ray_temp_dir", lambda: str(tmp_path))
    monkeypatch.setattr(local.ray_worker, "_global_node", None)
    found: list[Path] = []

    def hold(started: Future[None], over: threading.Event) -> None:
        folder = make(tmp_path, f"session_1_{os.getpid()}", False)
        node = SimpleNamespace(head=True, get_session_dir_path=lambda: str(folder))
        monkeypatch.setattr(local.ray_worker, "_global_node", node)
        started.set_result(None)
        assert over.wait(60)  # and from here on Ray ends, which takes seconds
        with pytest.raises(Timeout):
            FileLock(folder / local.MARK, timeout=0).acquire()
        found.append(folder)

    monkeypatch.setattr(session, "_hold", hold)
    with session.session():
        pass
    assert found and not found[0].exists()


@pytest.mark.parametrize(("kind", "name"), [("raylet", "raylet"), ("gcs_server", "head process")])
def test_a_dead_process_of_ray_is_named(monkeypatch: pytest.MonkeyPatch, kind: str, name: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        node = SimpleNamespace(all_processes={kind: [SimpleNamespace(process=process)]})
        monkeypatch.setattr(local.ray_worker, "_global_node", node)
        local.check_alive()
        process.kill()
        process.wait()
        with pytest.raises(RayDied, match=rf"{name}.* has died \(SIGKILL\); the same command continues"):
            local.check_alive()


def test_waiting_ends_with_what_a_check_finds(tmp_path: Path) -> None:
    """Also where the work has failed of it, and where it never ends."""
    fence = Fence.take(tmp_path)

    def fails() -> None:
        fence.path.unlink()
        raise RuntimeError("a consequence")

    with pytest.raises(Gone):
        session.on_ray(fails, fence)
    began, never = time.monotonic(), Future[None]()
    with pytest.raises(Gone):
        wait_for(never, fence.check)
    assert time.monotonic() - began < 10
    Fence.take(tmp_path)
    assert session.on_ray(lambda: threading.current_thread().name, Fence(tmp_path, 1)) != "MainThread"


def test_what_needs_no_ray_is_done_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()

    def hold(started: Future[None], over: threading.Event) -> None:
        if began.wait(20):
            started.set_result(None)
        else:
            started.set_exception(RuntimeError("what could be done meanwhile waits for Ray"))
        over.wait()

    monkeypatch.setattr(session, "_hold", hold)
    with session.session(meanwhile=began.set):
        pass
    with pytest.raises(ValueError, match="refused"), session.session(meanwhile=lambda: int("refused")):
        pytest.fail("it was refused")


@pytest.mark.parametrize(
    ("device", "address", "built"), [("cpu", None, True), ("cpu", "127.0.0.1:6379", False), ("cuda", None, False)]
)
def test_the_operator_is_built_before_a_training_where_it_will_run(
    monkeypatch: pytest.MonkeyPatch, device: str, address: str | None, built: bool
) -> None:
    calls: list[str] = []
    monkeypatch.setattr("nas.training.engine.prebuild", lambda: calls.append("built"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    training.prepare(torch.device(device))
    assert calls == ["built"] * built


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "RUN/train/metrics.jsonl"), 1),
        (Gone("RUN is gone"), 1),
        (MemoryShort("lower train.micro_batch"), 1),
        (Diverged("at step 9 the loss is not finite; that was after 3 rollbacks"), 1),
        (Damaged("step-00000008 has other files"), 1),
        (ConnectionResetError(errno.ECONNRESET, "reset"), 4),
        (RuntimeError("a worker died"), 4),
    ],
)
def test_only_what_may_be_mended_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int
) -> None:
    """A full disk is as full for the next three groups of workers; a machine that died may be another."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    tried = 0

    def fails(*_: object) -> None:
        nonlocal tried
        tried += 1
        raise WorkerGroupError("", {1: RuntimeError("connection closed by peer"), 0: error})

    for name, value in (("on_ray", fails), ("workers", lambda _: 2), ("has_gpus", lambda _: False)):
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(training, "check_room", lambda _: None)
    monkeypatch.setattr(training, "session", nullcontext)
    monkeypatch.setattr("nas.training.engine.prebuild", lambda: None)
    experiment = load_experiment("bignas-digits", ["train.max_failures=3"])
    with pytest.raises(type(error) if tries == 1 else TrainingFailed) as refusal:
        train(experiment, RunDir(tmp_path), Fence.take(tmp_path))
    assert tried == tries and str(error) in str(refusal.value)
