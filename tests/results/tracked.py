"""What tests of tracking share: a run whose lines are written by hand, and what MLflow has of it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nas.results.tracking import Tracker
from nas.rundir.directory import RunDir
from nas.search.journal import Journal, Record
from nas.space import Choice, Space

SUPERNET = "5a" * 32
SPACE = Space([Choice("width", tuple(range(8, 200))), Choice("odd [name]", (1, 2))])


def train(run: Path, steps: range) -> None:
    with open(run / "train" / "metrics.jsonl", "a") as file:
        for step in steps:
            line = {"step": step, "total": 100, "epoch": step / 10, "seconds": 0.1 * step, "lr": 0.4}
            file.write(json.dumps({**line, "loss": {"largest": 2.0 - step / 100, "random": float("nan")}}) + "\n")
        file.write(json.dumps({"step": steps[-1], "panel": {"smallest": {"accuracy": 50.0 + steps[-1]}}}) + "\n")


def search(run: Path, ks: range) -> list[Record]:
    """Candidates `ks` judged; each eighth fails."""
    records = []
    with Journal(run / "search" / "journal-5a5a5a5a.jsonl", {"supernet": SUPERNET}) as journal:
        for k in ks:
            rng = np.random.default_rng(k)
            cost = {"macs": 1000 + 10 * int(rng.integers(1000)), "params": 100 + k}
            metrics = None if k % 8 == 7 else {"accuracy": float(rng.uniform(50, 90)), "cross_entropy": 1.0}
            error = None if metrics else "RuntimeError: no memory"
            records.append(
                Record(k, SPACE.arch({"width": 8 + k, "odd [name]": 1}), metrics, cost if metrics else {}, 2.0, error)
            )
            journal.append(records[-1])
    return records


def stored(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name("nas")
    return list(client.search_runs([found.experiment_id], max_results=10_000)) if found else []


def candidates(uri: str) -> dict[int, Any]:
    """By k, after it is checked that each is there once, whole, and below the search."""
    runs = stored(uri)
    ks = Counter(int(r.data.tags["raynas.candidate"]) for r in runs if r.data.tags["raynas.kind"] == "candidate")
    assert not ks or max(ks.values()) == 1, f"twice in MLflow: {ks}"
    kinds = Counter(r.data.tags["raynas.kind"] for r in runs)
    assert kinds["search"] <= 1 and kinds["train"] <= 1
    parent = next((r.info.run_id for r in runs if r.data.tags["raynas.kind"] == "search"), None)
    found = {int(r.data.tags["raynas.candidate"]): r for r in runs if "raynas.candidate" in r.data.tags}
    assert all(r.data.tags["mlflow.parentRunId"] == parent for r in found.values())
    return found


def steps(uri: str, kind: str, name: str) -> list[int]:
    from mlflow import MlflowClient

    run = next(r for r in stored(uri) if r.data.tags["raynas.kind"] == kind)
    return [metric.step for metric in MlflowClient(uri).get_metric_history(run.info.run_id, name)]


def send(run: Path, uri: str | None = None, seconds: float = 60.0) -> int:
    tracker = Tracker(RunDir(run), uri, "nas")
    tracker.start()
    return tracker.close(seconds)


def wait(condition: Callable[[], object], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)
