"""The short benchmarks still run, as small as they can be. What they measure is asserted nowhere."""

from __future__ import annotations

import importlib
import re

import pytest

SMALL = {
    "score": ["--candidates", "5"],
    "train_step": ["--repeats", "4"],
    "multi_arch": ["--size", "d8", "--batch", "8", "--steps", "1", "--archs", "2"],
    "recompute": ["--size", "d8", "--repeats", "1"],
    "quant_step": ["--repeats", "1"],
    "loading": ["--images", "60", "--batch", "4", "--turns", "1", "--batches", "1"],
    "search_synthetic": ["--seeds", "1", "--marks", "40"],
}


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", [name, *SMALL[name]])
    importlib.import_module(f"tests.benchmarks.{name}").main()
    out = capsys.readouterr().out
    assert re.search(r"\d", out) and "nan" not in out, out
