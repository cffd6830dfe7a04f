"""Checks of the networks alone: torch and numpy, no Ray, no DeepSpeed, no pydantic. Torch 2.11 and later.

Each takes the device, and whether to be small, as in the suite; it gives what it found as a line for a table, and
raises AssertionError where that is wrong.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import median
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if find_spec("pydantic") is None:  # a machine where nothing is installed: the networks name one class of it, for others
    sys.modules["nas.config.section"] = ModuleType("sections")
    sys.modules["nas.config.section"].CostOptions = object  # type: ignore[attr-defined]

from nas.device import MemoryShort, autocast, enough_memory, exact, synchronise
from nas.space import Arch
from nas.supernet import Pass, Soft, Supernet, main_head
from nas.tasks import mixing
from searchspaces import bignas, quantnas, vit_resnas
from tests.benchmarks.peer_space import peer_space

Archs = Arch | list[Arch]

EXACT = 1e-3  # of the largest gradient: fp32 against double, through batch norms of a few images
ROUNDED = {"fp32": 0.05, "bf16": 0.3}  # the same in TF32 and in bf16, whose mantissas have 10 and 7 bits
RATE = 1e-4  # of the steps that are timed only
GIGABYTE = 1 << 30


def settled(net: Supernet) -> Supernet:
    """With every parameter moved off its first value: a block whose last scale is zero would compute its shortcut."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = 0.2 if parameter.ndim <= 1 else max(0.3 * parameter.std().item(), 0.01)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return net


def families() -> dict[str, tuple[Supernet, list[Archs]]]:
    """A small supernet of each family and the passes of a step of its recipe."""
    torch.manual_seed(0)
    rng, found = np.random.default_rng(0), dict[str, tuple[Supernet, list[Archs]]]()
    for name, net in (
        ("bignas", peer_space()),
        ("vit-resnas", vit_resnas.supernet("d8")),
        ("vit-resnas masked", vit_resnas.supernet("d8", multi="masked")),
        ("quantnas", quantnas.supernet("rfdn-c12")),
    ):
        space = net.space
        archs: list[Archs] = [space.largest(), space.sample(rng), space.smallest()]
        if not net.mixes_examples:
            archs = [[space.sample(rng) for _ in range(4)]]
        found[name] = settled(net), archs
    return found


def learnt(
    net: Supernet, x: Tensor, passes: Sequence[Archs], precision: str = "fp32"
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of one step, and the gradient of each parameter, in double on the CPU."""
    net.zero_grad(set_to_none=True)
    losses = []
    for archs in passes:
        with autocast(x.device, precision):
            output = main_head(net(x, archs))
        losses.append(output.double().square().mean())
        losses[-1].backward()
    gradients = {name: p.grad.double().cpu() for name, p in net.named_parameters() if p.grad is not None}
    return torch.stack(losses).detach().cpu(), gradients


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference, as a share of the largest value."""
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    largest = max(float(value.abs().max()) for value in wanted.values())
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted) / largest


def step(device: torch.device, small: bool) -> str:
    """A step's losses and gradients in fp32 against double precision on the CPU, all families."""
    told = []
    for name, (net, passes) in families().items():
        x = torch.rand(8, *net.input_shape, generator=torch.Generator().manual_seed(1))
        losses, wanted = learnt(copy.deepcopy(net).double(), x.double(), passes)
        with exact():
            found_losses, found = learnt(net.to(device), x.to(device), passes)
        torch.testing.assert_close(found_losses, losses, rtol=EXACT, atol=0)
        assert (off := apart(found, wanted)) < EXACT, f"{name}: gradients are {off:.2g} of the largest apart"
        told.append(f"{name} {off:.1e}")
    return "gradients apart, of the largest: " + ", ".join(told)


def children(device: torch.device, small: bool) -> str:
    """Extracted children against the supernet on the same device, and against themselves on the CPU."""
    told = []
    for name, (net, passes) in families().items():
        archs = [arch for each in passes for arch in (each if isinstance(each, list) else [each])]
        x, most = torch.rand(8, *net.input_shape, generator=torch.Generator().manual_seed(1)), 0.0
        here = copy.deepcopy(net).to(device)
        for arch in archs:
            with exact(), torch.no_grad():
                child = here.extract(arch).train()
                if net.quantizes:
                    child.quantize(False)  # type: ignore[operator]
                found, cut = main_head(here(x.to(device), arch)).cpu(), child(x.to(device)).cpu()
                again = child.cpu()(x)
            largest = float(found.abs().max())
            most = max(most, *(float((a - b).abs().max()) / largest for a, b in ((found, cut), (cut, again))))
        assert most < EXACT, f"{name}: outputs are {most:.2g} of the largest apart"
        told.append(f"{name} {most:.1e}")
    return "outputs apart, of the largest: " + ", ".join(told)


