"""A run kept in an object store beside its directory, so that it outlives the machines: pushed while it goes on,
restored where it is gone.

Below the run's address::

    attempt-000003-9f2c41aa/commits/00000017.json      what all files of the run were at one moment; written after all
    that it names attempt-000003-9f2c41aa/files/supernet/step-00000400/weights.safetensors/000000000000-<sha256>
    attempt-000003-9f2c41aa/files/search/journal-1a2b3c4d.jsonl/000000004096-<sha256>

An object is written once, and its name says what must be in it; a file that only grows is a row of segments, named by
their offsets. A store may end a broken upload as a short object, be late with what it lists, and refuses no writer that
is over. So a commit counts only if every object is what it says, an older one is taken where it is not, and every
attempt writes below a name of its own: the newest attempt with a commit is the run, and whatever an older one still
writes is never looked at again.

Only the driver comes here, and training and search never wait for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

from pyarrow import fs

from nas.rundir.atomic import MANIFEST, Damaged, read_manifest, write_atomic
from nas.rundir.checkpoint import directories
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fenced

ATTEMPT = re.compile(r"attempt-(\d{6})-[0-9a-f]{8}")
COMMIT = re.compile(r"(\d{8})\.json")
NAME = re.compile(r"[\w-][\w.-]*")  # of each part of a file's name
GROWING = ".jsonl"
KNOWN = ".mirror.json"  # in the run directory: the attempts that it holds the work of
EVERY_S = 10.0
END_S = 60.0  # for the last push; a stopped job has three minutes in all
PAUSE_S = 1.0  # after a failure
KEEP = 2  # commits of an attempt, the last ones
SEGMENTS = 100  # of a growing file, before it is written as one again
BLOCK = 1 << 20


class Piece(NamedTuple):
    """A part of a file: the object's key below the attempt, its bytes, their hash."""

    key: str
    size: int
    sha256: str


Files = dict[str, list[Piece]]


class Store:
    """Objects below one address, by key."""

    def __init__(self, uri: str) -> None:
        try:
            self.fs, self.base = fs.FileSystem.from_uri(_direct(uri))
        except Exception as error:
            raise ValueError(
                f"the mirror {uri!r} cannot be used: {error}; write s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
            ) from error
        self.flat = self.fs.type_name in ("s3", "gcs")  # these have no directories to make

    def put(self, key: str, content: IO[bytes]) -> None:
        path = f"{self.base}/{key}"
        if not self.flat:
            self.fs.create_dir(path.rpartition("/")[0], recursive=True)
        with self.fs.open_output_stream(path) as out:
            shutil.copyfileobj(content, out, BLOCK)

    def get(self, key: str, into: IO[bytes]) -> str:
        """Write an object into a file; returns its sha256. Raises: FileNotFoundError."""
        seen = hashlib.sha256()
        with self.fs.open_input_stream(f"{self.base}/{key}") as source:
            while block := source.read(BLOCK):
                seen.update(block)
                into.write(block)
        return seen.hexdigest()

    def names(self, key: str = "") -> list[str]:
        """What stands directly below a key, sorted."""
        found = self.fs.get_file_info(fs.FileSelector(f"{self.base}/{key}".rstrip("/"), allow_not_found=True))
        return sorted(info.base_name for info in found)

    def drop(self, key: str) -> None:
        """Delete one object."""
        with suppress(FileNotFoundError):
            self.fs.delete_file(f"{self.base}/{key}")

    def drop_all(self, key: str) -> None:
        """Delete all objects below a key."""
        with suppress(FileNotFoundError):
            self.fs.delete_dir(f"{self.base}/{key}")


def _direct(uri: str) -> str:
    """A small object is one request to S3 instead of three, and cannot be left half uploaded."""
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true" if uri.startswith("s3://") else uri


@dataclass
class _Seen:
    """A file as it was when it was pushed: its inode, size and time of change, and where it is."""

    stamp: tuple[int, int, int]
    pieces: list[Piece]


