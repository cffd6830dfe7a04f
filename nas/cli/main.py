"""The entry point: signals are ours before anything is imported that takes time."""

from __future__ import annotations

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = "stopped; the same command continues"


def main() -> None:
    """A command from its first moment on. Whenever SIGINT or SIGTERM comes, it ends with one line."""
    for number in SIGNALS:
        signal.signal(number, _heard)
    try:
        from nas.cli import commands

        commands.main()
    except KeyboardInterrupt:
        _end()


def _heard(number: int, frame: FrameType | None) -> None:
    """A signal that no run has taken yet: an import would swallow an exception, or make another of it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end()
        frame = frame.f_back
    raise KeyboardInterrupt


def _end() -> None:
    os.write(1, f"{STOPPED}\n".encode())
    os._exit(130)
