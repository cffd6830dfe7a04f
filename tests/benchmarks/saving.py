"""What a checkpoint holds a training up by: the step that saves against writing it at once, in one process.

    python -m tests.benchmarks.saving

The supernet of AttentiveNAS (22 M weights, SGD), `ROUNDS` checkpoints each way in turn. What is left when a thread
writes is the copy of weights and optimizer state.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch.distributed as dist

from nas.config.experiment import load_experiment
from nas.device import configure_process
from nas.rundir.directory import RunDir
from nas.rundir.fence import Fence
from nas.training.loop import Attempt, Loop

ROUNDS = 5
SETTINGS = [
    "space={name: bignas, size: attentivenas}",
    "recipe.batch=4",
    "train.workers=1",
    "train.zero_stage=0",
    "search.calibration=8",
    "search.calibration_batch=8",
    "search.validation=8",
]


def main() -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    device = configure_process(False, 1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as home:
        run = Path(home)
        loop = Loop(load_experiment("bignas-textures", SETTINGS), RunDir(run), Fence.take(run), 0, 1, device)
        attempt = Attempt(loop, 1.0)
        attempt._step({name: feed(0) for name, feed in attempt.feeds.items()})  # the optimizer's state is made there
        held: dict[str, list[float]] = {"at once": [], "by a thread": []}
        for _ in range(ROUNDS):
            for way, seconds in held.items():
                attempt.state.step += 1
                began = time.perf_counter()
                attempt._save()
                if way == "at once":
                    attempt.saving.wait()
                seconds.append(time.perf_counter() - began)
                attempt.saving.wait()
        attempt.close()
    for way, seconds in held.items():
        print(f"{way:12} {median(seconds):6.2f} s (of {ROUNDS}: {min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
