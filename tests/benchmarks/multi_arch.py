"""What a training step costs that runs A sub-networks in one pass: grouped, masked, and next to them the sandwich rule.

Run from the root of the repository, some minutes on one core:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.multi_arch --size d8 --batch 64

Milliseconds an example (processor time, forward and backward, one thread, fp32), median of the steps with the quartiles
after it; sub-networks are drawn anew, stratified, at every step, and all ways run the same ones in turn. The sandwich
step runs the largest, two random and the smallest network on every example. `ratio` is masked over grouped; `MACs` is
what the A sub-networks take, of what the largest takes.

Measured on two cores that others used as well, AVX-512, torch 2.14: the ratios of ways that ran in turn say more than
the times.

d8, batch 64:

| A | MACs | grouped | masked | ratio | sandwich |
| --- | --- | --- | --- | --- | --- |
| 1 | 0.48 | 1.26 (1.1-1.37) | 1.45 (1.39-1.66) | 1.20 | 5.38 (4.9-5.74) |
| 2 | 0.48 | 1.16 (1.12-1.26) | 1.58 (1.34-1.64) | 1.28 | 4.81 (4.55-5.03) |
| 4 | 0.49 | 1.35 (1.26-1.52) | 1.73 (1.64-1.84) | 1.25 | 5.09 (4.6-5.46) |
| 8 | 0.48 | 1.43 (1.38-1.65) | 1.82 (1.72-1.97) | 1.24 | 5.18 (4.93-5.67) |
| 16 | 0.48 | 2.05 (1.91-2.3) | 2.08 (1.93-2.37) | 0.96 | 5.88 (5.44-6.26) |

m28, batch 128:

| A | MACs | grouped | masked | ratio | sandwich |
| --- | --- | --- | --- | --- | --- |
| 1 | 0.49 | 3 (2.94-3.49) | 3.83 (3.44-3.98) | 1.23 | 11.4 (11.2-13.3) |
| 2 | 0.46 | 3.72 (3.19-4.08) | 4.91 (4.71-5.13) | 1.40 | 15.3 (14.9-15.8) |
| 4 | 0.48 | 4.27 (3.59-4.34) | 5.52 (5.06-5.79) | 1.29 | 15 (14.7-15.5) |
| 8 | 0.47 | 3.74 (3.63-3.93) | 5.1 (4.88-5.53) | 1.38 | 15 (13.6-15.4) |
| 16 | 0.47 | 4.28 (3.88-4.43) | 5.42 (5.22-5.93) | 1.34 | 14 (12.8-14.4) |

tiny (224 pixels), batch 16, 2 or 3 steps:

| A | MACs | grouped | masked | ratio | sandwich |
| --- | --- | --- | --- | --- | --- |
| 1 | 0.47 | 153 (149-161) | 261 (232-262) | 1.54 | 729 (723-768) |
| 2 | 0.46 | 154 (143-180) | 258 (255-310) | 1.76 | 763 (717-800) |
| 4 | 0.49 | 196 (196-197) | 375 (371-379) | 1.91 | 789 (769-809) |
| 8 | 0.49 | 208 (203-212) | 359 (358-361) | 1.74 | 805 (800-810) |
| 16 | 0.48 | 214 (211-217) | 338 (327-348) | 1.58 | 778 (775-781) |

tiny, batch 8, 5 steps, on a quiet machine:

| A | MACs | grouped | masked | ratio | sandwich |
| --- | --- | --- | --- | --- | --- |
| 1 | 0.50 | 156 (141-162) | 223 (217-226) | 1.51 | 630 (617-683) |
| 2 | 0.47 | 157 (140-159) | 270 (240-287) | 1.75 | 708 (699-735) |
| 4 | 0.49 | 169 (160-174) | 285 (281-294) | 1.75 | 682 (646-715) |
| 8 | 0.49 | 201 (189-202) | 310 (298-319) | 1.55 | 700 (682-701) |

156 ms are 6.4 images/s, and 67 GFLOP/s, or 74 % of the fastest matrix product here (91 GFLOP/s).

So grouped is the default. What the smallest space loses at A = 16 is Python and small matrices: four examples a
sub-network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nas.build import load_supernet
from nas.recipes.multi_arch import stratified_archs
from nas.space import Arch
from nas.supernet import Supernet
from nas.tasks import mixing


def step(net: Supernet, x: Tensor, y: Tensor, passes: list[Arch | list[Arch]]) -> None:
    """Forward and backward of some passes over the same examples."""
    net.zero_grad(set_to_none=True)
    for archs in passes:
        mixing.loss(net(x, archs), y, 0.1).backward()


def spent(function: Callable[[], None]) -> float:
    """Processor time in seconds."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(nets: dict[str, Supernet], count: int, batch: int, steps: int) -> tuple[dict[str, np.ndarray], float]:
    """Milliseconds an example of every way at every step, and the mean share of the largest network's MACs."""
    grouped = nets["grouped"]
    x, y = torch.rand(batch, *grouped.input_shape), torch.randint(0, 10, (batch,))
    space, rng, most = grouped.space, np.random.default_rng(0), grouped.cost(grouped.space.largest())["macs"]
    times: dict[str, list[float]] = {"grouped": [], "masked": [], "sandwich": []}
    shares = []
    for number in range(steps + 1):
        archs = stratified_archs(space, count, 1.0, rng, 0.0, (1, 1, 0, 0))
        for name, net in nets.items():
            times[name].append(spent(lambda net=net, archs=archs: step(net, x, y, [archs])))  # type: ignore[misc]
        four: list[Arch | list[Arch]] = [space.largest(), space.sample(rng), space.sample(rng), space.smallest()]
        times["sandwich"].append(spent(lambda four=four: step(grouped, x, y, four)))  # type: ignore[misc]
        if number:  # the first step warms up
            shares.append(np.mean([grouped.cost(arch)["macs"] / most for arch in archs]))
    return {name: 1000 * np.array(taken[1:]) / batch for name, taken in times.items()}, float(np.mean(shares))


