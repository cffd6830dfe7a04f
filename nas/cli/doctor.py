"""What a run needs of a machine, looked at one by one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nas.config.experiment import Experiment

GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `mend` says what to do where it is not `ok`."""

    what: str
    ok: bool
    found: str
    mend: str


def examine(experiment: Experiment | None = None) -> Iterator[Finding]:
    """Everything, in the order in which a run needs it; with an experiment, what each machine of a cluster needs for
    that one."""
    if experiment is not None:
        for look in (_compiler, _deepspeed, lambda: _data_of(experiment)):
            yield _guarded(look)
        return
    yield Finding("Python", sys.version_info >= (3, 11), sys.version.split()[0], "install Python 3.11 or later")
    for look in (_packages, _torch, _compiler, _deepspeed, _ray, _gpus, _disk, _mlflow, _data):
        yield _guarded(look)


def _guarded(look: Callable[[], Finding]) -> Finding:
    """A look that fails is a finding too."""
    try:
        return look()
    except Exception as error:  # whatever is broken here is what the user wants to know
        return Finding(
            look.__name__.strip("_"),
            False,
            f"{type(error).__name__}: {error}"[:200],
            "pip install -e . again, in a fresh environment",
        )


def _packages() -> Finding:
    found, missing = [], []
    for name in ("ray", "torch", "torchvision", "deepspeed", "mlflow", "onnx", "onnxruntime"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    return Finding("packages", not missing, ", ".join(found), f"pip install {' '.join(missing)}")


def _torch() -> Finding:
    import torch
    import torchvision

    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # fails where the two were not built for each other
    return Finding("torch with torchvision", True, f"{torch.__version__} with {torchvision.__version__}", "")


def _compiler() -> Finding:
    found = {name: shutil.which(name) for name in ("g++", "ninja")}
    missing = [name for name, path in found.items() if path is None]
    return Finding(
        "compiler",
        not missing,
        ", ".join(str(path) for path in found.values() if path),
        f"install {' and '.join(missing)}",
    )


def _deepspeed() -> Finding:
    from nas.training.engine import prebuild

    prebuild()
    return Finding("DeepSpeed's CPU operator", True, f"built in {os.environ['TORCH_EXTENSIONS_DIR']}", "")


def _ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding("Ray", True, f"a local cluster of {os.cpu_count()} CPUs starts with each command", "")
    import ray

    from nas.workers.session import session

    with session():
        have = ray.cluster_resources()
        return Finding("Ray", True, f"{address}: {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs", "")


def _gpus() -> Finding:
    import torch

    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    return Finding("GPUs", True, names or "none; everything runs on the CPU, more slowly", "")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / GIGABYTE
    return Finding(
        "disk", free > 2, f"{free:.0f} GB free here", "free some: a run keeps checkpoints of weights and optimizer"
    )


def _mlflow() -> Finding:
    from nas.results.tracking import check_uri, reachable

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return Finding("MLflow", True, "SQLite beside the runs", "")
    answer = reachable(check_uri(uri))
    return Finding(
        "MLflow",
        answer is None,
        answer or f"{uri} answers",
        "start the server, or set tracking.uri; work goes on without it",
    )


def _data_of(experiment: Experiment) -> Finding:
    try:
        return Finding("data", True, str(experiment.data.locate() or "built in"), "")
    except FileNotFoundError as missing:
        return Finding("data", False, experiment.data.name, str(missing))


def _data() -> Finding:
    from nas.tasks.places import roots

    there = [str(root) for root in roots() if root.is_dir()]
    found = "digits are built in; others: " + (", ".join(there) or "nowhere yet")
    return Finding("data", True, found, "")
