"""A sandwich step against the same four children as static networks, in one process, one thread.

    python -m tests.benchmarks.train_step

Two runs beside other processes: elastic over static 0.65 and 0.71, and 1.12 between them by the code before, which left
all convolutions to torch: on a CPU elastic ones are quicker (`nas/elastic/conv.py`). What was tried: NOTES.md.
Where the time goes: --profile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.benchmarks.peer_space import BATCH, peer_space


def step(run: list[Callable[[torch.Tensor], torch.Tensor]], x: torch.Tensor, y: torch.Tensor) -> None:
    """Forward and backward of the largest on labels, of the others on its soft labels."""
    teacher = run[0](x)
    F.cross_entropy(teacher, y).backward()
    soft = teacher.detach().softmax(-1)
    for child in run[1:]:
        F.cross_entropy(child(x), soft).backward()


def seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def convolution_peak() -> float:
    """FLOP/s of the fastest of some large convolutions, the machine's measured ceiling on one thread."""
    best = 0.0
    for c, side, k in ((256, 16, 1), (256, 16, 3), (128, 32, 3), (512, 16, 1)):
        conv = nn.Conv2d(c, c, k, padding=k // 2, bias=False).to(memory_format=torch.channels_last)
        x = torch.rand(16, c, side, side).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            took = min(seconds(lambda conv=conv, x=x: conv(x)) for _ in range(8))
        best = max(best, 2 * c * c * k * k * side * side * 16 / took)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--profile", action="store_true", help="also print where the time of the elastic step goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, rng = peer_space(), np.random.default_rng(0)
    x, y = torch.rand(BATCH, *net.input_shape), torch.randint(0, 10, (BATCH,))
    space, rows = net.space, []
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    for _ in range(options.repeats):
        archs = [space.largest(), space.sample(rng), space.sample(rng), space.smallest()]
        elastic = [lambda x, arch=arch: net(x, arch) for arch in archs]
        static = [net.extract(arch).train() for arch in archs]
        macs = sum(net.cost(arch)["macs"] for arch in archs)
        pair = (seconds(lambda run=elastic: step(run, x, y)), seconds(lambda run=static: step(run, x, y)))
        optimizer_time = seconds(lambda: (optimizer.step(), optimizer.zero_grad()))
        rows.append((*pair, optimizer_time, macs))
    rows = rows[3:]
    peak = convolution_peak()
    ratio, took = median(e / s for e, s, *_ in rows), median(e + o for e, _, o, _ in rows)
    flops = median(6 * macs * BATCH / e for e, _, _, macs in rows)
    print(
        f"elastic step / same children static: {ratio:.3f} (from {min(e / s for e, s, *_ in rows):.3f} to "
        f"{max(e / s for e, s, *_ in rows):.3f})"
    )
    print(f"sandwich step with SGD: {took * 1e3:.0f} ms, {BATCH / took:.0f} images/s")
    print(
        f"convolution peak here {peak / 1e9:.0f} GFLOP/s; the step runs at {flops / 1e9:.1f}, {100 * flops / peak:.0f} "
        "% of it"
    )
    if options.profile:
        with torch.profiler.profile() as profile:
            step([lambda x, arch=arch: net(x, arch) for arch in archs], x, y)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=46))


if __name__ == "__main__":
    main()
