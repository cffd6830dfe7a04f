"""Fixtures that tests of tracking share: a run whose lines are written by hand, and what MLflow has of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nas.results import tracking
from tests.results.tracked import train


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database: Alembic takes seconds, a copy does not."""
    for name, value in tracking.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def run(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory with a little training, beside a fresh database."""
    monkeypatch.setattr(tracking, "BACKOFF_SECONDS", (0.1, 0.3))
    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.1)
    shutil.copy(template, tmp_path / "mlflow.db")
    run = tmp_path / "digits"
    (run / "train").mkdir(parents=True)
    (run / "search").mkdir()
    (run / "run.json").write_text(json.dumps({"id": "c0ffee", "name": "digits"}))
    (run / "experiment.yaml").write_text("name: digits\nseed: 3\nrecipe: {lr: 0.4}\ntrain: {workers: 1}\n")
    train(run, range(10, 60, 10))
    return run
