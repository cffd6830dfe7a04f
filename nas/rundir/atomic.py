"""Directories that are whole or not there: written beside, fsynced, sealed by a manifest, renamed.

A manifest names every file with its size and sha256. Nothing here unpickles: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SHA = re.compile(r"[0-9a-f]{64}")
LEFT = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(tmp|old)")  # what `write_atomic` and `write_directory` write beside


class Damaged(ValueError):
    """A directory does not hold what its manifest says."""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from within names what was to be written: a `write` to a full disk names nothing, and what is written
    beside is known to nobody."""
    try:
        yield
    except OSError as error:
        named = error.filename is not None and not any(LEFT.fullmatch(part) for part in Path(error.filename).parts)
        if error.errno is None or named:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file so that a reader sees the old or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{_token()}.tmp")
    try:
        with naming(path), beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _sync_directory(path.parent)


def write_directory(
    target: Path, fill: Callable[[Path], None], facts: Mapping[str, Any], allowed: Callable[[], None] = lambda: None
) -> Path:
    """Make `target` a directory with what `fill` writes and a manifest; an older directory of that name is replaced.

    Args:
        target: where it shall stand.
        fill: writes the files into the directory that it is given.
        facts: plain values kept in the manifest.
        allowed: called just before the rename; raises where the writer has lost the right to write (see `Fence`).
    """
    beside = target.with_name(f".{target.name}.{_token()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)  # not its parents: a run directory that was deleted must not come back by this
    with naming(target):
        beside.mkdir()
    try:
        with naming(target):
            fill(beside)
        files = {}
        shared = beside.stat().st_mode & 0o666  # as the umask has it; safetensors keeps its files from everybody else
        for path in sorted(p for p in beside.rglob("*") if p.is_file()):
            with suppress(PermissionError):  # of a file system that has no modes
                path.chmod(shared)
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


def verify(directory: Path, needed: Iterable[str] = ()) -> dict[str, Any]:
    """The manifest of a directory whose every file is as it says.

    Args:
        needed: files that a directory of this kind must have, so that an empty manifest is not taken for one that
            holds.

    Raises:
        Damaged: a file is missing, of another size, or changed; the message names it.
    """
    manifest = read_manifest(directory)
    files = manifest["files"]
    if lacking := [name for name in needed if name not in files]:
        raise Damaged(
            f"{directory / MANIFEST} does not list {', '.join(lacking)}: it is no manifest of such a directory"
        )
    for name, want in files.items():
        path = directory / name
        if not path.is_file() or path.is_symlink():
            raise Damaged(f"{path} is {'a link' if path.is_symlink() else 'missing'}")
        if path.stat().st_size != want["size"]:
            raise Damaged(f"{path} has {path.stat().st_size} bytes where the manifest says {want['size']}")
        if sha256(path) != want["sha256"]:
            raise Damaged(f"{path} was changed after it was written: its sha256 is not the manifest's")
    return manifest


def read_manifest(directory: Path) -> dict[str, Any]:
    """What a manifest says, its ``files`` by name, each with its ``size`` and ``sha256``; nothing is compared yet.

    Raises:
        Damaged: there is none, it has another form, or it names what is outside the directory.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        for name, want in manifest["files"].items():
            parts = Path(name).parts
            if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
                raise ValueError(f"it names {name!r}, which is no file of the directory")
            if type(want["size"]) is not int or not SHA.fullmatch(want["sha256"]):
                raise ValueError(f"it does not say what {name} is")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(
            f"{directory} has no readable {MANIFEST} ({error}); it was not written to the end, or was damaged"
        ) from error
    return dict(manifest)


def tidy(directory: Path) -> None:
    """Remove what killed writers left in a directory; an older one whose successor never came takes its place again.
    For whoever is the only one to write there."""
    for left in sorted(directory.glob(".*")):
        if match := LEFT.fullmatch(left.name):
            target = directory / match[1]
            if match[2] == "old" and not target.exists():
                left.rename(target)
            elif left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def _token() -> str:
    """Tells writers apart, on whichever machine they run."""
    return os.urandom(4).hex()


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
