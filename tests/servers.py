"""What tests start for themselves: two networks with a cable between them; PostgreSQL with an MLflow server before
it."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
POSTGRES = next(
    (path for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True) if (path / "initdb").exists()),
    None,
)


def no_networks() -> str | None:
    """Why this machine cannot make networks of its own; None where it can."""
    if shutil.which("ip") is None:
        return "no `ip`: apt-get install iproute2"
    name = f"rn-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode == 0:
        made = subprocess.run(
            ["ip", "netns", "exec", name, "ip", "link", "set", "lo", "up"], capture_output=True, text=True
        )
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return f"no network namespaces here (root?): {made.stderr.strip()}" if made.returncode else None


@contextmanager
def networks() -> Iterator[tuple[str, str]]:
    """The names of two network namespaces with `ADDRESSES`, and nothing else in reach."""
    mark = secrets.token_hex(3)
    names = (f"rn-a-{mark}", f"rn-b-{mark}")
    try:
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            hosts = (
                Path("/etc/netns") / name / "hosts"
            )  # what commands in there see as /etc/hosts: its own name is its own address
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def inside(network: str) -> tuple[str, ...]:
    """What a command begins with that runs in a network."""
    return ("ip", "netns", "exec", network)


def crossed(network: str) -> int:
    """Bytes that came into a network over its cable."""
    text = _ip("netns", "exec", network, "cat", "/sys/class/net/cable/statistics/rx_bytes")
    return int(text)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def no_postgres() -> str | None:
    """Why there can be no MLflow server with PostgreSQL; None where there can."""
    if POSTGRES is None:
        return "no PostgreSQL: apt-get install postgresql"
    if importlib.util.find_spec("psycopg2") is None:
        return "no psycopg2: pip install psycopg2-binary"
    return None


@contextmanager
def mlflow_server(network: str, address: str, port: int, database: int) -> Iterator[str]:
    """The address of an MLflow server in a network, its runs in a PostgreSQL of its own."""
    assert POSTGRES is not None
    folder, started = Path(tempfile.mkdtemp(prefix="rn-", dir="/tmp")), list[subprocess.Popen[bytes]]()
    data = folder / "pg"
    data.mkdir(mode=0o700)
    as_user: list[str] = []
    if os.geteuid() == 0:  # which PostgreSQL refuses to be
        shutil.chown(data, "postgres", "postgres")
        folder.chmod(0o711)
        as_user = ["runuser", "-u", "postgres", "--"]
    subprocess.run(
        [*as_user, POSTGRES / "initdb", "-D", data, "-U", "raynas", "--auth=trust", "--no-sync"],
        check=True,
        capture_output=True,
        cwd="/",
    )
    try:
        run = [
            *inside(network),
            *as_user,
            str(POSTGRES / "postgres"),
            "-D",
            str(data),
            "-k",
            "",
            "-h",
            "127.0.0.1",
            "-p",
            str(database),
        ]
        started.append(_start(run, folder / "postgres.log"))
        ready = [*inside(network), str(POSTGRES / "pg_isready"), "-h", "127.0.0.1", "-p", str(database)]
        _await(lambda: subprocess.run(ready, capture_output=True).returncode == 0, started[-1], folder / "postgres.log")
        store = f"postgresql+psycopg2://raynas@127.0.0.1:{database}/postgres"
        serve = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            store,
            "--artifacts-destination",
            str(folder / "artifacts"),
        ]
        started.append(
            _start(
                [*inside(network), *serve, "--host", address, "--port", str(port), "--workers", "1"],
                folder / "mlflow.log",
            )
        )
        health = ["curl", "-sf", f"http://{address}:{port}/health"]
        _await(
            lambda: subprocess.run([*inside(network), *health], capture_output=True).returncode == 0,
            started[-1],
            folder / "mlflow.log",
        )
        yield f"http://{address}:{port}"
    finally:
        for process in reversed(started):
            process.terminate()  # each is its own session's leader, and ends its children
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")} | {
        "MLFLOW_DISABLE_TELEMETRY": "true"
    }
    with log.open("wb") as out:
        return subprocess.Popen(words, cwd="/", env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def _await(ready: object, process: subprocess.Popen[bytes], log: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{log.stem} did not come up; it said:\n{log.read_text()[-2000:]}")
        time.sleep(0.5)
