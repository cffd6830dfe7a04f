"""Runs that are killed again and again, for an hour: what was killed, whether it came back, and whether anything grows.

    python -m tests.benchmarks.soak --minutes 60 --every 120

One bounded run of bignas-digits is left alone first. Then the same one is made over and over: every `--every` seconds
one of its processes, drawn by a seed, gets a `kill -9`: the command, a training worker or search trial, Ray's raylet or
its head. A command that ended is given again; a run that is done is compared with the undisturbed one, bit for bit, and
the next begins. Writes build/soak.jsonl, a line a kill, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from ray._common.utils import get_default_ray_temp_dir

from nas.rundir import atomic
from tests.driving import records, sets, start, supernet

SETTINGS = ["recipe.epochs=20", "train.checkpoint_every=20", "search.candidates=100", "search.window=16"]
WORDS = ["run", "bignas-digits", *sets([*SETTINGS, "export.children=2", "export.onnx=false"])]
VICTIMS = {  # what stands in their command lines
    "worker": ("RayTrainWorker",),
    "trial": ("Scored", "ResourceTrainable"),  # idle, and at work
    "raylet": ("raylet/raylet",),
    "head": ("gcs_server",),
}


@dataclass
class Kill:
    """One kill, and what the machine held at that moment.

    Attributes:
        victim: what was killed.
        run: the number of the run.
        at_s: since the beginning.
        back_s: until the run wrote something new; None: not before the next kill.
        memory_mb: of the command's process, resident.
        handles: files that it has open.
        store_mb: shared memory in use on this machine.
        sessions: directories of Ray's sessions.
        disk_mb: of the run's directory.
    """

    victim: str
    run: int
    at_s: float
    back_s: float | None
    memory_mb: float
    handles: int
    store_mb: float
    sessions: int
    disk_mb: float


def outcome(run: Path) -> tuple[object, ...]:
    """What must not depend on what happened on the way."""
    lines = [{**record, "seconds": 0} for _, record in sorted(records(run).items())]
    children = {child.name: atomic.verify(child)["files"] for child in (run / "children").iterdir()}
    weights = {name: files["model.safetensors"]["sha256"] for name, files in children.items()}
    return supernet(run), lines, weights


def written(run: Path) -> int:
    """Bytes of what a run has done so far: grows whenever it gets on."""
    files = [*run.glob("train/metrics.jsonl"), *run.glob("search/*.jsonl"), *run.glob("children/*/*")]
    total = 0
    for path in files:
        with suppress(OSError):
            total += path.stat().st_size
    return total


class Worked:
    """The command, given again whenever it has ended before its time."""

    def __init__(self, home: Path) -> None:
        self.home, self.commands = home, 0
        home.mkdir(parents=True)
        self.again()

    def again(self) -> None:
        self.commands += 1
        self.process = start(*WORDS, cwd=self.home, log=self.home / f"said-{self.commands}.txt")
        self.driver = psutil.Process(self.process.pid)

    @property
    def run(self) -> Path:
        return self.home / "runs" / "bignas-digits"

    def processes(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return [self.driver, *self.driver.children(recursive=True)]
        return []

    def victims(self) -> dict[str, list[psutil.Process]]:
        """Who could be killed now, by what it is."""
        found: dict[str, list[psutil.Process]] = {}
        for process in self.processes():
            with suppress(psutil.Error):
                title = " ".join(process.cmdline())
                kind = "command" if process == self.driver else _kind(title)
                if kind:
                    found.setdefault(kind, []).append(process)
        return found

    def done(self) -> bool:
        """Whether the run is over; a command that ended otherwise is given again."""
        code = self.process.poll()
        if code == 0:
            return True
        if code is not None:
            self.again()
        return False


def _kind(title: str) -> str:
    return next((kind for kind, words in VICTIMS.items() if any(word in title for word in words)), "")


def held(worked: Worked) -> dict[str, float]:
    root = Path(get_default_ray_temp_dir())
    disk = 0
    for path in worked.run.rglob("*"):
        with suppress(OSError):
            disk += path.stat().st_size
    memory, handles = 0.0, 0
    with suppress(psutil.Error):
        memory, handles = worked.driver.memory_info().rss / 1e6, worked.driver.num_fds()
    store = shutil.disk_usage("/dev/shm").used / 1e6
    sessions = len(list(root.glob("session_2*")))
    return {"memory_mb": memory, "handles": handles, "store_mb": store, "sessions": sessions, "disk_mb": disk / 1e6}


def kills(home: Path, minutes: float, every: float, seed: int, wanted: tuple[object, ...]) -> Iterator[Kill | str]:
    """Each kill as it comes back or does not, and a word on each run that is done."""
    rng, began, number = np.random.default_rng(seed), time.monotonic(), 0
    worked, due, open_ = Worked(home / "0"), began + every, None
    seen = 0
    while time.monotonic() < began + 60 * minutes:
        time.sleep(0.2)
        if open_ is not None and written(worked.run) > seen:
            open_.back_s = time.monotonic() - began - open_.at_s
            yield open_
            open_ = None
        if worked.done():
            same = outcome(worked.run) == wanted
            yield f"run {number}: {worked.commands} commands, {'equal' if same else 'NOT EQUAL'}"
            shutil.rmtree(worked.home)
            number += 1
            worked = Worked(home / str(number))
        if time.monotonic() > due and (found := worked.victims()):
            due = time.monotonic() + every
            if open_ is not None:
                yield open_
            kind = str(rng.choice(sorted(found)))
            seen, facts = written(worked.run), held(worked)
            open_ = Kill(kind, number, time.monotonic() - began, None, **facts)  # type: ignore[arg-type]
            with suppress(psutil.Error):
                found[kind][int(rng.integers(len(found[kind])))].kill()
    for process in worked.processes():
        with suppress(psutil.Error):
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=120, help="seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, default=Path("build/soak"))
    options = parser.parse_args()
    shutil.rmtree(options.home, ignore_errors=True)
    alone = Worked(options.home / "alone")
    assert alone.process.wait() == 0, (alone.home / "said-1.txt").read_text()
    wanted = outcome(alone.run)
    print(
        f"{'victim':10} {'run':>4} {'at s':>6} {'back s':>7} {'MB':>6} {'files':>6} {'store':>6} {'Ray':>4} {'disk':>6}"
    )
    with (options.home.parent / "soak.jsonl").open("w") as file:
        for each in kills(options.home.absolute(), options.minutes, options.every, options.seed, wanted):
            file.write(json.dumps(each if isinstance(each, str) else asdict(each)) + "\n")
            file.flush()
            if isinstance(each, str):
                print(each, flush=True)
                continue
            back = "-" if each.back_s is None else f"{each.back_s:.0f}"
            print(
                f"{each.victim:10} {each.run:4} {each.at_s:6.0f} {back:>7} {each.memory_mb:6.0f} {each.handles:6} "
                f"{each.store_mb:6.0f} {each.sessions:4} {each.disk_mb:6.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
