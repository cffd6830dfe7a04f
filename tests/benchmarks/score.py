"""Candidates scored a second, against the bare forward passes of the same children; and how long extraction takes. One
thread.

    python -m tests.benchmarks.score

Three runs: 10.0, 10.8 and 11.3 candidates/s, 1.23 to 1.28 times the bare forward passes of the same child, most of the
rest being the extraction (11 to 13 ms). Before the child's weights were put in channels_last order it was 6.6 to 8.2.
Since then extraction draws no weights: 1.5 to 1.7 times as fast, scoring 1.05 times, both in turn with the code before.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch

from nas.children.evaluate import Evaluator
from nas.tasks.classification import Classification
from tests.benchmarks.peer_space import BATCH, peer_space


class Images:
    """Random pixels: what is in them takes no time."""

    at_once = None

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.x, self.y = torch.rand(count, *shape), torch.randint(0, 10, (count,))

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: np.ndarray, epoch: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[rows], self.y[rows]


class Noise(Classification):
    """The task itself, on random pixels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.train, self.validation = Images(4 * BATCH, shape), Images(4 * BATCH, shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    net, rng = peer_space(), np.random.default_rng(0)
    task = Noise(net.input_shape)
    settings = SimpleNamespace(calibration=4 * BATCH, calibration_batch=BATCH, validation=4 * BATCH, score_batch=BATCH)
    evaluate = Evaluator(net, task, settings, torch.device("cpu"))
    rows = []
    for _ in range(options.candidates):
        arch = net.space.sample(rng)
        began = time.perf_counter()
        evaluate(arch)
        scored = time.perf_counter()
        child = net.extract(arch)
        extracted = time.perf_counter()
        child.to(memory_format=torch.channels_last)
        ready = time.perf_counter()
        with torch.inference_mode():
            child.train()
            for x, _ in evaluate.calibration:
                child(x)
            child.eval()
            for x, _ in evaluate.validation:
                child(x)
        rows.append((scored - began, extracted - scored, time.perf_counter() - ready))
    whole, extraction, bare = (median(column) for column in zip(*rows[3:], strict=True))
    print(
        f"scored: {1 / whole:.1f} candidates/s; {median(w / b for w, _, b in rows[3:]):.2f} times the bare forward "
        "passes of the same child"
    )
    print(f"extraction: {extraction * 1e3:.1f} ms; bare passes: {bare * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
