"""The one place that decides where tensors live and how many threads a process has. Imports torch alone."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch


def device(use_gpu: bool) -> torch.device:
    """This process's device: the GPU of its local rank, or the CPU."""
    if not use_gpu:
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def driver_device(setting: bool | None) -> torch.device:
    """Where the driver's own process works: a GPU of its machine unless that is ruled out, else the CPU."""
    return configure_process(setting is not False and torch.cuda.is_available(), 1)


def configure_process(use_gpu: bool, cpus: int) -> torch.device:
    """Call first in every worker process: choose the device, and take no more threads than CPUs were given.

    Spinning OpenMP barriers of two threads beside a busy process cost a factor of forty, hence the passive wait policy.
    oneDNN keeps 1,024 compiled operations by default, and makes anew whatever falls out: sub-networks of a large space
    have more shapes than that. It reads the number at its first operation.
    """
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(max(1, cpus))
    return device(use_gpu)


def synchronise(where: torch.device) -> None:
    """Wait until a device has done what it was told: before a clock is read."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def machine(where: torch.device) -> str:
    """What a device is, for people: the GPU, or the processor."""
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    told = Path("/proc/cpuinfo")
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", told.read_text(), re.MULTILINE) if told.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
