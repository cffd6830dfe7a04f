"""What quantization costs a step: noise against real quantizers, of one path and of a mixture of all; and what a path
costs in the supernet and as a child, both with real quantizers. In one process, one thread.

    python -m tests.benchmarks.quant_step

Measured on a quiet machine with --repeats 5; milliseconds of a forward and a backward pass under noise, medians of
ratios:

| | noise, ms | noise / off | real / off | noise / real |
| --- | --- | --- | --- | --- |
| basic-c18 x2, 8 of 24 px, one path | 55 | 1.10 | 1.20 | 0.81 |
| the same, mixture of all | 170 | 1.51 | 2.93 | 0.52 |
| basic (C = 36) x4, 2 of 45 px, one path | 123 | 1.05 | 1.14 | 0.91 |
| the same, mixture | 466 | 1.58 | 2.45 | 0.64 |
| rfdn (C = 48) x4, 2 of 24 px, one path | 132 | 1.29 | 1.49 | 0.86 |
| the same, mixture | 969 | 1.57 | 2.57 | 0.61 |

A path of the supernet over the same child, beside other work: 0.99, 1.10 and 0.99.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from operator import truediv
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nas.build import load_supernet
from nas.space import Arch
from nas.supernet import Pass, Soft, Supernet

# size, options, rows, low-resolution side
SETTINGS = (("basic-c18", {}, 8, 24), ("basic", {}, 2, 45), ("rfdn", {}, 2, 24))
KINDS = ("off", "noise", "real")


def uniform(net: Supernet) -> Soft:
    """Every choice as likely as any other, with gradients."""
    shapes = {
        slot: [len(net.space.choices[choice].values) for choice in choices] for slot, choices in net.slots.items()
    }
    return Soft({slot: torch.full(shape, 1 / np.prod(shape), requires_grad=True) for slot, shape in shapes.items()})


def seconds(net: nn.Module, run: Callable[[], torch.Tensor], y: torch.Tensor) -> float:
    """CPU seconds of a forward and a backward pass: others may be at work here."""
    began = time.process_time()
    F.l1_loss(run(), y).backward()
    took = time.process_time() - began
    net.zero_grad()
    return took


def passed(net: Supernet, arch: Arch | Soft, x: torch.Tensor, quant: str) -> Callable[[], torch.Tensor]:
    """A forward pass with such quantizers."""
    how = Pass(quant=quant, generator=torch.Generator().manual_seed(0))
    return lambda: net(x, arch, how)  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    for size, options, rows, side in SETTINGS:
        torch.manual_seed(0)
        net, rng = load_supernet("quantnas", size, image=side, **options), np.random.default_rng(0)  # type: ignore[arg-type]
        scale = net.forward_one(torch.rand(1, 3, side, side), net.space.smallest(), Pass()).shape[-1] // side
        x, y = torch.rand(rows, 3, side, side), torch.rand(rows, 3, side * scale, side * scale)
        for what in ("path", "mixture"):
            taken: dict[str, list[float]] = {kind: [] for kind in (*KINDS, "child")}
            for _ in range(repeats):
                arch = net.space.sample(rng) if what == "path" else uniform(net)
                for kind in KINDS:  # by turns, so that a busy machine hurts all alike
                    taken[kind].append(seconds(net, passed(net, arch, x, kind), y))
                if isinstance(arch, Arch):
                    child = net.extract(arch).train()
                    taken["child"].append(seconds(child, lambda child=child, x=x: child(x), y))  # type: ignore[misc]
            ratios = {
                kind: median(t / off for t, off in zip(taken[kind], taken["off"], strict=True)) for kind in KINDS[1:]
            }
            against = median(n / r for n, r in zip(taken["noise"], taken["real"], strict=True))
            print(
                f"{size} x{scale}, {rows} of {side} px, {what}: noise {1e3 * median(taken['noise']):.0f} ms; "
                f"noise / off {ratios['noise']:.2f}, real / off {ratios['real']:.2f}, noise / real {against:.2f}"
                + (
                    f"; real / child {median(map(truediv, taken['real'], taken['child'])):.2f}"
                    if what == "path"
                    else ""
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
