"""What a process is given before its first pass."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
