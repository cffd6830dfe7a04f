"""Checkpoints written by a thread, while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Saving:
    """One piece of writing at a time. What it raises, the next call raises here."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._writing: Future[None] | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """Write in the background, once what was begun before is done."""
        self.wait()
        self._writing = self._pool.submit(write)

    def check(self) -> None:
        """Raise what the writing has raised, if it is over; does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
