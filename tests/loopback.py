"""A Ray cluster of two nodes on this machine's loopback: own ports, own short temporary directories, a throw-away
token."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
START_S = 300.0
HOSTS = ("127.0.0.2", "127.0.0.3")  # loopback; Ray would replace 127.0.0.1 by an address of the network card
Inside = tuple[tuple[str, ...], tuple[str, ...]]
FREE_OF = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN_PATH",
    "MLFLOW_TRACKING_URI",
    "RAYNAS_DATA",
    "RAYNAS_DEBUG",
)


@dataclass(frozen=True)
class Loopback:
    """A running cluster.

    Attributes:
        address: of its Jobs server.
        token: what it wants.
        folder: short, and this cluster's own; `storage` lies in it.
        inside: what a command begins with that is to see the cluster's network.
    """

    address: str
    token: str
    folder: Path
    gcs: str
    inside: tuple[str, ...]
    second: list[subprocess.Popen[bytes]]
    start_second: Callable[[], subprocess.Popen[bytes]]

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    def nas(self, *words: str | Path, cwd: Path, patience: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        """A `nas` command of somebody with the token, to its end."""
        return subprocess.run(
            [*self.inside, BIN / "nas", *words],
            cwd=cwd,
            env=environment(self.token, **env),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=patience,
        )

    def drain_second(self, seconds: int) -> None:
        """Notice that the second node will be taken away, as a cloud gives it; Ray then ends it when it is idle."""
        nodes = json.loads(_get(f"{self.address}/api/v0/nodes?detail=1", self.token, self.inside))["data"]["result"][
            "result"
        ]
        [node] = [node["node_id"] for node in nodes if node["state"] == "ALIVE" and not node["is_head_node"]]
        reason = [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "taken away",
            "--deadline-remaining-seconds",
            str(seconds),
        ]
        words = [*self.inside, BIN / "ray", "drain-node", "--address", self.gcs, "--node-id", node, *reason]
        subprocess.run(words, env=environment(self.token), check=True, timeout=60, capture_output=True)

    def replace_second(self) -> None:
        """Another node in the place of the second one."""
        _end(self.second.pop())
        self.second.append(self.start_second())


def environment(token: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in FREE_OF}
    path = f"{BIN}{os.pathsep}{kept['PATH']}"  # jobs say `nas` and `python`
    return {
        **kept,
        "PATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def free_ports(count: int) -> list[int]:
    with_sockets = [socket.socket() for _ in range(count)]
    for each in with_sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in with_sockets]
    for each in with_sockets:
        each.close()
    return ports


@contextmanager
def cluster(
    cpus: int = 3, data: Path | None = None, hosts: tuple[str, str] = HOSTS, inside: Inside = ((), ()), **env: str
) -> Iterator[Loopback]:
    """Two nodes of `cpus` CPUs each; `data` is RAYNAS_DATA on the head alone, and so is what else is given for its
    environment.

    `inside` is what the commands begin with that start each node, for nodes in networks of their own.
    """
    folder, token = Path(tempfile.mkdtemp(prefix="rn-", dir="/tmp")), secrets.token_hex(16)
    here = {**env, **({"RAYNAS_DATA": str(data)} if data else {})}
    gcs, dashboard, client, *rest = free_ports(9)
    common = [
        f"--num-cpus={cpus}",
        "--num-gpus=0",
        "--block",
        "--disable-usage-stats",
        "--object-store-memory=150000000",
    ]
    listens = "127.0.0.1" if hosts == HOSTS else hosts[0]
    head = [
        "--head",
        f"--port={gcs}",
        f"--dashboard-host={listens}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
    ]
    started: list[subprocess.Popen[bytes]] = []
    second: list[subprocess.Popen[bytes]] = []
    address = f"http://{listens}:{dashboard}"

    def start_second() -> subprocess.Popen[bytes]:
        words = [f"--address={hosts[0]}:{gcs}", *common, *_own(folder / f"s{secrets.token_hex(2)}", hosts[1], rest[3:])]
        process = _start([*inside[1]], words, folder / "second.log", environment(token))
        _await(lambda: _alive_nodes(address, token, inside[0]) == 2, process, folder / "second.log")
        return process

    try:
        started.append(
            _start(
                [*inside[0]],
                [*head, *common, *_own(folder / "h", hosts[0], rest[:3])],
                folder / "head.log",
                environment(token, **here),
            )
        )
        _await(lambda: _answers(f"{address}/api/version", token, inside[0]), started[0], folder / "head.log")
        second.append(start_second())
        yield Loopback(address, token, folder, f"{hosts[0]}:{gcs}", inside[0], second, start_second)
    finally:
        for process in (*second, *started):
            _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _own(folder: Path, host: str, ports: list[int]) -> list[str]:
    """What two nodes on one machine must not share: with one directory, one node deletes working directories that
    the other uses."""
    agent = [
        f"--dashboard-agent-listen-port={ports[0]}",
        f"--dashboard-agent-grpc-port={ports[1]}",
        f"--metrics-export-port={ports[2]}",
    ]
    return [*agent, f"--temp-dir={folder}", f"--node-ip-address={host}"]


def _start(inside: list[str], words: list[str], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            [*inside, BIN / "ray", "start", *words],
            cwd=log.parent,
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await(ready: object, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while not ready():  # type: ignore[operator]
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"ray start did not come up; it said:\n{log.read_text()[-2000:]}")
        time.sleep(0.3)


def _get(url: str, token: str, inside: tuple[str, ...] = ()) -> bytes:
    """The answer to a GET, asked from within the cluster's network."""
    if inside:
        done = subprocess.run(
            [*inside, "curl", "-sf", "-m", "5", "-H", f"Authorization: Bearer {token}", url], capture_output=True
        )
        if done.returncode:
            raise OSError(f"curl ended with code {done.returncode}")
        return done.stdout
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return bytes(answer.read())


def _answers(url: str, token: str, inside: tuple[str, ...]) -> bool:
    with suppress(urllib.error.URLError, OSError):
        return bool(_get(url, token, inside))
    return False


def _alive_nodes(address: str, token: str, inside: tuple[str, ...]) -> int:
    with suppress(urllib.error.URLError, OSError):
        return _get(
            f"{address}/api/v0/nodes?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE", token, inside
        ).count(b'"node_id"')
    return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to `ray start --block`, which ends its own; then SIGKILL to those of them that are left."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        _, left = psutil.wait_procs(family, timeout=5)
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.kill()
    process.wait(10)
