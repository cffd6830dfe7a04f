"""AdaQuant and bits by integer programming against rounding to the nearest, on a child trained on Fashion-MNIST.

    RAYNAS_DATA=/usr/share/datasets python -m tests.benchmarks.adaquant --seeds 0

Each seed draws an architecture of the space of the preset bignas-fashion-mnist with 1.5 to 2.5 million MACs, trains it
alone for 900 steps of 128 images, folds its batch norms and quantizes it with the same 512 training images, no labels.
All layers are quantized; the pixels keep 8 bits. Ranges are those of the least square error for both. "4 or 8 bits":
within 40 % of the BitOPs of 8 bits everywhere. The loss is the mean square difference to the logits before, on 128 of
the calibration images that no weight was fitted on. torchao is compared where it is installed; it is not among raynas's
dependencies (`pip install torchao`). Its graph mode (PT2E) is given the same images and bits, per channel for weights
and per tensor for activations, with its histogram observers.

Measured with --seeds 0 (one seed, one thread): millions of BitOPs for one image, bytes of weights, test accuracy in
percent.

| method | BitOPs | bytes | accuracy | cross-entropy | loss |
| --- | --- | --- | --- | --- | --- |
| fp32 | 2012.3 | | 88.17 | 0.316 | |
| 8 bits, to the nearest | 125.8 | 80,043 | 88.09 | 0.317 | 0.050 |
| 8 bits, torchao | 125.8 | 80,043 | 88.00 | 0.315 | 0.013 |
| 4 bits, torchao | 31.9 | 47,635 | 54.80 | 1.128 | 6.729 |
| 4 bits, to the nearest | 31.9 | 47,635 | 84.26 | 0.428 | 2.101 |
| 4 bits, AdaQuant | 31.9 | 47,635 | 86.60 | 0.361 | 0.481 |
| 4 bits, AdaQuant, biases tuned | 31.9 | 47,635 | 86.30 | 0.364 | 0.456 |
| 4 or 8 bits, to the nearest | 49.7 | 51,843 | 87.40 | 0.340 | 0.559 |
| 4 or 8 bits, AdaQuant | 49.7 | 51,843 | 87.13 | 0.332 | 0.187 |

At 4 bits restored means and deviations did not lower the loss (0.632 for 0.481), tuned biases did; with 4 or 8 bits
neither did. torchao's ranges are whole ones for weights (its observer per channel looks at the largest value), ours
those of the least square error: that is its 4 bits. Bits were allocated in 7 s on a busy machine; 8 of them went to the
stem, to depthwise and projecting convolutions, and to the classifier.

A super-resolution child, by the command itself: `nas run quantnas-photos`, then
`nas quantize runs/quantnas-photos ca00b8d4da1e`
with --bits 4, 3 or 2, or with --bits 2,4,8 --max-bitops 271M. PSNR x2 on validation, dB; fp32 32.90:

| bits | BitOPs, millions | to the nearest | AdaQuant |
| --- | --- | --- | --- |
| 4 | 271 | 32.83 | 32.86 |
| 2, 4 or 8 | 270 | 32.83 | 32.85 |
| 3 | 153 | 32.72 | 32.81 |
| 2 | 69 | 32.29 | 32.58 |
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.build import load_task, make_supernet
from nas.children.evaluate import Batches, recalibrate, score
from nas.children.quantize import BATCH, CALIBRATION
from nas.config.experiment import load_experiment
from nas.draws import permutation
from nas.quantization.adaquant import calibrate
from nas.quantization.allocate import BitBudget, Costs, allocated, difference, outputs
from nas.quantization.compare import HELD, SENSITIVITY_BATCHES
from nas.quantization.correction import correct
from nas.quantization.graph import fold, total_macs
from nas.tasks.task import Task

CPU, STEPS, SIZE, SHARE = torch.device("cpu"), 900, 128, 0.4


def trained(preset: str, seed: int) -> tuple[nn.Module, Task]:
    """A child trained alone, its batch statistics calibrated; and the task."""
    experiment = load_experiment(preset, [f"seed={seed}"])
    task = load_task(experiment)
    net = make_supernet(experiment, task)
    rng = np.random.default_rng(seed)
    drawn = (net.space.sample(rng) for _ in range(10_000))
    arch = next((arch for arch in drawn if 1.5e6 < net.cost(arch)["macs"] < 2.5e6), None)
    if arch is None:
        raise ValueError(f"{preset}: none of 10,000 draws has 1.5 to 2.5 million MACs; give one whose space has such")
    child = net.extract(arch).train()
    for module in child.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(child.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, STEPS)
    for step in range(STEPS):
        epoch, at = divmod(step * SIZE, len(task.train) - SIZE)
        x, y = task.train.batch(permutation(len(task.train), task.seed, "order", epoch)[at : at + SIZE], epoch)
        optimizer.zero_grad()
        task.loss(child(x), y).backward()
        optimizer.step()
        schedule.step()
    recalibrate(child, Batches(task.train, 1024, 256, CPU, epoch=0))
    return child.eval(), task


def compare(child: nn.Module, task: Task, seed: int) -> None:
    """A line a method."""
    batches: list[Tensor] = [x for x, _ in Batches(task.train, CALIBRATION, BATCH, CPU, epoch=0)]
    test = Batches(task.test, len(task.test), 500, CPU)
    child, _, layers = fold(child, batches[0])
    costs, names = Costs.of(child, layers, total_macs(child, task.input_shape)), [layer.name for layer in layers]
    targets = outputs(child, batches[-HELD:])

    def line(method: str, net: nn.Module, bits: dict[str, int] | None, began: float) -> None:
        figures, seconds = score(net, test, task), time.monotonic() - began
        cost = [costs.total(bits, kind) if bits else None for kind in ("bitops", "bytes")]
        price = f"{cost[0] / 1e6:.1f} M | {cost[1]:,}" if bits else f"{costs.macs * 1024 / 1e6:.1f} M | "
        loss = difference(net, batches[-HELD:], targets)
        row = f"{price} | {figures['accuracy']:.2f} | {figures['cross_entropy']:.3f} | {loss:.3f} | {seconds:.0f}"
        print(f"| {seed} | {method} | {row} |", flush=True)

    line("fp32", child, None, time.monotonic())
    eight, four = dict.fromkeys(names, 8), dict.fromkeys(names, 4)
    budget = BitBudget("bitops", int(SHARE * costs.total(eight, "bitops")))
    began = time.monotonic()
    mixed = allocated(child, costs, (4, 8), budget, batches[:SENSITIVITY_BATCHES])
    wide = ", ".join(name for name in names if mixed[name] == 8)
    print(f"bits allocated in {time.monotonic() - began:.0f} s; 8 bits: {wide}", flush=True)
    line("8 bits, to the nearest", calibrate(child, layers, eight, batches, HELD, 0), eight, time.monotonic())
    if importlib.util.find_spec("torchao"):
        for bits_, width in ((eight, 8), (four, 4)):
            began = time.monotonic()
            line(f"{width} bits, torchao", by_torchao(child, names[0], width, batches), bits_, began)
    for title, bits in (("4 bits", four), ("4 or 8 bits", mixed)):
        began = time.monotonic()
        line(f"{title}, to the nearest", calibrate(child, layers, bits, batches, HELD, 0), bits, began)
        began = time.monotonic()
        net = calibrate(child, layers, bits, batches, HELD, 200)
        line(f"{title}, AdaQuant", net, bits, began)
        net, losses = correct(net, child, names, batches, HELD)
        line(f"{title}, AdaQuant, tuned ({', '.join(f'{k} {v:.3f}' for k, v in losses.items())})", net, bits, began)


def by_torchao(child: nn.Module, first: str, bits: int, batches: list[Tensor]) -> nn.Module:
    """The child as torchao 0.18 quantizes graphs, inputs and weights of so many bits; the first input has 8."""
    from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationSpec
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import QuantizationConfig, X86InductorQuantizer

    def config(width: int) -> Any:
        top, half = 2**width - 1, 2 ** (bits - 1)
        inputs = QuantizationSpec(torch.uint8, HistogramObserver.with_args(eps=2**-12), 0, top, torch.per_tensor_affine)
        observer = PerChannelMinMaxObserver.with_args(eps=2**-12)
        symmetric = torch.per_channel_symmetric
        weights = QuantizationSpec(torch.int8, observer, -half, half - 1, symmetric, ch_axis=0)
        return QuantizationConfig(inputs, None, weights, None)

    quantizer = X86InductorQuantizer().set_global(config(bits)).set_module_name_qconfig(first, config(8))
    shapes = {"x": {0: torch.export.Dim("batch", min=1)}}
    graph = torch.export.export(child, (batches[0],), dynamic_shapes=shapes).module()
    net = prepare_pt2e(graph, quantizer)
    for x in batches:
        net(x)
    return convert_pt2e(net)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bignas-fashion-mnist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="which")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(1)
    print("| seed | method | BitOPs | bytes | test accuracy | cross-entropy | loss | s |\n|" + " --- |" * 8)
    for seed in options.seeds:
        compare(*trained(options.preset, seed), seed)


if __name__ == "__main__":
    main()
