"""What is kept between the forward and the backward pass of the largest network, with its blocks' activations and with
them computed again (``space.options.recompute``), and how long both take.

    python -m tests.benchmarks.recompute

BigNAS's largest network at 320 pixels, two runs beside other processes: 342.8 and 25.6 MB an image; 1.25 and 1.32, 1.22
and 1.31 s of CPU for four images (on a CPU much of the time goes into memory that is new; arithmetic grows by a third).
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.profiler import ProfilerActivity, profile

from nas.build import load_supernet
from nas.supernet import Pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="bignas")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    told = parser.parse_args()
    for recompute in (False, True):
        torch.manual_seed(0)
        net = load_supernet("bignas", told.size, recompute=recompute)
        x, seconds = torch.rand(told.images, *net.input_shape), []
        for _ in range(told.repeats):
            how, began = Pass(0.2, 0.2, generator=torch.Generator().manual_seed(0)), time.process_time()
            net(x, net.space.largest(), how).square().sum().backward()
            seconds.append(time.process_time() - began)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            output = net(x, net.space.largest(), Pass())
        kept = sum(event.self_cpu_memory_usage for event in seen.key_averages())
        del output
        print(f"recompute {recompute}: {kept / told.images / 1e6:.1f} MB an image, {min(seconds):.2f} s of CPU a pass")


if __name__ == "__main__":
    main()