def peak() -> float:
    """Floating-point operations a second of the fastest of some matrix products, two for a multiply-accumulate."""
    best = 0.0
    for side in (512, 1024, 2048):
        a, b = torch.rand(side, side), torch.rand(side, side)
        best = max(best, *(2 * side**3 / spent(lambda a=a, b=b: torch.mm(a, b)) for _ in range(5)))  # type: ignore[misc]
    return best


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Time an example of multi-architectural steps.")
    parser.add_argument("--size", default="d8", help="of vit_resnas")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=15, help="steps to take the median of")
    parser.add_argument("--archs", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="sub-networks a step")
    args = parser.parse_args()
    torch.set_num_threads(1)
    nets = {multi: load_supernet("vit_resnas", args.size, multi=multi) for multi in ("grouped", "masked")}
    print(f"{args.size}, batch {args.batch}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}\n")
    print("| A | MACs | grouped | masked | ratio | sandwich |\n| --- | --- | --- | --- | --- | --- |")
    fastest, most = peak(), nets["grouped"].cost(nets["grouped"].space.largest())["macs"]
    for count in args.archs:
        times, share = measure(nets, count, args.batch, args.steps)
        cells = {
            name: "{1:.3g} ({0:.3g}-{2:.3g})".format(*np.quantile(values, (0.25, 0.5, 0.75)))
            for name, values in times.items()
        }
        ratio = np.median(times["masked"] / times["grouped"])
        print(
            f"| {count} | {share:.2f} | {cells['grouped']} | {cells['masked']} | {ratio:.2f} | {cells['sandwich']} |",
            flush=True,
        )
        shares = {
            name: 6 * share * most / (np.median(times[name]) / 1000) / fastest for name in nets
        }  # a backward pass takes twice a forward one
        print(
            f"<!-- of the {fastest / 1e9:.0f} GFLOP/s of a matrix product: "
            + ", ".join(f"{name} {part:.0%}" for name, part in shares.items())
            + " -->"
        )


if __name__ == "__main__":
    main()
