"""The contract that every supernet keeps, and what all of them share. Imports torch alone (the space and sections
besides).

A network is a function of an architecture: `forward` is told the architecture at every call, and no layer remembers it.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nas.config.section import CostOptions
from nas.space import COSTS, Arch, Measure, Number, Space

MAKING = threading.RLock()  # who makes layers that draw nothing; one thread at a time, see `undrawn`


@dataclass(frozen=True)
class Pass:
    """How one forward pass runs: everything that is neither weights, input nor architecture.

    Attributes:
        dropout: probability before the classifier.
        drop_path: largest probability of dropping a residual branch (each family says how it grows with depth).
        quant: ``"off"``, ``"noise"`` or ``"real"``, for families that quantize.
        generator: where the draws of this pass come from; None is torch's own.
    """

    dropout: float = 0.0
    drop_path: float = 0.0
    quant: str = "off"
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class Soft:
    """A mixture of architectures: what a differentiable search trains in place of one. What no slot decides is as in
    the largest network.

    Attributes:
        probabilities: for each of `Supernet.slots` a tensor that sums to one, an axis for each of the slot's choices,
            in the order of their values. They may carry a gradient.
    """

    probabilities: Mapping[str, Tensor]

    def arch(self, net: Supernet) -> Arch:
        """The architecture of each slot's largest probability, the first of equal ones; other choices are as in the
        largest network."""
        picked: dict[str, Number] = dict(net.space.largest())
        for name, choices in net.slots.items():
            table = self.probabilities[name]
            places = torch.unravel_index(table.flatten().argmax(), table.shape)
            picked |= {
                choice: net.space.choices[choice].values[int(place)]
                for choice, place in zip(choices, places, strict=True)
            }
        return net.space.arch(picked)


class Output(NamedTuple):
    """What a supernet with an auxiliary head gives.

    Attributes:
        main: the logits, those that a child gives too.
        aux: logits of the auxiliary head, of training alone: ``(N, Supernet.aux_grid ** 2, classes)``, the cells of a
            grid over the image.
    """

    main: Tensor
    aux: Tensor


class Target(NamedTuple):
    """What the heads of a supernet are to give where that is not the same for both; elsewhere it is a tensor.

    Attributes:
        main: labels mixed for the images, ``(N, classes)``, rows add up to 1.
        aux: of the cells of a grid over them, row by row, ``(N, Supernet.aux_grid ** 2, classes)``.
    """

    main: Tensor
    aux: Tensor


def main_head(output: Tensor | Output) -> Tensor:
    """What a child would give, of whatever a supernet gives."""
    return output.main if isinstance(output, Output) else output


@dataclass(frozen=True)
class PartCost:
    """What a part of a child costs for one input, by the names of `nas.space.COSTS`."""

    macs: int = 0
    params: int = 0
    bitops: int = 0
    bytes: int = 0

    def __add__(self, other: PartCost) -> PartCost:
        macs, params = self.macs + other.macs, self.params + other.params
        return PartCost(macs, params, self.bitops + other.bitops, self.bytes + other.bytes)


def fp32(macs: int, params: int) -> PartCost:
    """The cost of an unquantized part: 32 bits for weights and activations."""
    return PartCost(macs, params, macs * 32 * 32, params * 4)


@runtime_checkable
class QuantizingChild(Protocol):
    """A child of a family that quantizes; its quantizers begin switched on."""

    def quantize(self, on: bool) -> nn.Module:
        """The child itself, with all its quantizers switched on or off."""


class Supernet(nn.Module):
    """A weight-sharing network. A family subclasses it once and gives what raises `NotImplementedError` here.

    Attributes:
        space: what can be chosen.
        input_shape: ``(C, H, W)`` of one example.
        least_side: of inputs that it can work on, pixels.
        aux_grid: side of the grid over the image that the auxiliary head predicts for; 0 where there is no such head.
        mixes_examples: examples of one sub-network influence each other by more than what all sub-networks share (batch
            norm in a part that is searched), so that a few examples of each in one pass are not enough to train it.
        norms_alike: batch norms are the same ones in every child and see the same of each example, as in a stem that is
            not searched: they are calibrated once a supernet, not once a child.
        quantizes: passes with quant "noise" and "real" differ from "off"; a child is a `QuantizingChild`.
        slots: what a differentiable search decides, and the choices that each decides together; empty where there is no
            such search.
        child: the class of an extracted child: an `nn.Module` made of torch layers, built from plain keyword arguments
            that it keeps as ``config`` and that JSON can carry.
        sources: the torch-only files that `child` is defined in, those that others import first; export copies them.
        outputs: the layer that is made for the data, such as a classifier, by its name: another network's is taken
            (``train.init_from``) only where it has the same shape.
    """

    space: Space
    input_shape: tuple[int, int, int]
    least_side: int = 1
    aux_grid: int = 0
    mixes_examples: bool = True
    norms_alike: bool = False
    quantizes: bool = False
    slots: Mapping[str, tuple[str, ...]] = {}
    child: Callable[..., nn.Module]
    sources: tuple[Path, ...]
    outputs: str = ""

    def __init__(self) -> None:
        super().__init__()
        self._cost_of_part: dict[Any, tuple[int, int, int, int]] = {}  # macs, params, bitops, bytes

    def forward(self, x: Tensor, archs: Arch | list[Arch] | Soft, how: Pass = Pass()) -> Tensor | Output:
        """x: ``(N, C, H, W)``, pixels in [0, 1]. A list of A architectures runs local row j by ``archs[j % A]``; `Soft`
        is a mixture.

        Raises:
            ValueError: fewer rows than architectures.
        """
        if isinstance(archs, Arch):
            return self.forward_one(x, archs, how)
        if isinstance(archs, Soft):
            return self.forward_soft(x, archs, how)
        if len(archs) > len(x):
            raise ValueError(f"{len(archs)} architectures for a batch of {len(x)}: give at most one architecture a row")
        return self.forward_many(x, archs, how)

    def forward_one(self, x: Tensor, arch: Arch, how: Pass) -> Tensor | Output:
        """The whole batch through one architecture."""
        raise NotImplementedError

    def forward_many(self, x: Tensor, archs: list[Arch], how: Pass) -> Tensor | Output:
        """Row j through ``archs[j % A]``: here one architecture after the other; a family may know a quicker way."""
        parts = [self.forward_one(x[j :: len(archs)], arch, how) for j, arch in enumerate(archs)]
        if isinstance(parts[0], Output):
            return Output(*(_interleave([part[head] for part in parts], len(x)) for head in (0, 1)))
        return _interleave(parts, len(x))  # type: ignore[arg-type]

    def forward_soft(self, x: Tensor, soft: Soft, how: Pass) -> Tensor | Output:
        """The whole batch through a mixture; for families with `slots`."""
        raise NotImplementedError

    def expected_bitops(self, soft: Soft) -> Tensor:
        """The mean BitOPs of the architectures in a mixture, with gradient; for families with `slots`."""
        raise NotImplementedError

    @property
    def params(self) -> int:
        """How many parameters there are to train, an auxiliary head's included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def windows(self, arch: Arch) -> dict[str, Tensor]:
        """What this child holds that is not the first channels and the centre of the tensor of the same name here, by
        its name there: a part of a tensor with another name, or other channels.

        Names that the child does not have are ignored, so that a family may give those of all children of its
        sizes."""
        return {}

    def translated(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of another network that this one shall begin with, by the names that they have here."""
        return tensors

    def sort_channels(self) -> None:
        """Put channels in order of importance where their order is free, so that smaller children begin with the
        important ones; the largest network computes the same (Cai et al. 2020, "Once for all", section 3.3).

        Nothing by default."""

    def cut(self, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
        """What a child holds by this name, in this shape, of the tensor that lies here: a window of it. A family whose
        children's weights are computed of more than that says so here, with gradient."""
        return window(tensor, shape)

    def child_config(self, arch: Arch) -> dict[str, Any]:
        """The keyword arguments of `child` for this architecture, plain values only."""
        raise NotImplementedError

    def fix(self, arch: Arch, fresh: bool = False) -> Supernet:
        """The same class at the child's sizes, a space of one: what finetune trains. Weights are copied, or as a new
        network has them."""
        raise NotImplementedError

    def parts(self, arch: Arch) -> Iterable[Any]:
        """The child as hashable parts whose costs add up; few of them, so that `cost` is quick."""
        raise NotImplementedError

    def part_cost(self, part: Any) -> PartCost:
        """The cost of one part; called once for each different part."""
        raise NotImplementedError

    def extract(self, arch: Arch) -> nn.Module:
        """The child alone: torch layers with the supernet's weights copied in, its batch statistics not calibrated
        yet."""
        with undrawn():
            child = self.child(**self.child_config(arch))
        child.to(next(self.parameters()).device)
        inherit(child, self, arch)
        return child

    def cost(self, arch: Arch) -> Mapping[str, float]:
        """What that child costs for one input of `input_shape`, by the names of `nas.space.COSTS`; memoised by part."""
        macs = params = bitops = size = 0
        known = self._cost_of_part
        for part in self.parts(arch):
            cost = known.get(part)
            if cost is None:
                found = self.part_cost(part)
                cost = known[part] = found.macs, found.params, found.bitops, found.bytes
            macs += cost[0]
            params += cost[1]
            bitops += cost[2]
            size += cost[3]
        return {"macs": macs, "params": params, "bitops": bitops, "bytes": size}


class Cost:
    """A cost of one's own, such as latency: a pure function of the architecture, and of files whose contents are known.

    A subclass gives `name`, `label` and `__call__`, and `Options` and `tables` where it has some. In an experiment it
    is ``search.costs: [{name: "my_module:MyCost", ...its options}]``; then it may be what a search aims at or is bound
    by.

    Attributes:
        name: its key in constraints, journals and files: small letters, digits, _.
        label: what people call it.
        unit: what it is counted in; empty where the label says it.
        Options: the section of its options, a subclass of `CostOptions`.
        options: those of this one.
    """

    name: str
    label: str
    unit: str = ""
    Options: ClassVar[type[CostOptions]] = CostOptions

    def __init__(self, options: CostOptions) -> None:
        self.options = options

    @property
    def tables(self) -> Sequence[Path]:
        """The files that it reads. A search whose tables have changed is another search."""
        return ()

    @property
    def identity(self) -> dict[str, Any]:
        """What a search's journal is keyed by on its part, as plain JSON: options, measure, the sha256 of each
        table."""
        hashes = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in self.tables}
        tables = {"sha256": hashes} if hashes else {}
        return {**self.options.model_dump(mode="json"), "label": self.label, "unit": self.unit, **tables}

    def __call__(self, net: Supernet, arch: Arch) -> float:
        """The finite number that this child of `net` costs; asked for thousands of architectures, smaller is better."""
        raise NotImplementedError