@dataclass
class _Commit:
    """A commit of this attempt, and the keys of the objects that it names."""

    number: int
    objects: set[str]
    whole: bool = False

    @property
    def key(self) -> str:
        return f"commits/{self.number:08d}.json"


class Mirror:
    """One attempt's hold on the mirror of a run. `bring` the run first; as a context it claims the mirror and pushes,
    to the end and once more.

    Args:
        uri: of the run, ``s3://bucket/prefix/name``; credentials come from the environment, never from here.
        run: the run's directory.
        say: told what a person should know.

    Raises:
        ValueError: no store has such an address.
    """

    def __init__(self, uri: str, run: Path, say: Callable[[str], None], every_s: float = EVERY_S) -> None:
        self.uri, self.run, self.say, self.every_s = uri, run, say, every_s
        self.store = Store(uri)
        self.attempt = ""
        self.lost: Callable[[], None] = lambda: None  # called, from a thread, when another attempt has taken over
        self._seen: dict[str, _Seen] = {}
        self._commits: list[_Commit] = []  # those that are kept, and those of whose putting nobody knows
        self._number = 0
        self._held: set[str] = set()  # keys of the objects that this attempt has written
        self._closing, self._over, self._done = threading.Event(), False, False
        self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)

    # --- at the start

    def bring(self) -> None:
        """Make the run directory from the mirror where there is none yet, and a mirror that has one.

        Raises:
            ValueError: the store cannot be reached.
            Damaged: no commit is whole.
        """
        if self.run.exists() and any(self.run.iterdir()):
            return
        with self._told():
            if any(self._numbers(name) for name in self._attempts()):
                self.restore()

    def claim(self) -> None:
        """Let no earlier attempt write any more. To be called by whoever holds the run directory.

        Raises:
            ValueError: the store cannot be read and written, or holds more of this run than the directory does.
        """
        with self._told():
            attempts = self._attempts()
            newest = next((name for name in reversed(attempts) if self._numbers(name)), None)
            if newest is not None and newest not in self._known():
                raise ValueError(
                    f"{self.run} is behind its mirror {self.uri}, where {newest} has gone on elsewhere: "
                    "move the directory away, and it is made anew from the mirror; or give another address for the "
                    "mirror"
                )
            number = 1 + max((int(name.split("-")[1]) for name in attempts), default=0)
            self.attempt = f"attempt-{number:06d}-{os.urandom(4).hex()}"
            self.store.put(f"{self.attempt}/claim", io.BytesIO(b"{}"))
        write_atomic(self.run / KNOWN, json.dumps([*self._known(), self.attempt]))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(f"the mirror {self.uri} cannot be read and written: {error}") from error

    def restore(self) -> None:
        """Make the run directory as the newest whole commit says; for whoever only wants to have it.

        Raises:
            Damaged: there is none.
        """
        problems = []
        with self._told():
            commits = [
                (attempt, number)
                for attempt in reversed(self._attempts())
                for number in reversed(self._numbers(attempt))
            ]
            for attempt, number in commits:
                try:
                    self._fetch(attempt, self._read_commit(attempt, number))
                    self.say(f"restored from {self.uri} ({attempt}, commit {number})")
                    return
                except (Damaged, FileNotFoundError) as problem:
                    problems.append(f"{attempt}, commit {number}: {problem}")
                    self.say(f"passed over in the mirror: {problems[-1]}")
        why = (
            "nothing is whole:\n  " + "\n  ".join(problems[:5]) + "\ngive another address to begin anew"
            if problems
            else "it holds no run"
        )
        raise Damaged(f"the mirror {self.uri} cannot be restored: {why}")

    def _attempts(self) -> list[str]:
        return [name for name in self.store.names() if ATTEMPT.fullmatch(name)]

    def _numbers(self, attempt: str) -> list[int]:
        """The commits of an attempt."""
        return [int(match[1]) for name in self.store.names(f"{attempt}/commits") if (match := COMMIT.fullmatch(name))]

    def _known(self) -> list[str]:
        path = self.run / KNOWN
        return list(json.loads(path.read_text())) if path.exists() else []

    def _read_commit(self, attempt: str, number: int) -> Files:
        text = io.BytesIO()
        self.store.get(f"{attempt}/commits/{number:08d}.json", text)
        try:
            files = json.loads(text.getvalue())["files"]
            return {str(name): [Piece(*row) for row in pieces] for name, pieces in files.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"the commit is cut ({error})") from error

    def _fetch(self, attempt: str, files: Files) -> None:
        """Write the files of a commit beside the run directory, every byte verified, and rename."""
        beside = self.run.with_name(f".{self.run.name}.{os.urandom(4).hex()}.tmp")
        beside.mkdir(parents=True)
        try:
            for name, pieces in files.items():
                if not all(NAME.fullmatch(part) for part in name.split("/")):
                    raise Damaged(f"{name!r} is no name of a run's file")
                path = beside / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    for piece in pieces:
                        if self.store.get(f"{attempt}/{piece.key}", file) != piece.sha256:
                            raise Damaged(f"{piece.key} is not what was written")
            write_atomic(beside / KNOWN, json.dumps([attempt]))
            beside.rename(self.run)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    # --- while the run goes on

    def __enter__(self) -> Self:
        self.claim()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join(END_S)
        if self._over and kind in (None, KeyboardInterrupt):
            raise Fenced(
                f"another attempt has taken over the run in {self.uri}; what this one did since is in {self.run} alone"
            )
        if not (self._done or self._over):
            self.say(f"the mirror {self.uri} lacks the end of this run; the same command in {self.run} brings it")

    def _follow(self) -> None:
        """Push now and then; and when the run ends, until all is there or the time for it is over."""
        failures, deadline = 0, float("inf")
        while not (self._over or self._done) and time.monotonic() < deadline:
            ending = self._closing.wait(self.every_s)
            if ending:
                deadline = min(deadline, time.monotonic() + END_S)
            try:
                self.push()
                self._done, failures = ending, 0
            except Fenced:
                self._over = True
                self.lost()
            except Exception as error:  # whatever it is, the run goes on in its directory
                failures += 1
                if failures == 2:  # one alone may be a file that was replaced meanwhile
                    self.say(f"the mirror {self.uri} cannot be written, will try again: {error}")
                time.sleep(PAUSE_S)

    def push(self) -> bool:
        """Bring the mirror to where the run stands; returns whether anything was new.

        Raises:
            Fenced: another attempt has taken over.
            OSError: the store or a file failed; what was there before is untouched, and the next push goes on.
        """
        now: dict[str, _Seen] = {}
        with ExitStack() as opened:
            news: dict[str, IO[bytes]] = {}
            for name, path in whole_files(self.run):
                file: IO[bytes] = opened.enter_context(
                    path.open("rb")
                )  # held open, it can be read even if it is deleted meanwhile
                stat = os.fstat(file.fileno())
                now[name] = _Seen((stat.st_ino, stat.st_size, stat.st_mtime_ns), [])
                old = self._seen.get(name)
                if old and (old.stamp == now[name].stamp or _grew(name, old, now[name])):
                    now[name].pieces = old.pieces
                if old and old.stamp == now[name].stamp:
                    file.close()
                else:
                    news[name] = file
            if not news and now.keys() == self._seen.keys():
                return False
            for name, file in news.items():
                now[name].pieces = self._upload(name, file, now[name].pieces)
        if any(name > self.attempt for name in self._attempts()):
            raise Fenced(f"{self.attempt} of {self.uri} is over")
        self._commit({name: seen.pieces for name, seen in now.items()})
        self._seen = now
        return True

    def _upload(self, name: str, file: IO[bytes], before: list[Piece]) -> list[Piece]:
        """Put what is new of a file, of a growing one whole lines alone; returns all its pieces."""
        before = before if len(before) < SEGMENTS else []
        start, content = sum(piece.size for piece in before), file
        if name.endswith(GROWING):
            file.seek(start)
            text = file.read()
            content = io.BytesIO(text[: text.rfind(b"\n") + 1])
            if before and not content.getvalue():
                return before
        digest = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
        piece = Piece(f"files/{name}/{start:012d}-{digest}", content.seek(0, os.SEEK_END), digest)
        if piece.key not in self._held:
            content.seek(0)
            self.store.put(f"{self.attempt}/{piece.key}", content)
            self._held.add(piece.key)
        return [*before, piece]

    def _commit(self, files: Files) -> None:
        """Write what the run is now, in one object, and drop what that makes needless."""
        self._number += 1  # used up, whether the put ends well or not
        commit = _Commit(self._number, {piece.key for pieces in files.values() for piece in pieces})
        self._commits.append(commit)
        self.store.put(
            f"{self.attempt}/{commit.key}", io.BytesIO(json.dumps({"raynas_mirror": 1, "files": files}).encode())
        )
        commit.whole = True
        with suppress(OSError):  # what is left over costs room and nothing else
            self._prune()

    def _prune(self) -> None:
        """Drop commits but the newest, the objects that they alone name, and attempts before the one that was
        restored."""
        whole = [commit for commit in self._commits if commit.whole]
        if len(whole) == 1:  # the first: until now the run was to be had from an earlier attempt alone
            before = [name for name in self._attempts() if name < self.attempt]
            kept = next((name for name in reversed(before) if self._numbers(name)), None)
            for name in before:
                if name != kept:
                    self.store.drop_all(name)
        while len(whole) >= KEEP and self._commits[0] is not whole[-KEEP]:
            self.store.drop(f"{self.attempt}/{self._commits[0].key}")
            del self._commits[0]
        needed = {key for commit in self._commits for key in commit.objects}
        for key in self._held - needed:
            self.store.drop(f"{self.attempt}/{key}")
            self._held.discard(key)


