"""Ray on this machine, started by us: whether it lives, and that nothing is left of it, whatever happened.

Others may run Ray here. Ours are the sessions that this process started, and of those that others have left the ones
with a mark whose owner is dead.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil
import ray._private.worker as ray_worker
from filelock import FileLock, Timeout
from ray._common.utils import get_default_ray_temp_dir

from nas.workers.stopping import RayDied

MARK = "raynas.lock"  # in a session's directory; held by the process that started it
NEEDED = {"gcs_server": "head process (gcs_server)", "raylet": "raylet"}


def check_alive() -> None:
    """Raises: RayDied, where a process that a session of ours needs is dead."""
    node = ray_worker._global_node
    if node is None:
        return
    for kind, name in NEEDED.items():
        for each in node.all_processes.get(kind, []):
            if (code := each.process.poll()) is not None:
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                raise RayDied(f"Ray's {name} has died ({how}); the same command continues")


def keep(logs: Path | None) -> str:
    """Copy what Ray has said to `logs`; returns that as the end of a message."""
    node = ray_worker._global_node
    if node is None or logs is None:
        return ""
    with suppress(OSError, shutil.Error):  # a full disk, say
        shutil.copytree(Path(node.get_session_dir_path()) / "logs", logs, dirs_exist_ok=True)
        return f". Ray's logs are in {logs}"
    return ""


@contextmanager
def swept() -> Iterator[Callable[[], None]]:
    """Whatever is started within is gone afterwards; and before it what killed runs have left.

    Gives a function to call once Ray has started: its session is then known to be ours and alive, to the end of its
    sweeping. Ray takes seconds to shut down, in which others that sweep would take this process for a left one.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray_worker.print_to_stdstream = lambda *_, **__: None  # a page of the raylet's state when that dies
    root = Path(get_default_ray_temp_dir())
    for mark in root.glob(f"session_*/{MARK}"):
        with suppress(Timeout, OSError), FileLock(mark, timeout=0):
            _sweep(mark.parent)
    before = set(root.glob(f"session_*_{os.getpid()}"))  # a container that shares the directory may have our number
    with ExitStack() as held:
        try:
            yield partial(_mark, held)
        finally:
            for session in set(root.glob(f"session_*_{os.getpid()}")) - before:
                _sweep(session)


def _mark(held: ExitStack) -> None:
    node = ray_worker._global_node
    if node is not None and node.head:  # or it is somebody else's cluster
        held.enter_context(FileLock(Path(node.get_session_dir_path()) / MARK))


def _sweep(session: Path) -> None:
    """End every process that still writes into a session's directory, and remove it."""
    left = [process for process in psutil.process_iter() if process.pid != os.getpid() and _writes(process, session)]
    _, stubborn = psutil.wait_procs(left, timeout=1)
    for process in stubborn:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=2)
    shutil.rmtree(session / "logs", ignore_errors=True)  # before the mark: this process may write into one to its end
    shutil.rmtree(session, ignore_errors=True)


def _writes(process: psutil.Process, folder: Path) -> bool:
    try:
        return any(each.mode != "r" and Path(each.path).is_relative_to(folder) for each in process.open_files())
    except psutil.Error:
        return False
