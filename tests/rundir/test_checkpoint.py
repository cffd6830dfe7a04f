"""Directories that are whole or not there: damage is found, older ones are taken, late writers are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nas.rundir.atomic import MANIFEST, Damaged, verify, write_atomic, write_directory
from nas.rundir.checkpoint import Checkpoint, directories, retain
from nas.rundir.fence import Fence, Fenced


def fill(directory: Path, text: str = "weights") -> None:
    (directory / "weights").write_bytes(text.encode() * 1000)
    (directory / "deeper").mkdir()
    (directory / "deeper" / "state.json").write_text(json.dumps({"text": text}))


def save(root: Path, step: int, text: str = "weights") -> Path:
    return write_directory(root / f"step-{step:08d}", lambda directory: fill(directory, text), {"step": step})


def save_checkpoint(root: Path, step: int, text: str = "weights") -> Path:
    """One whose tensors are nonsense, which nobody looks at here."""

    def written(directory: Path) -> None:
        for kind in ("weights", "optimizer", "recipe"):
            (directory / f"{kind}.safetensors").write_bytes(f"{kind} {text}".encode() * 100)
        (directory / "state.json").write_text(
            json.dumps({"state": {"step": step, "total": 1000}, "recipe": {"text": text}})
        )

    return write_directory(root / f"step-{step:08d}", written, {"step": step})


def newest(root: Path, told: Callable[[str], None] = lambda _: None) -> Path | None:
    found = Checkpoint.newest(root, told)
    return found and found.directory


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def flip(path: Path, index: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[index] ^= 1 << bit
    path.write_bytes(bytes(content))


# --- one directory


def test_what_was_written_verifies_and_is_told(tmp_path: Path) -> None:
    target = save(tmp_path, 3)
    manifest = verify(target)
    assert manifest["step"] == 3
    assert set(manifest["files"]) == {"weights", "deeper/state.json"}
    assert manifest["files"]["weights"]["size"] == 7000
    command = ["sha256sum", "weights", "deeper/state.json"]  # coreutils' own opinion
    told = subprocess.run(command, cwd=target, capture_output=True, text=True, check=True).stdout.split()
    assert told[0::2] == [manifest["files"][name]["sha256"] for name in told[1::2]]
    assert names(tmp_path) == ["step-00000003"], "nothing is left beside it"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: flip(d / "weights", 4321), r"weights was changed .* sha256"),
        (lambda d: flip(d / "deeper" / "state.json", 0, 7), r"state.json was changed"),
        (lambda d: os.truncate(d / "weights", 6999), r"weights has 6999 bytes where the manifest says 7000"),
        (lambda d: (d / "weights").write_bytes(b""), r"weights has 0 bytes"),
        (lambda d: (d / "weights").unlink(), r"weights is missing"),
        (lambda d: shutil.rmtree(d / "deeper"), r"state.json is missing"),
        (lambda d: (d / MANIFEST).unlink(), r"no readable manifest.json .*not written to the end"),
        (lambda d: os.truncate(d / MANIFEST, 30), r"no readable manifest.json"),
        (lambda d: (d / MANIFEST).write_text("[]"), r"no readable manifest.json"),
        (lambda d: (d / MANIFEST).write_text('{"step": 3}'), r"no readable manifest.json"),
    ],
)
def test_damage_is_told(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    target = save(tmp_path, 3)
    damage(target)
    with pytest.raises(Damaged, match=message):
        verify(target)


def test_no_flipped_bit_of_any_file_goes_unseen(tmp_path: Path) -> None:
    """Every byte of a small file, and of the manifest what concerns files: found, and as `Damaged`, which older
    checkpoints catch."""

    def few(directory: Path) -> None:
        (directory / "a").write_text("twelve bytes")

    target = write_directory(tmp_path / "step-00000001", few, {})
    whole = verify(target)
    for path in (target / "a", target / MANIFEST):
        content = path.read_bytes()
        for index in range(len(content)):
            flip(path, index, index % 7)
            try:
                assert verify(target)["files"] == whole["files"]
                assert path.name == MANIFEST, f"byte {index} of {path.name}"
            except Damaged:
                pass
            path.write_bytes(content)
    assert verify(target) == whole


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = save(tmp_path, 3, "old")
    (target / "stray").write_text("of the old one")
    assert save(tmp_path, 3, "new") == target
    assert json.loads((target / "deeper" / "state.json").read_text()) == {"text": "new"}
    assert not (target / "stray").exists()
    verify(target)
    assert names(tmp_path) == ["step-00000003"]


def test_a_writer_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    """Whether it fails while it writes or is refused at the end."""
    target = save(tmp_path, 3, "old")

    def breaks(directory: Path) -> None:
        fill(directory, "new")
        raise OSError("no space left on device")

    def refused() -> None:
        raise Fenced("over")

    with pytest.raises(OSError, match="no space"):
        write_directory(target, breaks, {})
    with pytest.raises(Fenced):
        write_directory(target, fill, {}, refused)
    with pytest.raises(OSError, match="no space"):
        write_directory(tmp_path / "step-00000004", breaks, {})
    assert json.loads((target / "deeper" / "state.json").read_text()) == {"text": "old"}
    assert names(tmp_path) == ["step-00000003"]


def test_files_are_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files, then the manifest, are fsynced before the rename; the parent directory after it."""
    happened: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_sync(handle: int) -> None:
        happened.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def note_rename(self: Path, target: Path) -> Path:
        happened.append(f"-> {Path(target).name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    save(tmp_path, 3)
    at = happened.index("-> step-00000003")
    assert {"weights", "state.json"} <= set(happened[:at])
    manifest = next(i for i, name in enumerate(happened) if MANIFEST in name)
    assert max(happened.index(name) for name in ("weights", "state.json")) < manifest < at
    assert tmp_path.name in happened[at:]


@pytest.mark.parametrize("replaces", [False, True])
def test_kill_9_while_writing_leaves_no_half_directory(tmp_path: Path, replaces: bool) -> None:
    """A process is killed with two of its files written: the old checkpoint is the newest, and nothing half shows
    under a step's name."""
    old = save_checkpoint(tmp_path, 1, "old")
    step = 1 if replaces else 2
    code = f"""
import time
from pathlib import Path
from nas.rundir.atomic import write_directory
def fill(directory):
    (directory / "weights").write_text("new")
    (directory / "state.json").write_text("{{}}")
    Path({str(tmp_path / "ready")!r}).touch()
    time.sleep(60)
write_directory(Path({str(tmp_path)!r}) / "step-{step:08d}", fill, {{}})
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (tmp_path / "ready").unlink()
    assert directories(tmp_path) == [old]
    assert newest(tmp_path) == old
    assert Checkpoint.open(old).state.step == 1 and (old / "weights.safetensors").read_bytes() == b"weights old" * 100
    left = [name for name in names(tmp_path) if name != old.name]
    assert len(left) == 1 and left[0].startswith("."), left
    save_checkpoint(tmp_path, step, "again")
    assert newest(tmp_path) == tmp_path / f"step-{step:08d}"
    retain(tmp_path, 2)
    assert left[0] in names(tmp_path), "it may belong to a living writer"
    os.utime(tmp_path / left[0], (0, 0))
    retain(tmp_path, 2)
    assert left[0] not in names(tmp_path)


def test_small_files_are_replaced_whole(tmp_path: Path) -> None:
    """A reader beside a writer sees one text or the other, and nothing stays beside the file."""
    path = tmp_path / "note"
    texts = {"a" * 100_000, "b" * 50_000}
    write_atomic(path, "a" * 100_000)
    code = f"""
from pathlib import Path
from nas.rundir.atomic import write_atomic
for _ in range(100):
    write_atomic(Path({str(path)!r}), "b" * 50_000)
    write_atomic(Path({str(path)!r}), "a" * 100_000)
"""
    with subprocess.Popen([sys.executable, "-c", code]) as writer:
        seen = set()
        while writer.poll() is None:
            seen.add(path.read_text())
    assert writer.returncode == 0
    assert seen <= texts
    assert names(tmp_path) == ["note"]


# --- several


def test_the_newest_whole_one_is_taken(tmp_path: Path) -> None:
    """One after the other is passed over, and why is told; with none whole, nothing is guessed."""
    first, second, third = (save_checkpoint(tmp_path, step) for step in (5, 40, 300))
    told: list[str] = []
    assert directories(tmp_path) == [first, second, third]
    assert newest(tmp_path, told.append) == third and told == []
    flip(third / "weights.safetensors", 17)
    assert newest(tmp_path, told.append) == second
    assert len(told) == 1 and "step-00000300/weights.safetensors was changed" in told[0]
    (second / MANIFEST).unlink()
    assert newest(tmp_path) == first
    (first / "weights.safetensors").unlink()
    with pytest.raises(Damaged) as refusal:
        newest(tmp_path)
    for words in (
        "no checkpoint is whole",
        "step-00000300",
        "step-00000040",
        "step-00000005",
        "is missing",
        f"delete {tmp_path}",
    ):
        assert words in str(refusal.value)


@pytest.mark.parametrize(
    "lacking", ["weights.safetensors", "optimizer.safetensors", "recipe.safetensors", "state.json"]
)
def test_a_manifest_that_lists_less_than_a_checkpoint_holds_is_damage(tmp_path: Path, lacking: str) -> None:
    """Else an empty list of files would verify nothing, and be taken."""
    found = save_checkpoint(tmp_path, 3)
    manifest = json.loads((found / MANIFEST).read_text())
    del manifest["files"][lacking]
    (found / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(Damaged, match=f"does not list {lacking}"):
        Checkpoint.open(found)


def test_no_checkpoint_is_no_damage(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "nowhere") is None
    (tmp_path / "step-7").mkdir()
    (tmp_path / "step-00000007.bak").mkdir()
    (tmp_path / ".step-00000009.abcd.tmp").mkdir()
    assert directories(tmp_path) == [] and newest(tmp_path) is None


def test_retain_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 20):
        save(tmp_path, step)
    retain(tmp_path, 2)
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    retain(tmp_path, 5)
    assert len(names(tmp_path)) == 2
    retain(tmp_path, 1)
    assert names(tmp_path) == ["step-00000020"]


# --- the fence


def test_an_attempt_that_is_over_writes_nothing(tmp_path: Path) -> None:
    """Also one that began to write before the other came: it is asked at the last moment."""
    first = Fence.take(tmp_path)
    first.check()
    held: list[Fence] = []

    def slow(directory: Path) -> None:
        fill(directory)
        held.append(Fence.take(tmp_path))

    with pytest.raises(Fenced, match=r"attempt 1 at .* is over: attempt 2 has begun"):
        write_directory(tmp_path / "step-00000001", slow, {}, first.check)
    assert directories(tmp_path) == []
    with pytest.raises(Fenced):
        first.check()
    write_directory(tmp_path / "step-00000001", fill, {}, held[0].check)
    verify(tmp_path / "step-00000001")
    assert (first.attempt, held[0].attempt, held[0].current()) == (1, 2, 2)


def test_a_fence_by_number_is_that_attempts(tmp_path: Path) -> None:
    """Workers are told a number, not an object."""
    fence = Fence.take(tmp_path)
    Fence(tmp_path, fence.attempt).check()
    for other in (0, 2):
        with pytest.raises(Fenced):
            Fence(tmp_path, other).check()


def test_only_the_newest_attempt_is_asked_to_stop(tmp_path: Path) -> None:
    first = Fence.take(tmp_path)
    assert not first.stopping()
    first.ask_to_stop()
    assert first.stopping() and Fence(tmp_path, 1).stopping()
    first.check()  # it may still save
    second = Fence.take(tmp_path)
    assert not second.stopping() and not first.stopping()
    first.ask_to_stop()
    assert not second.stopping()


def test_whoever_may_read_the_directory_may_read_its_files(tmp_path: Path) -> None:
    """safetensors keeps what it writes from everybody else, so that a child on a shared disk could not be loaded."""

    def fill(directory: Path) -> None:
        (directory / "weights").write_bytes(b"1")
        (directory / "weights").chmod(0o600)

    before = os.umask(0o027)
    try:
        target = write_directory(tmp_path / "child", fill, {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o640}
