"""Directories that are whole or not there: written beside, fsynced, sealed by a manifest, renamed.

A manifest names every file with its size and sha256. Nothing here unpickles: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
STOP = "stop"
STEP = re.compile(r"step-(\d{8})")


class Damaged(ValueError):
    """A directory does not hold what its manifest says."""


class Fenced(RuntimeError):
    """A newer attempt owns the run; this writer must stop."""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Replace a small text file so that a reader sees the old or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{_token()}.tmp")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    _sync_directory(path.parent)


def write_directory(target: Path, fill: Callable[[Path], None], facts: Mapping[str, Any], allowed: Callable[[], None] = lambda: None) -> Path:
    """Make `target` a directory with what `fill` writes and a manifest; an older directory of that name is replaced.

    Args:
        target: where it shall stand.
        fill: writes the files into the directory that it is given.
        facts: plain values kept in the manifest.
        allowed: called just before the rename; raises where the writer has lost the right to write (see `Fence`).
    """
    beside = target.with_name(f".{target.name}.{_token()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        fill(beside)
        files = {}
        for path in sorted(p for p in beside.rglob("*") if p.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[str(path.relative_to(beside))] = {"size": path.stat().st_size, "sha256": sha256(path)}
        write_atomic(beside / MANIFEST, json.dumps({**facts, "files": files}, indent=1, sort_keys=True))
        allowed()
        if target.exists():
            old = target.with_name(f".{target.name}.{_token()}.old")
            target.rename(old)
            beside.rename(target)
            shutil.rmtree(old)
        else:
            beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _sync_directory(target.parent)
    return target


def verify(directory: Path) -> dict[str, Any]:
    """The manifest of a directory whose every file is as it says.

    Raises:
        Damaged: a file is missing, of another size, or changed; the message names it.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{directory} has no readable {MANIFEST} ({error}); it was not written to the end, or was damaged") from error
    for name, want in files:
        path = directory / name
        if not path.is_file():
            raise Damaged(f"{path} is missing")
        if path.stat().st_size != want.get("size"):
            raise Damaged(f"{path} has {path.stat().st_size} bytes where the manifest says {want.get('size')}")
        if sha256(path) != want.get("sha256"):
            raise Damaged(f"{path} was changed after it was written: its sha256 is not the manifest's")
    return manifest


def steps(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first, whole or not."""
    found = [(int(match[1]), path) for path in root.glob("step-*") if (match := STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest_valid(root: Path, warn: Callable[[str], None] = lambda _: None) -> Path | None:
    """The newest checkpoint that verifies; older ones are tried in turn, and `warn` is told why a newer one was passed over.

    Raises:
        Damaged: there are checkpoints and none of them is whole.
    """
    found, problems = steps(root), []
    for path in reversed(found):
        try:
            verify(path)
            return path
        except Damaged as problem:
            problems.append(str(problem))
            warn(f"checkpoint passed over: {problem}")
    if found:
        raise Damaged("no checkpoint is whole:\n  " + "\n  ".join(problems) + f"\nrestore one, or delete {root} to train from the start")
    return None


def retain(root: Path, keep: int, also: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    """Delete all but the newest `keep` checkpoints and those of the steps in `also`, and what killed writers left behind."""
    for path in steps(root)[:-keep]:
        if int(STEP.fullmatch(path.name)[1]) not in also:  # type: ignore[index]
            shutil.rmtree(path, ignore_errors=True)
    for left in (*root.glob(".step-*.tmp"), *root.glob(".step-*.old")):
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)


class Fence:
    """Lets only the newest attempt at a run write into it.

    The driver takes a number by `Fence.take`; every writer holds it and asks `check` before it makes anything visible.
    The driver asks all of them to end by a word behind the number: a file that is there already is looked at anew by a network
    file system when it is opened, while one that was not there may stay unseen for a minute.
    """

    def __init__(self, run: Path, attempt: int) -> None:
        self.path, self.attempt = run / "attempt", attempt

    @classmethod
    def take(cls, run: Path) -> Fence:
        """The fence of a new attempt; all earlier ones are shut out."""
        fence = cls(run, 0)
        fence.attempt = fence.current() + 1
        write_atomic(fence.path, str(fence.attempt))
        return fence

    def current(self) -> int:
        return int(self.path.read_text().split()[0]) if self.path.exists() else 0

    def ask_to_stop(self) -> None:
        """Ask all who work for this attempt to save and end."""
        if self.current() == self.attempt:
            write_atomic(self.path, f"{self.attempt} {STOP}")

    def stopping(self) -> bool:
        """Whether those who work for this attempt shall save and end."""
        return self.path.exists() and self.path.read_text().split() == [str(self.attempt), STOP]

    def check(self) -> None:
        """Raises: Fenced, where a newer attempt has begun."""
        if self.current() != self.attempt:
            raise Fenced(f"attempt {self.attempt} at {self.path.parent} is over: attempt {self.current()} has begun")


def _token() -> str:
    """Tells writers apart, on whichever machine they run."""
    return os.urandom(4).hex()


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
