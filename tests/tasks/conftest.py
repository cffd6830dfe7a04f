"""Fixtures that tests of tasks share: the digits, the photographs, a machine without data."""

from __future__ import annotations

from pathlib import Path

import pytest

import nas.tasks.places as places
from nas.tasks.classification import Classification
from nas.tasks.super_resolution import SuperResolution
from tests.tasks.given import DIGITS
from tests.tasks.photographs import settings


@pytest.fixture(scope="module")
def digits() -> Classification:
    return Classification(DIGITS, seed=0)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data: RAYNAS_DATA, home, the current folder and Debian's folder are empty. Gives
    RAYNAS_DATA's folder."""
    for name in ("data", "home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("RAYNAS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(places, "DEBIAN", tmp_path / "debian")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def photos() -> SuperResolution:
    return SuperResolution(settings(rotate=True), seed=0)
