"""What every supernet keeps, as functions over one and a batch of images.

    from nas.testing.space import CHECKS, images, ready
    net = ready(my_space("my-size"))
    for check in CHECKS:
        check(net, images(net))

Every check takes the supernet and a batch ``(N, C, H, W)`` of pixels in [0, 1], N even and at least 4, and raises
`AssertionError`.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.children.evaluate import recalibrate
from nas.children.export import bundle, child_packages
from nas.space import Arch
from nas.supernet import Pass, Soft, Supernet, main_head

TOLERANCE = 1e-5  # of fp32 outputs of order 1 that were computed by the same operations on another memory layout
COSTS_A_SECOND = 20_000
LARGE = 50_000_000  # MACs of the largest child above which fewer architectures are run
MOST_PIXELS = 64  # a side of the input, which classifiers resize: real images of 224 pixels would show nothing more

Check = Callable[[Supernet, Tensor], None]


@torch.no_grad()
def ready(net: Supernet, seed: int = 0) -> Supernet:
    """The supernet with every parameter moved off its initial value.

    A block whose last scale starts at zero computes its shortcut, and everything inside it could be wrong without a
    trace.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        spread = 0.2 if parameter.ndim <= 1 else max(0.3 * parameter.std().item(), 0.01)
        parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return net


def images(net: Supernet, seed: int = 5) -> Tensor:
    """Four random images of the network's input shape, at most `MOST_PIXELS` wide: ``(4, C, H, W)`` in [0, 1]."""
    channels, *sides = net.input_shape
    return torch.rand(
        4, channels, *(min(side, MOST_PIXELS) for side in sides), generator=torch.Generator().manual_seed(seed)
    )


def architectures(net: Supernet, random: int, largest: bool = True, seed: int = 1) -> list[Arch]:
    """Different ones: smallest, largest, and some random ones; of an expensive space the smallest and one more."""
    space, rng = net.space, np.random.default_rng(seed)
    samples = [space.sample(rng) for _ in range(random)]
    if net.cost(space.largest())["macs"] > LARGE:
        samples = [space.largest()] if largest else samples[:1]
    else:
        samples.insert(0, space.largest())
    return list(dict.fromkeys([space.smallest(), *samples]))


def one_hot(net: Supernet, arch: Arch) -> Soft:
    """The mixture that is one architecture."""
    tables = {}
    for slot, choices in net.slots.items():
        values = [net.space.choices[choice].values for choice in choices]
        tables[slot] = torch.zeros([len(v) for v in values])
        tables[slot][tuple(v.index(arch[choice]) for choice, v in zip(choices, values, strict=True))] = 1
    return Soft(tables)


def kinds(net: Supernet) -> list[str]:
    """What `Pass.quant` may be where a child must give the same."""
    return ["off", "real"] if net.quantizes else ["off"]


def cut(net: Supernet, arch: Arch, quant: str = "off") -> nn.Module:
    """The extracted child on batch statistics, its quantizers (if any) on or off."""
    child = net.extract(arch).train()
    return child.quantize(quant == "real") if net.quantizes else child  # type: ignore[operator]


