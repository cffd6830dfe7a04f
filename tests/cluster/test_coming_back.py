"""What comes back from a cluster, and runs that end in order."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cluster import pack
from cluster.fetch import unpack, verify
from cluster.names import Refused
from nas.rundir.fence import Fence
from nas.workers import stopping
from nas.workers.stopping import Stopper, watching


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one child, as far as fetching is concerned."""
    child = tmp_path / "run" / "children" / "abc123"
    child.mkdir(parents=True)
    (tmp_path / "run" / "experiment.yaml").write_text("name: digits\n")
    (tmp_path / "run" / "secret-notes.txt").write_text("not fetched")
    (child / "weights").write_bytes(os.urandom(30_000))
    files = {"weights": {"size": 30_000, "sha256": hashlib.sha256((child / "weights").read_bytes()).hexdigest()}}
    (child / "manifest.json").write_text(json.dumps({"files": files}))
    (child / "link").symlink_to("/etc/passwd")
    return tmp_path / "run"


def packed(run: Path) -> bytes:
    """What the script writes, behind what Ray writes into the same log."""
    done = subprocess.run([sys.executable, pack.__file__, str(run)], capture_output=True, check=True)
    return b"2026 INFO Runtime env is setting up.\n" + done.stdout


def test_a_pack_comes_back_whole(run: Path, tmp_path: Path) -> None:
    unpack(io.BytesIO(packed(run)), tmp_path / "here")
    assert sorted(path.name for path in (tmp_path / "here").rglob("*") if path.is_file()) == [
        "experiment.yaml",
        "manifest.json",
        "weights",
    ]
    verify(tmp_path / "here" / "children" / "abc123")


@pytest.mark.parametrize("cut", [10, 2_000, 20_000])
def test_a_cut_pack_is_refused(run: Path, tmp_path: Path, cut: int) -> None:
    with pytest.raises(Refused, match="cut|no pack|not come"):
        unpack(io.BytesIO(packed(run)[:cut]), tmp_path / "here")


def test_a_pack_cannot_write_elsewhere(tmp_path: Path) -> None:
    def tar(*members: tuple[str, bytes, bytes]) -> io.BytesIO:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w|") as file:
            for name, content, kind in members:
                info = tarfile.TarInfo(name)
                info.size, info.type, info.linkname = len(content), kind, "/etc"
                file.addfile(info, io.BytesIO(content))
        return io.BytesIO(pack.MARK + out.getvalue())

    sums = json.dumps({"../x": hashlib.sha256(b"1").hexdigest()}).encode()
    with pytest.raises(Refused, match="not a name"):
        unpack(tar(("sha256.json", sums, tarfile.REGTYPE), ("../x", b"1", tarfile.REGTYPE)), tmp_path / "here")
    with pytest.raises(Refused, match="no plain file"):
        unpack(tar(("sha256.json", b"{}", tarfile.REGTYPE), ("link", b"", tarfile.SYMTYPE)), tmp_path / "here")
    with pytest.raises(Refused, match="not come as it was sent"):
        unpack(tar(("sha256.json", b"{}", tarfile.REGTYPE), ("extra", b"1", tarfile.REGTYPE)), tmp_path / "here")
    assert not (tmp_path / "x").exists()


def test_a_changed_child_is_refused(run: Path) -> None:
    child = run / "children" / "abc123"
    (child / "link").unlink()
    verify(child)
    (child / "extra").touch()
    with pytest.raises(Refused, match="extra"):
        verify(child)
    (child / "extra").unlink()
    (child / "weights").write_bytes(b"other")
    with pytest.raises(Refused, match="weights"):
        verify(child)


def test_no_run_is_told(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, pack.__file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == f"{tmp_path} holds no run\n"


def test_the_fence_carries_the_wish_to_end(tmp_path: Path) -> None:
    fence = Fence.take(tmp_path)
    assert not fence.stopping()
    fence.ask_to_stop()
    assert fence.stopping() and Fence(tmp_path, fence.attempt).stopping()
    fence.check()
    newer = Fence.take(tmp_path)
    assert newer.attempt == fence.attempt + 1 and not newer.stopping() and not fence.stopping()
    fence.ask_to_stop()
    assert not newer.stopping(), "an attempt that is over cannot end a newer one"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "ECHO_S", 0.0)
    said: list[str] = []
    before = signal.getsignal(number)
    stopper = Stopper(Fence.take(tmp_path), said.append)
    with stopper.listening():
        stopper.check()
        os.kill(os.getpid(), number)
        assert stopper.fence.stopping() and number.name in said[0]
        with pytest.raises(KeyboardInterrupt):
            stopper.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_a_signal_after_a_notice_leaves_the_time_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a run that loses its machine is saving: the second one ends it, as ever."""
    monkeypatch.setattr(stopping, "ECHO_S", 0.0)
    stopper = Stopper(Fence.take(tmp_path), lambda text: None)
    with stopper.listening():
        stopper.ask("taken away")
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_machine_that_is_taken_away_ends_its_run_in_order_and_once(tmp_path: Path) -> None:
    said: list[str] = []
    stopper, answers = Stopper(Fence.take(tmp_path), said.append), iter([False, None, True, True])

    def leaving() -> bool:
        answer = next(answers)
        if answer is None:
            raise ConnectionError("the head does not answer")
        return answer

    with watching(leaving, lambda: stopper.ask("taken away"), every_s=0.01):
        assert stopper.asked.wait(30)
    stopper.ask("again")
    assert stopper.fence.stopping() and said == ["taken away"] and next(answers)
