"""Who may write into a run: only its newest attempt. Standard library alone."""

from __future__ import annotations

from pathlib import Path

from nas.rundir.atomic import write_atomic

STOP = "stop"


class Fenced(RuntimeError):
    """A newer attempt owns the run; this writer must stop."""


class Fence:
    """Lets only the newest attempt at a run write into it.

    The driver takes a number by `Fence.take`; every writer holds it and asks `check` before it makes anything visible.
    The driver asks all of them to end by a word behind the number: a file that is there already is looked at anew by a
    network file system when it is opened, while one that was not there may stay unseen for a minute.

    Args:
        run: the run's directory.
        attempt: the number that its driver took.
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
        """The newest attempt's number; 0 before the first."""
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
