"""What a process is given before its first pass."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from nas.device import device, exact

SHAPES = 1100  # more than oneDNN keeps by default
TWICE = f"""
import torch
from nas.device import configure_process
configure_process(use_gpu=False, cpus=1)
x = torch.zeros(2, 8, 4, {SHAPES} + 4).contiguous(memory_format=torch.channels_last)
weight = torch.zeros(8, 8, 3, 3)
with torch.no_grad():
    for again in ("", "again"):
        print(again, flush=True)
        for width in range(4, {SHAPES} + 4):
            torch.nn.functional.conv2d(x[..., :width], weight)
"""


@pytest.mark.parametrize(("given", "kept"), [({}, True), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}, False)])
def test_compiled_operations_are_kept(given: dict[str, str], kept: bool) -> None:
    """A thousand shapes and more come back without being made again, unless the user has said how many are kept."""
    around = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    done = subprocess.run(
        [sys.executable, "-c", TWICE],
        env={**around, **given, "ONEDNN_VERBOSE": "profile_create"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = (part.count("create:cache_miss") for part in done.stdout.split("again"))
    assert first >= SHAPES
    assert (second == 0) == kept


def switches() -> tuple[bool, bool, str]:
    """TF32 in matrix products and in convolutions of a GPU; what a CPU may do in place of fp32."""
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.mkldnn.matmul.fp32_precision,
    )


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What `device` asks torch for, answered as on a machine with four; the list has what was chosen."""
    chosen: list[int] = []
    matmul, cudnn, _ = switches()
    for name, value in (("is_available", lambda: True), ("device_count", lambda: 4), ("set_device", chosen.append)):
        monkeypatch.setattr(torch.cuda, name, value)
    yield chosen
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


@pytest.mark.parametrize(("rank", "index"), [(None, 0), ("3", 3)])
def test_a_process_takes_the_gpu_of_its_local_rank(
    four_gpus: list[int], monkeypatch: pytest.MonkeyPatch, rank: str | None, index: int
) -> None:
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert device(True) == torch.device("cuda", index) and four_gpus == [index]


def test_tf32_is_for_gpus_and_not_for_what_must_be_found_again(four_gpus: list[int]) -> None:
    """And a CPU's fp32 stays fp32: journals and checkpoints are equal to the bit there."""
    before = switches()
    device(False)
    assert switches() == before
    device(True)
    assert switches() == (True, True, before[2]) and not torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), exact():
        assert switches() == (False, False, before[2])
        raise KeyError
    assert switches() == (True, True, before[2])
