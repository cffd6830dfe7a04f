"""A ViT-ResNAS step (A sub-networks in one pass, forward and backward) against its own matrix products and
convolutions alone, in one process, one thread.

    python -m tests.benchmarks.vit_step --size tiny --batch 8 --archs 1 2 4 8

The products are those that the step gives to torch, noted on their way (shapes and strides), and done again with other
numbers and nothing between them: what no step can be quicker than, as long as it does these. Where the rest goes:
--profile.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nas.build import load_supernet
from nas.recipes.multi_arch import stratified_archs
from tests.benchmarks.multi_arch import spent, step

PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.convolution", "aten._scaled_dot_product")


class Products(TorchDispatchMode):
    """Notes the operations that multiply matrices, with what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(PRODUCTS):
            self.noted.append((func, tuple(map(alike, args)), {k: alike(v) for k, v in (kwargs or {}).items()}))
        return func(*args, **(kwargs or {}))


def alike(value: Any) -> Any:
    """Other numbers of the same shape and strides; whatever is no tensor as it is."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).uniform_(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", help="of vit_resnas")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--archs", type=int, nargs="+", default=[1, 2, 4, 8], help="sub-networks a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, rng = load_supernet("vit_resnas", given.size), np.random.default_rng(0)
    x, y = torch.rand(given.batch, *net.input_shape), torch.randint(0, 10, (given.batch,))
    print(
        f"{given.size}, batch {given.batch}\n\n| A | step, ms | its products, ms | products / step |\n"
        + "| --- " * 4
        + "|"
    )
    for count in given.archs:
        pairs = []
        for _ in range(given.steps):
            archs = stratified_archs(net.space, count, 1.0, rng, 0.0, (1, 1, 0, 0))
            with Products() as products:
                step(net, x, y, [archs])
            whole = spent(lambda archs=archs: step(net, x, y, [archs]))  # type: ignore[misc]
            alone = spent(lambda noted=products.noted: [f(*a, **k) for f, a, k in noted])  # type: ignore[misc]
            pairs.append((whole, alone))
        took, alone = (1e3 * median(each) for each in zip(*pairs, strict=True))
        print(f"| {count} | {took:.0f} | {alone:.0f} | {median(a / w for w, a in pairs):.2f} |", flush=True)
    if given.profile:
        with torch.profiler.profile(record_shapes=True) as profile:
            step(net, x, y, [archs])
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=46))


if __name__ == "__main__":
    main()