def whole_files(run: Path) -> Iterator[tuple[str, Path]]:
    """The files that make a run what it is, by their names in it, effects before their causes: a commit never has an
    effect alone.

    Of the checkpoints the newest; of directories with a manifest what that names; nothing hidden, nothing unfinished.
    """
    at = RunDir(run)
    yield from _plain(run, at.report)
    for manifest in sorted(at.children.glob(f"*/{MANIFEST}")):
        if NAME.fullmatch(manifest.parent.name):
            yield from _sealed(run, manifest.parent)
    yield from _plain(run, at.search)
    for directory in directories(at.checkpoints)[-1:]:
        yield from _sealed(run, directory)
    for entry in sorted(run.iterdir()):
        if entry not in (at.report, at.children, at.search, at.checkpoints):
            yield from _plain(run, entry)


def _sealed(run: Path, directory: Path) -> Iterator[tuple[str, Path]]:
    """The files that a manifest names; none where it is not one, or names what is no file of this directory: another
    may have written it."""
    try:
        names = [*read_manifest(directory)["files"], MANIFEST]
    except Damaged:
        return
    paths = [directory / name for name in names]
    if all(_ours(path.relative_to(run)) and path.is_file() and not path.is_symlink() for path in paths):
        yield from ((str(path.relative_to(run)), path) for path in paths)


def _ours(name: Path) -> bool:
    """Whether a path within a run is made of the names that its files have."""
    return all(NAME.fullmatch(part) for part in name.parts)


def _plain(run: Path, entry: Path) -> Iterator[tuple[str, Path]]:
    """A file, or all those of a directory."""
    paths = [entry] if entry.is_file() else sorted(entry.rglob("*")) if NAME.fullmatch(entry.name) else []
    for path in paths:
        name = path.relative_to(run)
        if _ours(name) and path.is_file() and not path.is_symlink():
            yield str(name), path


def _grew(name: str, old: _Seen, new: _Seen) -> bool:
    """Whether a file is the same one with lines added."""
    return (
        name.endswith(GROWING)
        and old.stamp[0] == new.stamp[0]
        and new.stamp[1] >= sum(piece.size for piece in old.pieces)
    )
