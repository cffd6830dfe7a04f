"""What tests of super-resolution share: settings, photographs, noise."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from nas.config.experiment import Experiment, load_experiment
from nas.tasks.options import SuperResolutionOptions


def settings(**changes: Any) -> SuperResolutionOptions:
    return SuperResolutionOptions.model_validate({"name": "photos", "scale": 2, "patch": 24, "validation": 8} | changes)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


EXPERIMENT = """
name: tiny
space: {name: "tests.tasks.test_super_resolution_run:tiny"}
data: {name: photos, scale: 2, patch: 16, validation: 8}
recipe: {name: sandwich, batch: 16, epochs: 1, lr: 0.5, weight_decay: 0, label_smoothing: 0, dropout: 0}
train: {workers: 1, zero_stage: 0, checkpoint_every: 12}
search: {candidates: 2, calibration: 8, calibration_batch: 8}
"""


def experiment(*overrides: str) -> Experiment:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tiny.yaml").write_text(EXPERIMENT)
        return load_experiment(Path(folder) / "tiny.yaml", overrides)
