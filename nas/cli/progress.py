"""What a person sees while a stage works: one live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections import deque

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_SECONDS = 10.0  # between lines where there is no terminal


def plain() -> Console:
    """A console that prints text as it is: square brackets in a path are no markup, colons no pictures."""
    return Console(soft_wrap=True, markup=False, highlight=False, emoji=False)


class Screen:
    """A `nas.watch.Watcher` that writes for people."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stage = ""
        self.live: Live | Cell | None = None
        self.began = self.last = 0.0
        self.recent: deque[tuple[float, float]] = deque(maxlen=30)
        self.lock = threading.Lock()

    def begin(self, stage: str, note: str) -> None:
        self.stage, self.began, self.last = stage, time.monotonic(), time.monotonic()
        self.recent.clear()
        if self.console.is_jupyter:
            self.live = Cell()
        elif self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=8, transient=True)
            self.live.start()
        self._put(f"{stage}: {note}", always=True)

    def advance(self, done: float, total: float, note: str, unit: str, seconds: float | None = None) -> None:
        with self.lock:
            self.recent.append((time.monotonic() if seconds is None else seconds, done))
            (first, from_), (now, to) = self.recent[0], self.recent[-1]
            rate = (to - from_) / (now - first) if now > first else 0.0
            told = [clock(60 * part) if unit == "minutes" else f"{part:,.0f}" for part in (done, total)]
            parts = [f"{self.stage}: {'/'.join(told)} {unit} ({100 * done / total:.0f} %)"]
            if rate:  # before the note, whose end a narrow terminal cuts off
                parts += [f"{rate:.3g}/s"] if unit != "minutes" else []
                parts.append(f"eta {clock((total - done) / rate)}")
            if note:
                parts.append(note)
            self._put(" | ".join(parts), always=done >= total)

    def say(self, text: str) -> None:
        self.console.print(text)

    def end(self, note: str) -> None:
        self.stop()
        self.say(f"{self.stage}: {note} [{clock(time.monotonic() - self.began)}]")

    def stop(self) -> None:
        """Take the live line away, whatever happened."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _put(self, text: str, always: bool) -> None:
        if self.live is not None:
            self.live.update(Text(text, overflow="ellipsis", no_wrap=True))
        elif always or time.monotonic() - self.last >= PLAIN_SECONDS:
            self.last = time.monotonic()
            self.say(text)


class Cell:
    """The live line in a notebook: an output of the cell that changes. Rich's own needs ipywidgets for that."""

    def __init__(self) -> None:
        from IPython.display import display

        self.handle = display(self._form(""), raw=True, display_id=True)

    def update(self, text: Text) -> None:
        self.handle.update(self._form(text.plain), raw=True)

    def stop(self) -> None:
        """Take the line away."""
        self.update(Text())

    @staticmethod
    def _form(text: str) -> dict[str, str]:
        return {"text/plain": text}


def clock(seconds: float) -> str:
    """``75`` -> ``1:15``."""
    minutes, rest = divmod(int(round(max(seconds, 0))), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
