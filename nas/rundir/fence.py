"""Who may write into a run: only its newest attempt. Standard library alone."""

from __future__ import annotations

from pathlib import Path

from nas.rundir.atomic import Damaged, write_atomic

STOP = "stop"


class Fenced(RuntimeError):
    """A newer attempt owns the run; this writer must stop."""


class Gone(RuntimeError):
    """The run directory is not there any more."""


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
        fence.attempt = (fence.current() if fence.path.exists() else 0) + 1
        write_atomic(fence.path, str(fence.attempt))
        return fence

    def current(self) -> int:
        """The newest attempt's number.

        Raises:
            Gone: the run directory was deleted or unmounted.
            Damaged: the file does not hold a number.
        """
        return int(self._words()[0])

    def ask_to_stop(self) -> None:
        """Ask all who work for this attempt to save and end."""
        if self.current() == self.attempt:
            write_atomic(self.path, f"{self.attempt} {STOP}")

    def stopping(self) -> bool:
        """Whether those who work for this attempt shall save and end; raises as `current` does."""
        return self._words() == [str(self.attempt), STOP]

    def check(self) -> None:
        """Raises: Fenced, where a newer attempt has begun; what `current` raises."""
        if self.current() != self.attempt:
            raise Fenced(f"attempt {self.attempt} at {self.path.parent} is over: attempt {self.current()} has begun")

    def _words(self) -> list[str]:
        try:
            text = self.path.read_text(errors="replace")
        except FileNotFoundError:
            raise Gone(
                f"{self.path.parent} is gone: it was deleted, moved or unmounted while it was worked in; put it back, "
                "and the same command continues"
            ) from None
        words = text.split()
        if not words or not words[0].isdecimal():
            raise Damaged(
                f"{self.path} is damaged: it holds {text[:40]!r} where the number of the run's newest attempt belongs; "
                "write that number there, which is in the last line of history.jsonl, and the same command continues"
            )
        return words
