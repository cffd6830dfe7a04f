"""A cluster of two machines as far as the network can tell: each node in a namespace with an address of its own, one
cable between them.

One training worker on each node, so that what workers say to each other crosses the cable; MLflow as a server with
PostgreSQL behind it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import nas
from tests.loopback import Loopback, cluster, free_ports
from tests.servers import ADDRESSES, crossed, inside, mlflow_server, networks, no_networks, no_postgres

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]
PATIENCE = 900.0
SHORT = [
    "recipe.epochs=4",
    "recipe.warmup_epochs=1",
    "search.candidates=8",
    "search.window=8",
    "export.children=2",
    "train.cpus_per_worker=1.6",
]
LOOK = """
import sys, json
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
[experiment] = [e for e in client.search_experiments() if e.name == "across"]
runs = client.search_runs([experiment.experiment_id])
print(json.dumps([[r.data.tags["raynas.kind"], r.info.status, r.data.metrics] for r in runs]))
"""


@pytest.fixture(scope="module")
def two(extension: None) -> Iterator[tuple[Loopback, tuple[str, str]]]:
    if why := no_networks():
        pytest.skip(why)
    with networks() as names, cluster(hosts=ADDRESSES, inside=(inside(names[0]), inside(names[1]))) as running:
        yield running, names


def test_a_run_across_a_network_and_a_server_of_mlflow(two: tuple[Loopback, tuple[str, str]], tmp_path: Path) -> None:
    if why := no_postgres():
        pytest.skip(why)
    there, names = two
    web, database = free_ports(2)
    with mlflow_server(names[0], ADDRESSES[0], web, database) as server:
        settings = [*SHORT, "name=across", f"cluster.storage={there.storage}", f"tracking.uri={server}"]
        words = [word for setting in settings for word in ("--set", setting)]
        at, before = ["--address", there.address], crossed(names[0])
        done = there.nas("submit", "bignas-digits", *at, *words, cwd=tmp_path, patience=PATIENCE)
        assert done.returncode == 0 and "across-1 submitted" in done.stdout, done.stdout
        assert "MLflow writes SQLite" not in done.stdout
        logs = there.nas("logs", "across", "--follow", *at, cwd=tmp_path, patience=PATIENCE)
        assert logs.returncode == 0 and "could not be sent" not in logs.stdout, logs.stdout
        found = subprocess.run(
            [*inside(names[0]), sys.executable, "-c", LOOK, server], capture_output=True, text=True, timeout=120
        )
        runs = json.loads(found.stdout.strip().splitlines()[-1])
    assert Counter(kind for kind, _, _ in runs) == {"train": 1, "search": 1, "candidate": 8}
    assert {status for _, status, _ in runs} == {"FINISHED"} and all(metrics for _, _, metrics in runs)
    [kept] = (there.storage / "across" / "supernet").glob("step-*/weights.safetensors")
    steps = int(kept.parent.name.removeprefix("step-"))
    assert crossed(names[0]) - before > steps * kept.stat().st_size / 2, "gradients of each step cross the cable"
    brought = there.nas("fetch", "across", *at, cwd=tmp_path, patience=PATIENCE)
    assert brought.returncode == 0 and "2 children" in brought.stdout, brought.stdout
    for child in (tmp_path / "fetched" / "across" / "children").iterdir():
        assert nas.load_child(child)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
