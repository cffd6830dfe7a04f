"""The server of `nas ui` ends with the command, however that ends: real processes, real signals."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

from tests.cli.test_soon import OLD_RUN
from tests.driving import environment, start

# a program that does not end at SIGTERM, and one that it has started
STUBBORN = """
import signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready", inner.pid, flush=True)
time.sleep(600)
"""
# signals as a terminal's: whoever runs tests in the background has had SIGINT and SIGHUP ignored
HOLDER = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    "from nas.cli import tied; tied.run([sys.executable, '-c', sys.argv[1]], {'TIED': 'yes'})"
)

pytestmark = pytest.mark.timeout(300)


def gone(pids: list[int], seconds: float = 30.0) -> bool:
    """Whether all have ended within some seconds; a zombie has."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if alive(pid)]:
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.1)
    return True


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_tied_program_ends_with_the_one_that_runs_it(number: signal.Signals) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, STUBBORN], stdout=subprocess.PIPE, env=environment())
    assert holder.stdout is not None and holder.stdout.readline().startswith(b"ready")
    tied = psutil.Process(holder.pid).children(recursive=True)
    assert len(tied) == 3  # what stands between, the program, and what that has started
    assert tied[1].environ()["TIED"] == "yes"
    holder.send_signal(number)
    assert holder.wait(30) and gone([each.pid for each in tied])
    holder.stdout.close()


def test_it_gives_the_exit_code_and_leaves_nothing_of_a_program_that_ends_by_itself() -> None:
    ends = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); sys.exit(7)"
    holder = HOLDER.replace("tied.run", "sys.exit(tied.run") + ")"
    told = subprocess.run([sys.executable, "-c", holder, ends], stdout=subprocess.PIPE, env=environment(), check=False)
    assert told.returncode == 7 and gone([int(told.stdout)])


def test_no_module_of_the_current_directory_is_taken_for_one_of_a_library(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    code = HOLDER.replace("tied.run", "sys.exit(tied.run") + ")"
    words = [sys.executable, "-P", "-c", code, "import json; print(json.dumps(1))"]
    told = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False)
    assert (told.returncode, told.stdout) == (0, "1\n"), told.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_server_of_the_comparison_ends_with_the_command(number: signal.Signals, tmp_path: Path) -> None:
    shutil.copytree(OLD_RUN, tmp_path / "runs" / "done")
    with socket.create_server(("127.0.0.1", 0)) as some:
        port = some.getsockname()[1]
    command = start("ui", "runs/done", "--port", str(port), cwd=tmp_path, log=tmp_path / "said")
    try:
        wait_for_health(port, command)
        server = [each.pid for each in psutil.Process(command.pid).children(recursive=True)]
        os.kill(command.pid, number)
        assert command.wait(30) and gone(server)
    finally:
        if command.poll() is None:
            command.kill()
    assert "Traceback" not in (tmp_path / "said").read_text()
    with pytest.raises(URLError):
        urlopen(f"http://127.0.0.1:{port}/health", timeout=5)


def wait_for_health(port: int, command: subprocess.Popen[bytes]) -> None:
    for _ in range(400):
        assert command.poll() is None
        try:
            urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server does not answer")