def draws(device: torch.device, small: bool) -> str:
    """Dropout, dropped branches, noise, mixtures of architectures and mixed images, drawn by a generator of the device:
    the same again from the same seed, and others from another."""

    def output(net: Supernet, archs: Archs | Soft, seed: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        x, y = torch.rand(8, *net.input_shape, generator=generator, device=device), torch.arange(8, device=device)
        mixed, _ = mixing.mix(x, y, 10, net.aux_grid, generator)
        quant = "noise" if net.quantizes else "off"
        return main_head(net(mixed, archs, Pass(0.2, 0.2, quant, generator))).detach().cpu()

    for name, (net, passes) in families().items():
        net.to(device)
        which: list[Archs | Soft] = [*passes]
        if net.slots:
            shapes = {slot: [len(net.space.choices[c].values) for c in choices] for slot, choices in net.slots.items()}
            which.append(
                Soft({n: torch.full(shape, 1 / math.prod(shape), device=device) for n, shape in shapes.items()})
            )
        for archs in which:
            first, again, other = (output(net, archs, seed) for seed in (0, 0, 1))
            torch.testing.assert_close(first, again, rtol=ROUNDED["fp32"], atol=EXACT)
            assert first.isfinite().all() and not torch.allclose(first, other), name
    return "the same from the same seed"


def precision(device: torch.device, small: bool) -> str:
    """The same step as training runs it: in TF32 on a GPU, and under bf16; weights and gradients stay fp32."""
    told = []
    for name, (net, passes) in families().items():
        x = torch.rand(8, *net.input_shape, generator=torch.Generator().manual_seed(1))
        _, wanted = learnt(copy.deepcopy(net).double(), x.double(), passes)
        net.to(device)
        for kind, most in ROUNDED.items():
            _, found = learnt(net, x.to(device), passes, kind)
            assert {p.dtype for p in net.parameters()} == {p.grad.dtype for p in net.parameters() if p.grad is not None}
            assert (off := cosine(found, wanted)) < most, f"{name}, {kind}: gradients turned by {off:.2g}"
            told.append(f"{name} {kind} {off:.1e}")
    return "1 - cosine of the gradient with the exact one: " + ", ".join(told)


def cosine(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """1 - cosine of the angle between two gradients: 0 where they point the same way."""
    a, b = (torch.cat([each[name].flatten() for name in wanted]) for each in (found, wanted))
    return 1 - float(F.cosine_similarity(a, b, dim=0))


def seconds(work: Callable[[], object], device: torch.device, times: int) -> float:
    """The median time of some calls, after two that warm up."""
    taken = []
    for _ in range(times + 2):
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        taken.append(time.perf_counter() - began)
    return median(taken[2:])


def sandwich(passes: Sequence[Callable[[Tensor], Tensor]], x: Tensor, y: Tensor, kind: str) -> None:
    """Forward and backward of the largest on labels, of the others on its soft labels."""
    with autocast(x.device, kind):
        teacher = passes[0](x)
    F.cross_entropy(teacher.float(), y).backward()
    soft = teacher.detach().float().softmax(-1)
    for child in passes[1:]:
        with autocast(x.device, kind):
            output = child(x)
        F.cross_entropy(output.float(), soft).backward()


def four(net: Supernet, rng: np.random.Generator) -> list[Arch]:
    space = net.space
    return [space.largest(), space.sample(rng), space.sample(rng), space.smallest()]


def static(device: torch.device, small: bool) -> str:
    """A sandwich step against the same four children as static networks, drawn anew each time."""
    batch, times = (8, 2) if small else (256, 12)
    told = []
    for kind in ("fp32", "bf16"):
        net, rng = peer_space().to(device), np.random.default_rng(0)
        x, y = torch.rand(batch, *net.input_shape, device=device), torch.randint(0, 10, (batch,), device=device)
        ratios = [against_static(net, four(net, rng), x, y, kind) for _ in range(times)]
        told.append(f"{kind} {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"elastic step / static children, batch {batch}: " + ", ".join(told)


def against_static(net: Supernet, archs: list[Arch], x: Tensor, y: Tensor, kind: str) -> float:
    """The time of a sandwich step, as a share of what the extracted children take."""
    elastic = [lambda x, arch=arch: main_head(net(x, arch)) for arch in archs]
    fixed = [net.extract(arch).train() for arch in archs]
    ours, theirs = (seconds(lambda run=run: sandwich(run, x, y, kind), x.device, 1) for run in (elastic, fixed))  # type: ignore[misc]
    return ours / theirs


def rates(net: Supernet, batch: int, times: int, device: torch.device, work: Callable[..., object]) -> str:
    """Images a second of steps of `work(x, y, precision, step)`, in fp32 and in bf16, and the most memory they took."""
    optimizer, told = torch.optim.SGD(net.parameters(), RATE, momentum=0.9), []
    x, y = torch.rand(batch, *net.input_shape, device=device), torch.randint(0, 10, (batch,), device=device)

    for kind in ("fp32", "bf16"):
        numbers = iter(range(times + 2))

        def once(kind: str = kind, numbers: object = numbers) -> None:
            work(x, y, kind, next(numbers))  # type: ignore[call-overload]
            optimizer.step()
            optimizer.zero_grad()

        taken = seconds(once, device, times)
        told.append(f"{kind} {batch / taken:,.0f} images/s")
        if device.type == "cuda":
            told[-1] += f" and {torch.cuda.max_memory_allocated(device) / GIGABYTE:.1f} GiB"
            torch.cuda.reset_peak_memory_stats(device)
    return ", ".join(told)


def fitting(work: Callable[[int], str], batches: Sequence[int]) -> str:
    """What comes of the first of these batches that the card has room for, the largest first."""
    for batch in batches[:-1]:
        try:
            return work(batch)
        except torch.OutOfMemoryError:
            pass
        torch.cuda.empty_cache()
    return work(batches[-1])


def attentivenas(device: torch.device, small: bool) -> str:
    """Sandwich steps of the published BigNAS space at 224 pixels: images a second and the most memory."""
    net = bignas.supernet("p64" if small else "attentivenas", image=64 if small else 224).to(device)
    rng = np.random.default_rng(0)

    def work(x: Tensor, y: Tensor, kind: str, number: int) -> None:
        sandwich([lambda x, arch=arch: main_head(net(x, arch)) for arch in four(net, rng)], x, y, kind)

    def measured(batch: int) -> str:
        return f"{net.input_shape[-1]} px, batch {batch}: {rates(net, batch, 1 if small else 8, device, work)}"

    return fitting(measured, [4] if small else [64, 32, 16, 8])


def multi_arch(device: torch.device, small: bool) -> str:
    """Sixteen sub-networks of ViT-ResNAS in one pass at 224 pixels, by either way to run them."""
    ways = [sixteen(multi, device, small) for multi in ("grouped", "masked")]
    return f"{4 if small else 16} sub-networks: " + "; ".join(ways)


def sixteen(multi: str, device: torch.device, small: bool) -> str:
    """Steps of the one way or the other, with sub-networks drawn anew at each."""
    count = 4 if small else 16
    net = vit_resnas.supernet("d8" if small else "tiny", multi=multi).to(device)
    rng = np.random.default_rng(0)
    drawn = [[net.space.sample(rng) for _ in range(count)] for _ in range(12)]

    def work(x: Tensor, y: Tensor, kind: str, number: int) -> None:
        with autocast(x.device, kind):
            output = main_head(net(x, drawn[number]))
        F.cross_entropy(output.float(), y).backward()

    def measured(batch: int) -> str:
        told = rates(net, batch, 1 if small else 8, device, work)
        return f"{multi}, {net.input_shape[-1]} px, batch {batch}: {told}"

    return fitting(measured, [8] if small else [128, 64, 32, 16])


def memory(device: torch.device, small: bool) -> str:
    """More than the card has is answered with the keys to lower, and the card can be used afterwards."""
    layer = nn.Linear(8, 8).to(device)
    with pytest.raises(MemoryShort, match="lower train.micro_batch") as told, enough_memory("lower train.micro_batch"):
        if device.type == "cuda":
            torch.empty(1 << 46, dtype=torch.uint8, device=device)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 TiB. Of the allocated memory ...")
    assert layer(torch.ones(1, 8, device=device)).isfinite().all()
    return str(told.value).replace("\n", " ")
