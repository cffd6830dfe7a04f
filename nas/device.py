"""The one place that decides where tensors live, in what precision they are multiplied, how many threads a process has,
and what is said where a GPU's memory is short. Imports torch alone."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class MemoryShort(RuntimeError):
    """A GPU has too little memory for what the experiment asks of it; to try it again would not help."""


def device(use_gpu: bool) -> torch.device:
    """This process's device: the GPU of its local rank, or the CPU.

    Ray shows a training worker all GPUs that the workers of its node have been given, and a trial its own alone.

    Raises:
        RuntimeError: torch sees no GPU.
    """
    if not use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise RuntimeError(
            f"this process was given a GPU and torch {torch.__version__} sees none (CUDA_VISIBLE_DEVICES is {seen!r}): "
            "install a torch for this machine's driver, or set train.use_gpu: false"
        )
    index = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    # fp32 is multiplied in TF32, 10 bits of mantissa and sums in fp32: torch does so in convolutions and not in matrix
    # products, which a ViT is made of. The switch for CUDA alone, so that a CPU's results stay what they are.
    torch.backends.cuda.matmul.allow_tf32 = True
    # cuDNN's search for the quickest algorithm times all of them at each new shape, and every step has others.
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda", index)


@contextmanager
def exact() -> Iterator[None]:
    """Within it a GPU multiplies fp32 as fp32: for figures that somebody shall find again on a CPU."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def autocast(where: torch.device, precision: str) -> torch.autocast:
    """Around a forward pass and its loss: bf16 for matrix products and convolutions where `precision` is ``"bf16"``,
    weights and sums in fp32; nothing where it is ``"fp32"``."""
    return torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def enough_memory(lower: str) -> Iterator[None]:
    """A GPU's memory runs short within it: one error says so.

    Args:
        lower: what to do about it, as the end of a sentence.

    Raises:
        MemoryShort: in place of torch's OutOfMemoryError, which names no key of an experiment.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = str(error).split(" Of the allocated")[0]
        raise MemoryShort(f"the GPU's memory is short: {lower}. torch says: {said}") from None


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