TAKEN = {  # what files and tables of children call something else
    *("id", "k", "front", "exported", "validation", "exported_validation", "test", "tested", "baselines", "parity"),
    *("metric", "cost", "rows", "seconds", "supernet", "examples", "interval", "seen"),
}


class CostModel:
    """All that children of one network cost: what the network counts, and a user's own costs.

    Args:
        net: the network.
        own: the user's own.

    Raises:
        ValueError: one of these has a name that stands for something else, or that cannot be a name.
    """

    def __init__(self, net: Supernet, own: Iterable[Cost] = ()) -> None:
        self.net, self.own = net, tuple(own)
        self.measures = {name: COSTS.get(name, Measure(name)) for name in net.cost(net.space.smallest())}
        for cost in self.own:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", cost.name):
                raise ValueError(f"a cost is named {cost.name!r}; allowed: small letters, digits and _")
            if cost.name in TAKEN | self.measures.keys():
                raise ValueError(
                    f"a cost is named {cost.name!r}, which stands for something else: give it another name"
                )
            self.measures[cost.name] = Measure(cost.label, cost.unit)

    def __call__(self, arch: Arch) -> Mapping[str, float]:
        """What this child costs, by name.

        Raises:
            ValueError: one of the user's own costs is no finite number.
        """
        figures = self.net.cost(arch)
        if not self.own:
            return figures
        own = {cost.name: cost(self.net, arch) for cost in self.own}
        for name, figure in own.items():
            if not math.isfinite(figure):
                raise ValueError(f"the cost {name!r} of {arch.id} is {figure}; allowed: finite numbers")
        return {**figures, **own}

    @property
    def identity(self) -> dict[str, dict[str, Any]]:
        """What a journal is keyed by on the part of the user's own costs, by name, as plain JSON."""
        return {cost.name: cost.identity for cost in self.own}


