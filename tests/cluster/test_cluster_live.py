"""Runs submitted to a real cluster of two nodes on loopback, with a token: followed, stopped, continued, fetched; and
what is refused.

The commands are a user's own, in a directory that has nothing in it. One cluster serves all tests of this file.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

import nas
from cluster import fetch as fetching
from cluster.client import connect
from cluster.jobs import found
from tests.loopback import BIN, Loopback, cluster, free_ports

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
PATIENCE = 500.0
PAGE = Path(__file__).parent.parent.parent / "docs" / "cluster.md"
EPOCHS = 16  # long enough for a command to come between
STEPS = EPOCHS * 18
SHORT = [
    f"recipe.epochs={EPOCHS}",
    "recipe.warmup_epochs=1",
    "search.candidates=8",
    "search.window=8",
    "export.children=2",
]


@pytest.fixture(scope="module")
def loopback(extension: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    data = tmp_path_factory.mktemp("data")
    for part in ("train", "test"):
        for label in ("a", "b"):
            (data / "pictures" / part / label).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(data / "pictures" / part / label / "1.png")
    with cluster(data=data, AWS_ACCESS_KEY_ID="somebody", AWS_SECRET_ACCESS_KEY="not a secret here") as running:
        yield running


@pytest.fixture(scope="module")
def whole(loopback: Loopback, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed, submitted and followed to its end."""
    here = tmp_path_factory.mktemp("empty")
    said = submit(loopback, here, "whole")
    assert "2 nodes, 6 CPUs" in said and "whole-1 submitted" in said
    again = submit(loopback, here, "whole")
    assert "whole-1 is running already" in again or "whole-1 is pending already" in again
    logs = loopback.nas("logs", "whole", "--follow", "--address", loopback.address, cwd=here, patience=PATIENCE)
    assert logs.returncode == 0, logs.stdout
    assert f"{STEPS} steps" in logs.stdout and "2 children" in logs.stdout
    assert loopback.token not in logs.stdout
    return loopback.storage / "whole"


def submit(loopback: Loopback, here: Path, name: str, *more: str) -> str:
    words = [
        word
        for setting in [*SHORT, f"name={name}", f"cluster.storage={loopback.storage}", *more]
        for word in ("--set", setting)
    ]
    done = loopback.nas("submit", "bignas-digits", "--address", loopback.address, *words, cwd=here, patience=PATIENCE)
    assert done.returncode == 0, done.stdout
    return done.stdout


def weights(run: Path) -> str:
    """The sha256 of the trained supernet."""
    manifest = json.loads((run / "supernet" / f"step-{STEPS:08d}" / "manifest.json").read_text())
    return str(manifest["files"]["weights.safetensors"]["sha256"])


def wait_for(found: object, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not found():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


# --- what is refused, before anything is started


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.use_gpu=true"], "0 GPUs and the run asks for 2"),
        (["cluster.storage=/proc/nowhere"], "cluster.storage /proc/nowhere cannot be written"),
        (["data={name: folder, path: pictures, size: 8, validation: 2}"], "127.0.0.3"),
        (["tracking.uri=http://127.0.0.1:9"], "MLflow at http://127.0.0.1:9 does not answer the head"),
    ],
)
def test_what_the_cluster_lacks_is_told_first(
    loopback: Loopback, tmp_path: Path, settings: list[str], says: str
) -> None:
    words = [
        word
        for setting in [f"cluster.storage={loopback.storage}", "name=refused", *settings]
        for word in ("--set", setting)
    ]
    done = loopback.nas(
        "submit", "bignas-digits", "--address", loopback.address, *words, cwd=tmp_path, patience=PATIENCE
    )
    assert done.returncode == 1 and "nothing was submitted" in done.stdout and says in done.stdout, done.stdout
    assert len(done.stdout.splitlines()) <= 24, done.stdout
    assert "refused" not in loopback.nas("jobs", "--address", loopback.address, cwd=tmp_path).stdout
    assert not (loopback.storage / "refused").exists()


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 32}, "wants another token"),
        ({"RAY_AUTH_MODE": "disabled"}, "wants a token, and none was found"),
    ],
)
def test_no_entry_without_the_token(loopback: Loopback, tmp_path: Path, env: dict[str, str], says: str) -> None:
    words = ["--set", f"cluster.storage={loopback.storage}"]
    done = loopback.nas("submit", "bignas-digits", "--address", loopback.address, *words, cwd=tmp_path, **env)
    assert done.returncode == 1 and says in done.stdout and "RAY_AUTH_TOKEN" in done.stdout
    assert loopback.token not in done.stdout and len(done.stdout.splitlines()) < 10


