"""What a training step costs that runs A sub-networks in one pass: grouped, masked, and next to them the sandwich rule.

Run from the root of the repository, some minutes on one core:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.multi_arch --size d8 --batch 64

Milliseconds an example (processor time, forward and backward, one thread, fp32), median of the steps with the quartiles after it;
sub-networks are drawn anew, stratified, at every step, and all ways run the same ones in turn. The sandwich step runs the largest,
two random and the smallest network on every example. `ratio` is masked over grouped; `MACs` is what the A sub-networks take, of what
the largest takes.

TABLE
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nas.recipes.multi_arch import stratified_archs
from nas.space import Arch
from nas.supernet import Supernet, load_supernet
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
    space, rng, most = grouped.space, np.random.default_rng(0), grouped.cost(grouped.space.largest()).macs
    times: dict[str, list[float]] = {"grouped": [], "masked": [], "sandwich": []}
    shares = []
    for number in range(steps + 1):
        archs = stratified_archs(space, count, 1.0, rng, 0.0, (1, 1, 0, 0))
        for name, net in nets.items():
            times[name].append(spent(lambda net=net, archs=archs: step(net, x, y, [archs])))  # type: ignore[misc]
        four: list[Arch | list[Arch]] = [space.largest(), space.sample(rng), space.sample(rng), space.smallest()]
        times["sandwich"].append(spent(lambda four=four: step(grouped, x, y, four)))  # type: ignore[misc]
        if number:  # the first step warms up
            shares.append(np.mean([grouped.cost(arch).macs / most for arch in archs]))
    return {name: 1000 * np.array(taken[1:]) / batch for name, taken in times.items()}, float(np.mean(shares))


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
    for count in args.archs:
        times, share = measure(nets, count, args.batch, args.steps)
        cells = {name: "{1:.3g} ({0:.3g}-{2:.3g})".format(*np.quantile(values, (0.25, 0.5, 0.75))) for name, values in times.items()}
        ratio = np.median(times["masked"] / times["grouped"])
        print(f"| {count} | {share:.2f} | {cells['grouped']} | {cells['masked']} | {ratio:.2f} | {cells['sandwich']} |", flush=True)


if __name__ == "__main__":
    main()
