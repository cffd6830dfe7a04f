"""A program that ends with the command that has started it, however that ends: also where it is killed hard.

Between the two stands this file, run as a script: it reads from a pipe whose other end the command holds, and nobody
else. What is read is nothing, until the pipe ends, as it does with the command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress

PATIENCE_S = 5.0  # for a program to end in order


def run(command: list[str], environment: Mapping[str, str]) -> int:
    """Run a program to its end. Returns its exit code.

    Args:
        environment: what it has besides that of this process.
    """
    between = [sys.executable, "-m", __name__, *command]
    # no module that lies in the current directory is taken for one of these
    around = {**os.environ, "PYTHONSAFEPATH": "1", **environment}
    tied = subprocess.Popen(between, stdin=subprocess.PIPE, env=around, start_new_session=True)
    try:
        return tied.wait()
    finally:
        assert tied.stdin is not None
        tied.stdin.close()
        tied.wait(2 * PATIENCE_S)


def main(command: list[str]) -> int:
    """Run a program until it ends or standard input does."""
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_input, args=(program,), daemon=True).start()
    code = program.wait()
    _tell(program, signal.SIGKILL)  # whoever is left of those that it has started
    return code


def _end_with_input(program: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1):
        pass
    _tell(program, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        program.wait(PATIENCE_S)
    _tell(program, signal.SIGKILL)


def _tell(program: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """A signal to a program and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(program.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