def _interleave(parts: list[Tensor], rows: int) -> Tensor:
    """One tensor whose rows ``j :: len(parts)`` are part j."""
    out = parts[0].new_empty((rows, *parts[0].shape[1:]))
    for j, part in enumerate(parts):
        out[j :: len(parts)] = part
    return out


def window(weight: Tensor, shape: torch.Size) -> Tensor:
    """The view of `weight` that a smaller layer shares: the first channels; of a convolution's kernel the centre."""
    for axis, (have, want) in enumerate(zip(weight.shape, shape, strict=True)):
        if have != want:
            start = (have - want) // 2 if axis >= 2 and weight.dim() == 4 else 0
            weight = weight.narrow(axis, start, want)
    return weight


@contextmanager
def undrawn() -> Iterator[None]:
    """Linear layers, convolutions and truncated normals that this thread makes here do not draw what they begin with:
    half of the time that it takes to make a child, which is given all of it, and for a transformer of many weights
    seconds. For what is given all its weights, or asked for its costs alone."""
    this = threading.get_ident()

    def unless_here(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda tensor, *how, **more: tensor if threading.get_ident() == this else draw(tensor, *how, **more)

    with MAKING:
        drawn = {name: getattr(nn.init, name) for name in ("kaiming_uniform_", "uniform_", "trunc_normal_")}
        try:
            for name, draw in drawn.items():
                setattr(nn.init, name, unless_here(draw))
            yield
        finally:
            for name, draw in drawn.items():
                setattr(nn.init, name, draw)


@torch.no_grad()
def inherit(net: nn.Module, supernet: nn.Module, arch: Arch | None = None) -> None:
    """Copy into each parameter and buffer of `net` the window of the supernet's tensor of the same name, or of that in
    `Supernet.windows`; see also `Supernet.cut`.

    A buffer that the supernet does not have (a child's running batch statistics) keeps its own value.

    Args:
        arch: what `net` is; None: as large as the supernet.

    Raises:
        ValueError: the supernet has no parameter of that name, or a smaller one.
    """
    shared = {**dict(supernet.named_parameters()), **dict(supernet.named_buffers())}
    cut: Callable[[str, Tensor, torch.Size], Tensor] = lambda _, tensor, shape: window(tensor, shape)  # noqa: E731
    if isinstance(supernet, Supernet):
        shared |= supernet.windows(arch or supernet.space.largest())
        cut = supernet.cut
    for name, parameter in net.named_parameters():
        if name not in shared:
            near = ", ".join(difflib.get_close_matches(name, shared, n=2)) or "none is near"
            raise ValueError(
                f"the child has a parameter {name!r}, and the supernet none of that name ({near}): a layer has the "
                "same name in both, or `windows` says where it lies"
            )
        try:
            parameter.copy_(cut(name, shared[name], parameter.shape))
        except (RuntimeError, ValueError) as error:
            shapes = f"{tuple(parameter.shape)} in the child and {tuple(shared[name].shape)} in the supernet"
            raise ValueError(f"{name!r} is {shapes}; a child's is a window of it, the first channels") from error
    for name, buffer in net.named_buffers():
        if name in shared:
            buffer.copy_(cut(name, shared[name], buffer.shape))
