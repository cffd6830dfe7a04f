"""The checks by name: what each needs, how long it may take, and how it is run in a process of its own."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
PLATFORM = ("pydantic", "filelock", "safetensors", "torchvision", "PIL", "sklearn", "scipy", "moocore", "yaml")
TRAINING = (*PLATFORM, "deepspeed")

Body = Callable[[torch.device, bool], str]  # device, small -> what it found


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        home: the module of `tests.gpu` that has a `Body` of its name.
        needs: packages besides torch, numpy and pytest.
        limit: seconds that it may take on a GPU.
    """

    home: str
    needs: tuple[str, ...] = ()
    limit: int = 120

    @property
    def missing(self) -> list[str]:
        return [name for name in self.needs if find_spec(name) is None]


CHECKS = {
    "step": Check("networks"),
    "children": Check("networks"),
    "draws": Check("networks"),
    "precision": Check("networks"),
    "memory": Check("networks", limit=60),
    "static": Check("networks"),
    "attentivenas": Check("networks", limit=180),
    "multi_arch": Check("networks", limit=180),
    "scoring": Check("platform", PLATFORM),
    "loaders": Check("platform", PLATFORM, 180),
    "zero": Check("platform", TRAINING, 300),
    "resume": Check("platform", TRAINING, 300),
    "trials": Check(
        "platform", (*TRAINING, "ray", "mlflow", "onnx", "onnxruntime", "onnxscript", "typer", "matplotlib"), 500
    ),
}


@dataclass(frozen=True)
class Done:
    """What became of a check: ``"run"``, ``"failed"`` or ``"missing"``, and what it found or why not."""

    name: str
    how: str
    told: str
    seconds: float = 0.0


def run(name: str, check: Check, device: str, small: bool = False) -> Done:
    """A check in a process of its own, which is ended with all that it has started when its time is up."""
    began = time.monotonic()
    if check.missing:
        return Done(name, "missing", f"install {', '.join(check.missing)}")
    elsewhere = ("DS_ACCELERATOR", "RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    around = {key: value for key, value in os.environ.items() if key not in elsewhere}
    code = f"from tests.gpu.checks import perform; perform({check.home!r}, {name!r}, {device!r}, {small!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**around, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=check.limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return Done(name, "failed", f"took more than {check.limit} s", time.monotonic() - began)
    lines = said.strip().splitlines() or ["it said nothing"]
    took = time.monotonic() - began
    if process.returncode:
        sys.stderr.write(said)
        return Done(name, "failed", lines[-1][:400], took)
    return Done(name, "run", json.loads(lines[-1]), took)


def perform(home: str, name: str, device: str, small: bool) -> None:
    """In that process: the check, and what it found as JSON on the last line."""
    from nas.device import configure_process

    where = configure_process(device == "cuda", 1)
    check: Body = getattr(importlib.import_module(f"tests.gpu.{home}"), name)
    print(json.dumps(check(where, small)), flush=True)
