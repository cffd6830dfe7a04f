"""Ending in order: the first SIGINT or SIGTERM asks a run to save and end, a second one ends it at once.

`ray job stop`, Kubernetes and batch systems send SIGTERM and kill some time later; a person sends SIGINT.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from nas.rundir.fence import Fence

SIGNALS = (signal.SIGINT, signal.SIGTERM)
CHECK_S = 0.5
ECHO_S = (
    1.0  # a signal that comes again so soon is the same one: coreutils' timeout sends it to the process and its group
)


class RayDied(RuntimeError):
    """A process that Ray cannot do without has died."""


class Stopped(Exception):
    """The run is asked to end."""


class StopAsked:
    """Between two steps of a worker's training: whether the run is asked to end, looked at once a second."""

    def __init__(self, fence: Fence) -> None:
        self.fence, self.asked = fence, time.monotonic()

    def __call__(self, step: int) -> None:
        """Raises: Stopped."""
        if time.monotonic() - self.asked > 1:
            self.asked = time.monotonic()
            if self.fence.stopping():
                raise Stopped


class Stopper:
    """Whether this attempt at a run has been asked to end.

    The workers, on whichever machine, read it from the fence; the driver has it from here.
    """

    def __init__(self, fence: Fence, say: Callable[[str], None]) -> None:
        self.fence, self.say, self.asked, self.signalled = fence, say, threading.Event(), 0.0

    def check(self) -> None:
        """Raises: KeyboardInterrupt, where the run has been asked to end."""
        if self.asked.is_set():
            raise KeyboardInterrupt

    def ask(self, why: str) -> None:
        """Ask the run to save and end; from any thread, and told once."""
        if not self.asked.is_set():
            self.fence.ask_to_stop()
            self.asked.set()
            self.say(why)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signalled:
            if now - self.signalled < ECHO_S:
                return
            raise KeyboardInterrupt
        self.signalled = now  # whatever else has asked before, the first signal leaves the time to save
        self.ask(f"{signal.Signals(number).name}: saving and ending; once more ends at once")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals while the context is open."""
        before = {number: signal.signal(number, self._heard) for number in SIGNALS} if _main() else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def watching(leaving: Callable[[], bool], then: Callable[[], None], every_s: float = 2.0) -> Iterator[None]:
    """Call `then` once, from a thread, when `leaving` says so while the context is open."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            with suppress(Exception):  # a head that does not answer now is asked again
                if leaving():
                    then()
                    over.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)


def off_main_thread(work: Callable[[], Any], check: Callable[[], None]) -> Any:
    """Do `work` in a thread of its own and wait for it: Ray Train and Tune take SIGINT for themselves only in the
    main thread.

    Args:
        check: what it raises ends the waiting, and comes before what became of the work, which is its consequence.
    """
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return wait_for(done, check)


def wait_for(done: Future[Any], check: Callable[[], None]) -> Any:
    """The result of `done`, while `check` raises nothing; it is asked twice a second and at the end."""
    while True:
        over = wait([done], CHECK_S).done
        check()
        if over:
            return done.result()


def _main() -> bool:
    return threading.current_thread() is threading.main_thread()
