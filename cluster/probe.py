"""What a cluster looks like from inside: sent to its head as a script, it looks at every node and prints one line of
JSON.

It needs Ray and the standard library alone, since a node may lack all the rest, and saying so is its task.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MARK = "RAYNAS-PROBE "
PACKAGES = ("raynas", "torch", "deepspeed", "ray")
SEEN = ".raynas-probe"  # in the storage: what the head writes and every other node must see
NODE_S = 240.0  # for one node's answer, with DeepSpeed's operator built for the first time


def look(storage: str, token: str, experiment: str) -> dict[str, Any]:
    """One node: its versions, whether it sees and may write the shared storage, and whether the data is there."""
    return {"versions": versions(), "storage": storage_problem(storage, token), "doctor": doctor(experiment)}


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def storage_problem(storage: str, token: str) -> str | None:
    """Why a directory is not the one that the head wrote into, or cannot be written; None where all is well."""
    mine = Path(storage) / f"{SEEN}-{token}-{os.getpid()}-{os.uname().nodename}"
    try:
        os.listdir(storage)  # a network file system looks again
        if not (Path(storage) / f"{SEEN}-{token}").exists():
            return "is another directory than on the head: what the head wrote is not there"
        with mine.open("x") as file:
            file.write(token)
            file.flush()
            os.fsync(file.fileno())
        mine.replace(mine.with_name(mine.name + "-renamed"))
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    finally:
        for left in (mine, mine.with_name(mine.name + "-renamed")):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
    return None


def doctor(experiment: str) -> str | None:
    """What `nas doctor EXPERIMENT` misses on this machine; None where it misses nothing."""
    env = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES")} | {
        "COLUMNS": "200"
    }
    command = [sys.executable, "-m", "nas.cli", "doctor", experiment]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=NODE_S)
    except subprocess.TimeoutExpired:
        return f"nas doctor took more than {NODE_S:g} s"
    said = (done.stdout + done.stderr).strip().splitlines()
    return (
        "\n".join(line.strip() for line in said[-12:]) or f"nas doctor ended with code {done.returncode}"
        if done.returncode
        else None
    )


def server_problem(uri: str | None) -> str | None:
    """Why an MLflow server does not answer; None where it does, and where there is none to ask."""
    if not uri or not uri.startswith(("http://", "https://")):
        return None
    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=5).close()
    except (urllib.error.URLError, OSError) as error:
        return str(getattr(error, "reason", error))
    return None


def mirror_problem(uri: str | None, token: str) -> str | None:
    """Why an object store cannot be read and written; None where it can, and where there is none."""
    if not uri:
        return None
    try:
        from pyarrow import fs

        store, base = fs.FileSystem.from_uri(uri)
        path = f"{base}/{SEEN}-{token}"
        with store.open_output_stream(path) as out:
            out.write(token.encode())
        with store.open_input_stream(path) as back:
            found = back.read()
        store.delete_file(path)
        return None if found == token.encode() else "what was written did not come back"
    except Exception as error:  # an address, credentials, the network: whatever it is, is the finding
        return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]


def make_storage(storage: str, token: str) -> str | None:
    """Write from the head what all nodes must see; says why that is not possible."""
    try:
        Path(storage).mkdir(parents=True, exist_ok=True)
        (Path(storage) / f"{SEEN}-{token}").write_text(token)
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return None


def nodes(storage: str, token: str, experiment: str) -> list[dict[str, Any]]:
    """Every node's own answer, or why it gave none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(look).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
            asked[task.remote(storage, token, experiment)] = (
                f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            )
    ray.wait(list(asked), num_returns=len(asked), timeout=NODE_S)
    answers = []
    for answer, name in asked.items():
        try:
            found: Any = ray.get(answer, timeout=1)
            answers.append({"node": name, **found})
        except Exception as error:  # whatever is wrong with this node is the finding
            answers.append({"node": name, "lost": f"{type(error).__name__}: {error}".strip().splitlines()[0]})
    return answers


def main(storage: str, token: str, experiment: str, tracking: str | None, mirror: str | None) -> dict[str, Any]:
    """All that is asked about the cluster."""
    import ray

    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    have = ray.cluster_resources()
    problem = make_storage(storage, token)
    try:
        each = nodes(storage, token, experiment) if problem is None else []
    finally:
        with contextlib.suppress(OSError):
            (Path(storage) / f"{SEEN}-{token}").unlink(missing_ok=True)
    return {
        "cpus": have.get("CPU", 0.0),
        "gpus": have.get("GPU", 0.0),
        "storage": problem,
        "mirror": mirror_problem(mirror, token),
        "tracking": server_problem(tracking or os.environ.get("MLFLOW_TRACKING_URI")),
        "nodes": each,
    }


if __name__ == "__main__":
    sys.stdout.write(MARK + json.dumps(main(**json.loads(sys.argv[1]))) + "\n")
