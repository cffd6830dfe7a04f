"""What has been found out about the files of a data set, kept in a run so that no other process of it looks again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from filelock import FileLock


class Index:
    """Findings by name, plain values. The command that begins a run finds them and writes them down; what a worker does
    not find there it finds out by itself.

    Args:
        path: of the file; None: nothing is known, and nothing will be kept.
        shared: a directory for what all processes of a run share while they work, see `nas.rundir.RunDir.batches`.
    """

    def __init__(self, path: Path | None = None, shared: Path | None = None) -> None:
        self.path, self.shared = path, shared
        self._known: dict[str, Any] = {}
        self._new = False
        if path is not None and path.is_file():
            with suppress(ValueError, TypeError):  # what is damaged is found out again
                self._known = dict(json.loads(path.read_bytes()))

    def recall(self, name: str, holds: Callable[[Any], bool], find: Callable[[], Any]) -> Any:
        """What is known under a name, where it still holds; else what `find` finds.

        Args:
            holds: looks whether the files are what they were, by size and time: data sets are too large to be read.
        """
        try:
            if name in self._known and holds(self._known[name]):
                return self._known[name]
        except (OSError, LookupError, TypeError, ValueError, AttributeError):
            pass  # a file is gone, or it is no finding of ours
        found = find()
        if self.path is not None:
            self._known[name], self._new = found, True
        return found

    @staticmethod
    def once(path: Path, write: Callable[[Path], None]) -> None:
        """See that a large file is there, whole: the first process that comes writes it, the others wait."""
        path.parent.mkdir(exist_ok=True)  # not its parents: a run that was deleted must not come back by this
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not path.is_file():
                beside = path.with_name(f".{path.name}.tmp")
                write(beside)
                beside.replace(path)

    @property
    def news(self) -> str | None:
        """The file's text, where something is in it that was not there."""
        return json.dumps(self._known) if self._new else None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Tasks that are made meanwhile ask this index."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


_CURRENT: ContextVar[Index | None] = ContextVar("index", default=None)


def current() -> Index:
    """The one that is used; an empty one where none is."""
    return _CURRENT.get() or Index()


def stamp(path: str | Path) -> list[int]:
    """Size and time of a file."""
    found = Path(path).stat()
    return [found.st_size, found.st_mtime_ns]