def assert_equal(found: Tensor, wanted: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Largest difference at most `tolerance` of the largest value, or of 1."""
    assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)} instead of {tuple(wanted.shape)}"
    apart, scale = (found - wanted).abs().max().item(), max(1.0, wanted.abs().max().item())
    assert apart <= tolerance * scale, f"{what}: {apart:.3g} apart, where values reach {scale:.3g}"


@torch.no_grad()
def run(net: Supernet, x: Tensor, archs: Arch | list[Arch] | Soft, how: Pass = Pass()) -> Tensor:
    """The main logits."""
    return main_head(net(x, archs, how))


@torch.no_grad()
def check_extracted(net: Supernet, x: Tensor) -> None:
    """``extract(a)`` gives what the supernet gives, both on batch statistics; outputs tell inputs and architectures
    apart.

    Look at `child_config` (a size of the child's that is not the architecture's), at a window of a weight that
    `forward_one` takes elsewhere than `nas.supernet.window`, and at a parameter whose name in the child is another
    than in the supernet.
    """
    last: list[Tensor] = []  # of the last kind: with quantizers, where bits may be all that differs
    for arch in architectures(net, random=6):
        outputs: list[Tensor] = []
        for quant in kinds(net):
            outputs.append(run(net, x, arch, Pass(quant=quant)))
            assert outputs[-1].std(0).max() > 1e-3, f"{arch}: every example gets the same output"
            assert_equal(cut(net, arch, quant)(x), outputs[-1], f"extract({arch}), quantizers {quant}")
        if net.quantizes and net.child_config(arch) != net.child_config(net.space.largest()):
            assert (outputs[-1] - outputs[-2]).abs().max() > 1e-4, f"{arch}: quantizers do nothing"
        last.append(outputs[-1])
    assert all((last[0] - other).abs().max() > 1e-3 for other in last[1:]), "another architecture gives the same output"


@torch.no_grad()
def check_copied(net: Supernet, x: Tensor) -> None:
    """An extracted and a fixed child own their weights: changing them changes nothing in the supernet.

    Look at `inherit`: a child must copy values, never share a tensor.
    """
    arch = net.space.smallest()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for child in (net.extract(arch), net.fix(arch)):
        for parameter in child.parameters():
            parameter.fill_(float("nan"))
    shared = [name for name, value in net.state_dict().items() if not torch.equal(before[name], value)]
    assert not shared, f"changing a child changed the supernet's {', '.join(shared[:5])}"


@torch.no_grad()
def check_fixed(net: Supernet, x: Tensor) -> None:
    """``fix(a)`` is the same class, a space of that one architecture, with the same outputs, cost and child.

    Look at `fix`: the space of the new network holds one value for each choice, and everything else is as in this
    network.
    """
    for arch in architectures(net, random=3, largest=False):
        fixed = net.fix(arch)
        assert type(fixed) is type(net), f"fix({arch}) is a {type(fixed).__name__}, the supernet a {type(net).__name__}"
        assert fixed.space.cardinality == 1, (
            f"the space of fix({arch}) has {fixed.space.cardinality} architectures instead of 1"
        )
        only = fixed.space.smallest()
        assert only == arch == fixed.space.largest(), f"the space of {arch} holds {only}"
        for quant in kinds(net):
            assert_equal(run(fixed, x, only, Pass(quant=quant)), run(net, x, arch, Pass(quant=quant)), f"fix({arch})")
        same("input_shape", fixed.input_shape, net.input_shape)
        same("cost", fixed.cost(only), net.cost(arch))
        same("child_config", fixed.child_config(only), net.child_config(arch))
        same("aux_grid", fixed.aux_grid, net.aux_grid)
        assert net.fix(arch, fresh=True).child_config(only) == net.child_config(arch), (
            "fresh weights, but the data's own mean"
        )


def same(what: str, found: object, wanted: object) -> None:
    """One fact of a fixed network and of its supernet."""
    assert found == wanted, f"{what} of the fixed network is {found}, of the supernet {wanted}"


@torch.no_grad()
def check_many(net: Supernet, x: Tensor) -> None:
    """In a list of A architectures row j runs ``archs[j % A]``.

    Every image stands A times in a row, so that statistics over the whole batch and over the rows of one architecture
    are the same and the child alone must agree, whatever its family shares. Where examples do not mix, different
    images must agree too.

    Look at `forward_many`, and at whether `mixes_examples` is true.
    """
    archs = architectures(net, random=2, largest=False)
    out = run(net, x.repeat_interleave(len(archs), 0), archs)
    for j, arch in enumerate(archs):
        assert_equal(out[j :: len(archs)], cut(net, arch)(x), f"rows {j}::{len(archs)} of a list, {arch}")
    if not net.mixes_examples:
        uneven = [archs[0], archs[-1], archs[0]]  # rows do not divide evenly, an architecture stands twice
        out = run(net, x, uneven)
        for j, arch in enumerate(uneven):
            assert_equal(out[j::3], cut(net, arch)(x)[j::3], f"rows {j}::3 of the shared batch, {arch}")
    try:
        run(net, x, [archs[0]] * (len(x) + 1))
    except ValueError:
        return
    raise AssertionError("more architectures than rows were accepted")


def check_norms(net: Supernet, x: Tensor) -> None:
    """Where `norms_alike` is true, every child's batch norms find the same statistics, to the bit.

    Look for a batch norm behind something that is searched.
    """
    if net.norms_alike:
        first, *others = architectures(net, random=2, largest=False)
        wanted = recalibrate(net.extract(first), [(x, x)])
        for arch in others:
            found = recalibrate(net.extract(arch), [(x, x)])
            strange = found.keys() ^ wanted.keys() or {n for n in found if not torch.equal(found[n], wanted[n])}
            assert not strange, f"norms_alike is true, and in {first} and {arch} differ: {', '.join(sorted(strange))}"


def check_device(net: Supernet, x: Tensor) -> None:
    """A child lives where its supernet does: on a GPU in a search there, here on the device that every machine has.

    Look for a tensor that `child` makes and that is neither parameter nor buffer.
    """
    elsewhere = copy.deepcopy(net)
    for module in elsewhere.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.to("meta")))
    child = elsewhere.extract(net.space.smallest())
    left = [f"{name} on {tensor.device}" for name, tensor in child.state_dict().items() if not tensor.is_meta]
    assert not left, f"the supernet is on meta, of its child {', '.join(left[:5])}"


def check_cost(net: Supernet, x: Tensor) -> None:
    """MACs are half of the operations that torch counts on the meta device, parameters those that the child has.

    Look at `parts` and `part_cost`: a layer that is left out or counted twice, the side of a feature map after a
    stride, a bias.
    """
    for arch in architectures(net, random=8):
        with torch.device("meta"):
            child = net.child(**net.child_config(arch)).eval()
        with FlopCounterMode(display=False) as counter:
            child(torch.empty(1, *net.input_shape, device="meta"))
        cost, params = net.cost(arch), sum(parameter.numel() for parameter in child.parameters())
        found, wanted = (cost["macs"], cost["params"]), (counter.get_total_flops() / 2, params)
        assert found == wanted, (
            f"cost({arch}) says {found[0]:,} MACs and {found[1]:,} parameters; "
            f"the child has {wanted[0]:,.15g} and {wanted[1]:,}"
        )


def check_order(net: Supernet, x: Tensor) -> None:
    """smallest <= any <= largest: in MACs, or in BitOPs where bits vary.

    Look at the order of each choice's values: the first is the smallest network's, the last the largest's.
    """
    rng = np.random.default_rng(2)
    costs = [
        net.cost(net.space.smallest()),
        *(net.cost(net.space.sample(rng)) for _ in range(500)),
        net.cost(net.space.largest()),
    ]
    by_bits = any(cost["bitops"] != 1024 * cost["macs"] for cost in costs)
    figures = [cost["bitops"] if by_bits else cost["macs"] for cost in costs]
    what = "BitOPs" if by_bits else "MACs"
    assert figures[0] == min(figures), f"the smallest network has {figures[0]:,} {what}, another one {min(figures):,}"
    assert figures[-1] == max(figures), f"the largest network has {figures[-1]:,} {what}, another one {max(figures):,}"


def check_json(net: Supernet, x: Tensor) -> None:
    """Architecture and child survive JSON: the same value and id, the same network bit for bit.

    Look at what `child` keeps as ``config``, and for numbers of numpy or tuples in `child_config`.
    """
    for arch in architectures(net, random=3, largest=False):
        back = net.space.arch(json.loads(json.dumps(dict(arch))))
        assert back == arch and back.id == arch.id and hash(back) == hash(arch), f"{arch} came back from JSON as {back}"
        assert list(back) == list(arch), "the order of choices changed"
        child = net.extract(arch).train()
        config = net.child_config(arch)
        assert json.loads(json.dumps(config)) == config == child.config, (
            "a child's config must hold plain values and be kept as `config`"
        )
        rebuilt = net.child(**json.loads(json.dumps(config)))
        rebuilt.load_state_dict(child.state_dict())
        with torch.no_grad():
            assert torch.equal(rebuilt.train()(x), child(x)), (
                f"the child of {arch}, built again from its config, gives another output"
            )


def check_speed(net: Supernet, x: Tensor) -> None:
    """At least `COSTS_A_SECOND`, each architecture seen for the first time. CPU time, best of several, up to the first
    that is enough: others may be at work here.

    Look at `parts`: a few hashable tuples, and nothing computed in them that `part_cost` could remember.
    """
    rng = np.random.default_rng(3)
    best = 0.0
    for _ in range(100):  # the first ones also fill the memory of parts; short ones, since a neighbour slows long ones
        archs = [net.space.sample(rng) for _ in range(200)]
        start = time.process_time()
        for arch in archs:
            net.cost(arch)
        best = max(best, len(archs) / (time.process_time() - start))
        if best >= COSTS_A_SECOND:
            return
    raise AssertionError(f"{best:,.0f} costs a second; at least {COSTS_A_SECOND:,} are needed")


def check_forgets(net: Supernet, x: Tensor) -> None:
    """Layers remember nothing of an architecture or a pass, and a plain pass draws nothing.

    Look for a layer that keeps a size, a statistic or a mask between calls, and for a draw without the pass's
    generator.
    """
    first, *others = architectures(net, random=2, largest=False) * 2  # where there is but one, it comes after itself
    before = {name: value.clone() for name, value in net.state_dict().items()}
    drawn = torch.get_rng_state()
    wanted = run(net, x, first)
    for other in others:
        for quant in ("off", "noise", "real"):
            run(
                net, x, other, Pass(dropout=0.3, drop_path=0.3, quant=quant, generator=torch.Generator().manual_seed(0))
            )
        run(net, x, [other, first])
        assert torch.equal(run(net, x, first), wanted), f"after {other} the smallest child gives something else"
    training = net.training
    assert torch.equal(run(net.eval(), x, first), run(net.train(), x, first)), (
        "train() and eval() differ: a Pass says all there is"
    )
    net.train(training)
    assert torch.equal(torch.get_rng_state(), drawn), "something drew from torch's global generator"
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items()), (
        "a forward pass changed a buffer"
    )


def check_draws(net: Supernet, x: Tensor) -> None:
    """Dropout and noise draw from the pass's generator alone, so that the same one gives the same output.

    Look for dropout or noise that draws from torch's global generator, or is not applied at all.
    """
    arch = net.space.largest()
    outputs: list[Tensor] = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(outputs))
        outputs.append(
            run(
                net,
                x,
                arch,
                Pass(dropout=0.5, drop_path=0.5, quant="noise", generator=torch.Generator().manual_seed(seed)),
            )
        )
    assert torch.equal(outputs[0], outputs[1]), "the same generator gave two outputs"
    assert not torch.equal(outputs[0], outputs[2]), (
        "another generator gave the same output: nothing is dropped at dropout and drop_path 0.5"
    )


def check_gradients(net: Supernet, x: Tensor) -> None:
    """The smallest child's gradient is the extracted child's, and zero outside of its window.

    Look at layers that read weights outside of the child's window, masks in place of slices for example.
    """
    arch, quant = net.space.smallest(), kinds(net)[-1]  # real quantizers have all parameters in the output
    child = cut(net, arch, quant)
    weights = torch.randn(len(x), generator=torch.Generator().manual_seed(4))
    net.zero_grad()
    (main_head(net(x, arch, Pass(quant=quant))).square().flatten(1).sum(1) * weights).sum().backward()
    (child(x).square().flatten(1).sum(1) * weights).sum().backward()
    held = {**dict(net.named_parameters()), **net.windows(arch)}
    views = {name: net.cut(name, held[name], own.shape) for name, own in child.named_parameters()}
    for name, own in child.named_parameters():
        assert own.grad is not None, f"{name} has no part in the child's output"
    parameters = dict(net.named_parameters())

    def spread(values: list[Tensor]) -> list[Tensor]:
        """Values of the child's parameters, at their places in the supernet's."""
        found = torch.autograd.grad(
            list(views.values()), list(parameters.values()), values, allow_unused=True, retain_graph=True
        )
        return [
            torch.zeros_like(p) if part is None else part for p, part in zip(parameters.values(), found, strict=True)
        ]

    inside = spread([torch.ones_like(own) for own in views.values()])
    wanted = spread([own.grad for own in child.parameters()])  # type: ignore[misc]
    for (name, parameter), mask, gradient in zip(parameters.items(), inside, wanted, strict=True):
        have = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert not have[mask == 0].any(), f"{name} has a gradient outside of the smallest child's window"
        if mask.any():
            assert_equal(have, gradient, f"gradient of {name}", 1e-3)
    net.zero_grad()


def check_sources(net: Supernet, x: Tensor) -> None:
    """`sources` bundled into one file import nothing of raynas and give the child's class: what export relies on.

    Look at `sources`: every file that the child's class needs but torch, those that others import first. The class
    itself is in ``my_module_child.py`` beside ``my_module.py``.
    """
    package, home = type(net).__module__.split(".")[0], net.extract(net.space.smallest()).__class__.__module__
    allowed = child_packages(package)
    assert home.split(".")[0] in allowed, (
        f"the child's class is in {home}; children are loaded from {', '.join(allowed[1:])}"
    )
    source = bundle(net.sources)
    for node in ast.walk(ast.parse(source)):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        assert not {name.split(".")[0] for name in names} & {"nas", "searchspaces"}, (
            f"the child imports {', '.join(names)}"
        )
    room = _imported(source)
    arch = net.space.smallest()
    child = net.extract(arch).train()
    alone: nn.Module = vars(room)[type(child).__name__](**net.child_config(arch))
    alone.load_state_dict(child.state_dict())
    with torch.no_grad():
        assert torch.equal(alone.train()(x), child(x)), "the child that the bundled sources build gives another output"


def _imported(source: str) -> ModuleType:
    """A module of this text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.py")
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("model", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@torch.no_grad()
def check_mixture(net: Supernet, x: Tensor) -> None:
    """A mixture of one architecture is that architecture, under noise from the same generator too, and costs what it
    costs.

    Look at `forward_soft` and `expected_bitops`.
    """
    if not net.slots:
        return
    decided, largest = {choice for choices in net.slots.values() for choice in choices}, net.space.largest()
    beside = {name: value for name, value in largest.items() if name not in decided}
    for drawn in architectures(net, random=2, largest=False):
        arch = net.space.arch({**drawn, **beside})
        soft = one_hot(net, arch)
        assert soft.arch(net) == arch
        assert net.expected_bitops(soft).item() == net.cost(arch)["bitops"]
        for quant in ("off", "noise", "real"):
            hard, mixed = (
                run(net, x, which, Pass(quant=quant, generator=torch.Generator().manual_seed(6)))
                for which in (arch, soft)
            )
            assert_equal(mixed, hard, f"the mixture of {arch} alone, quantizers {quant}")


CHECKS: tuple[Check, ...] = (
    check_extracted,
    check_copied,
    check_fixed,
    check_many,
    check_norms,
    check_device,
    check_cost,
    check_order,
    check_json,
    check_speed,
    check_forgets,
    check_draws,
    check_gradients,
    check_sources,
    check_mixture,
)