def test_another_address_is_not_taken_from_the_environment(loopback: Loopback, tmp_path: Path) -> None:
    env = {"RAY_ADDRESS": "http://127.0.0.1:9", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
    assert loopback.nas("jobs", "--address", loopback.address, cwd=tmp_path, **env).returncode == 0
    assert "no Ray cluster answers" in loopback.nas("jobs", cwd=tmp_path, **env).stdout


# --- what works


def test_the_page_holds_line_by_line(loopback: Loopback, tmp_path: Path) -> None:
    """Every command of docs/cluster.md's first section of work, on this cluster, with a shorter training."""
    block = PAGE.read_text().partition("## Submit, follow, stop, fetch\n")[2].partition("\n\nA job is")[0]
    lines = block.partition("```bash cluster\n")[2].partition("```")[0].splitlines()
    assert [line.split()[1] for line in lines if line.startswith("nas ")] == [
        "submit",
        "jobs",
        "status",
        "logs",
        "stop",
        "submit",
        "fetch",
    ]
    env, said = {}, {}
    for number, line in enumerate(lines):
        here = line.replace("http://127.0.0.1:8265", loopback.address).replace(
            "/tmp/shared-runs", str(loopback.storage)
        )
        program, *words = shlex.split(here, comments=True)
        if program == "export":
            env |= dict([words[0].split("=", 1)])
        elif program == "nas":
            short = [word for setting in SHORT[:2] for word in ("--set", setting)] if words[0] == "submit" else []
            done = loopback.nas(*words, *short, cwd=tmp_path, patience=PATIENCE, **env)
            assert done.returncode == 0, f"{line}\n{done.stdout}"
            said[number, words[0]] = done.stdout
    told = "\n".join(said.values())
    assert "bignas-digits-1 submitted" in told and "40 candidates" in told and "bignas-digits-2 submitted" in told
    assert list((tmp_path / "fetched" / "bignas-digits" / "children").iterdir())
    loopback.nas("stop", "bignas-digits-2", cwd=tmp_path, patience=PATIENCE, **env)


def test_a_run_is_fetched_and_its_children_load(
    loopback: Loopback, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = loopback.nas("fetch", "whole", "--address", loopback.address, cwd=tmp_path)
    assert done.returncode == 0 and "2 children" in done.stdout, done.stdout
    here = tmp_path / "fetched" / "whole"
    children = sorted(path for path in (here / "children").iterdir())
    for child in children:
        assert nas.load_child(child)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    monkeypatch.setenv("RAY_AUTH_TOKEN", loopback.token)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(fetching, "mounted", lambda job: False)  # as on a machine without the shared directory
    there = connect(loopback.address)
    for _ in range(2):  # the second replaces the first
        came = fetching.fetch(there, found(there, "whole"), tmp_path / "streamed")
    assert came.children == [child.name for child in children] and loopback.address in came.through
    for path in here.rglob("*"):
        assert path.is_dir() or (tmp_path / "streamed" / path.relative_to(here)).read_bytes() == path.read_bytes()


def test_a_stopped_run_continues_to_the_same_weights(loopback: Loopback, whole: Path, tmp_path: Path) -> None:
    at, run = ["--address", loopback.address], loopback.storage / "stopped"
    submit(loopback, tmp_path, "stopped")
    metrics = run / "train" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size)
    done = loopback.nas("stop", "stopped", *at, cwd=tmp_path, patience=PATIENCE)
    assert "stopped-1: STOPPED" in done.stdout, done.stdout
    kept = max((run / "supernet").glob("step-*"))
    assert 0 < int(kept.name.removeprefix("step-")) < STEPS and (kept / "manifest.json").is_file()
    logs = loopback.nas("logs", "stopped-1", *at, cwd=tmp_path).stdout
    assert "SIGTERM: saving and ending" in logs and "the same command continues" in logs
    assert "stopped-2 submitted" in submit(loopback, tmp_path, "stopped")
    wait_for(lambda: (run / "supernet" / f"step-{STEPS:08d}").exists())
    assert weights(run) == weights(whole)
    assert "stopped-2: STOPPED" in loopback.nas("stop", "stopped-2", *at, cwd=tmp_path, patience=PATIENCE).stdout
    jobs = loopback.nas("jobs", *at, cwd=tmp_path).stdout
    assert "stopped-1" in jobs and "stopped-2" in jobs and "whole-1" in jobs


@pytest.fixture
def bucket() -> Iterator[str]:
    """A bucket in a server that speaks S3."""
    server = shutil.which("moto_server", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if server is None:
        pytest.skip("moto_server is not installed: pip install 'moto[s3]' flask flask-cors")
    [port] = free_ports(1)
    process = subprocess.Popen(
        [server, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: reachable(f"http://127.0.0.1:{port}"), 60)
        urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT"), timeout=20
        ).close()
        yield f"s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    finally:
        process.kill()
        process.wait()


def reachable(url: str) -> bool:
    with suppress(OSError):
        urllib.request.urlopen(url, timeout=5).close()
        return True
    return False


def test_a_run_whose_directory_is_lost_continues_from_its_mirror(
    loopback: Loopback, whole: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, run, mirror = ["--address", loopback.address], loopback.storage / "mirrored", f"cluster.mirror={bucket}"
    submit(loopback, tmp_path, "mirrored", mirror)
    metrics = run / "train" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size)
    assert "mirrored-1: STOPPED" in loopback.nas("stop", "mirrored", *at, cwd=tmp_path, patience=PATIENCE).stdout
    kept = max((run / "supernet").glob("step-*"))
    shutil.rmtree(run)
    assert "mirrored-2 submitted" in submit(loopback, tmp_path, "mirrored", mirror)
    wait_for(lambda: (run / "supernet" / f"step-{STEPS:08d}").exists())
    assert (
        f"restored from {bucket.replace('/runs', '/runs/mirrored')}"
        in loopback.nas("logs", "mirrored-2", *at, cwd=tmp_path).stdout
    )
    assert json.loads(metrics.read_text().splitlines()[0])["step"] < int(kept.name.removeprefix("step-")), (
        "its history came back too"
    )
    assert weights(run) == weights(whole)
    assert "mirrored-2: STOPPED" in loopback.nas("stop", "mirrored-2", *at, cwd=tmp_path, patience=PATIENCE).stdout
    came = loopback.nas(
        "fetch",
        bucket.replace("/runs", "/runs/mirrored"),
        cwd=tmp_path,
        AWS_ACCESS_KEY_ID="x",
        AWS_SECRET_ACCESS_KEY="x",
    )
    assert came.returncode == 0, came.stdout
    assert weights(tmp_path / "fetched" / "mirrored") == weights(whole)


def test_a_node_that_is_taken_away_costs_nothing_but_time(loopback: Loopback, whole: Path, tmp_path: Path) -> None:
    """One worker on each node; the second has notice of its end, the workers save and return, and go on when another
    node has come."""
    run = loopback.storage / "drained"
    submit(loopback, tmp_path, "drained", "train.cpus_per_worker=1.6")
    metrics = run / "train" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size)
    loopback.drain_second(120)
    wait_for(lambda: '"preemption"' in metrics.read_text())
    wait_for(lambda: list((run / "supernet").glob("step-*")))
    kept = max((run / "supernet").glob("step-*"))
    assert 0 < int(kept.name.removeprefix("step-")) < STEPS
    loopback.replace_second()
    wait_for(lambda: (run / "supernet" / f"step-{STEPS:08d}").exists())
    assert weights(run) == weights(whole)
    assert (
        "drained-1: STOPPED"
        in loopback.nas("stop", "drained", "--address", loopback.address, cwd=tmp_path, patience=PATIENCE).stdout
    )
