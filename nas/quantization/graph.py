"""What a child is made of, read from its graph: layers in the order they run, what follows them, batch norms folded into them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from nas.quantization.integer import KINDS

aten = torch.ops.aten
LAYERS = (aten.conv2d.default, aten.conv2d.padding, aten.linear.default)
ORDERS = (aten.contiguous.default, aten.clone.default)  # the same tensor in another order of memory
RELUS = (aten.relu.default, aten.relu_.default)
MOVES = {  # the same numbers elsewhere, or some of them
    *ORDERS,
    *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.transpose.int, aten.permute.default),
    *(aten.pixel_shuffle.default, aten.slice.Tensor, aten.select.int, aten.max_pool2d.default, aten.squeeze.dims, aten.unsqueeze.default),
}


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a child that runs once in a pass; others stay as they are.

    Attributes:
        name: of the module.
        macs: multiply-accumulates for one example.
        weights: how many.
        channels: that come out.
        first: it sees the network's input, through no other layer.
        conv: whether it is a convolution.
        relu: a ReLU alone reads its output.
        source: the convolution whose output it sees, moved about or through that ReLU, but not computed with; empty where there is none.
    """

    name: str
    macs: int
    weights: int
    channels: int
    first: bool
    conv: bool
    relu: bool
    source: str


def plain(child: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy of a child without the quantizers that it was trained with, and the names of the layers that had them.

    Such a layer has a method ``float_layer()``, which gives a module that is called the same way and computes without them, made of torch's
    own layers.
    """
    child = copy.deepcopy(child)
    names = [name for name, module in child.named_modules() if hasattr(module, "float_layer")]
    for name in names:
        child.set_submodule(name, child.get_submodule(name).float_layer())  # type: ignore[operator]
    return child, names


def fold(child: nn.Module, x: Tensor) -> tuple[nn.Module, tuple[str, ...], tuple[Layer, ...]]:
    """A copy of a child in evaluation mode whose batch norms are folded into the layers before them, wherever nothing else reads these.

    Args:
        x: some examples of its input, ``(n, ...)``, at least two.

    Returns:
        The copy; the names of its former batch norms, which do nothing now; its layers in the order they run.

    Raises:
        ValueError: there is no convolution and no linear layer.
    """
    child = copy.deepcopy(child).cpu().eval().requires_grad_(False)
    program = torch.export.export(child, (x[:2].cpu(),))
    owner = {node: name.rpartition(".")[0] for node, name in program.graph_signature.inputs_to_parameters.items()}
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    calls = [(n, owner.get(str(n.args[1]), "")) for n in nodes if n.target in LAYERS]
    norms = Counter(owner.get(str(n.args[1]), "") for n in nodes if n.target == aten.batch_norm.default)
    times, folded = Counter(name for _, name in calls), {}
    calls = [(n, name) for n, name in calls if name and times[name] == 1 and type(child.get_submodule(name)) in KINDS]
    for node, name in calls:
        reader = _only_reader(node, ORDERS)
        if reader is not None and reader.target == aten.batch_norm.default and norms[norm := owner.get(str(reader.args[1]), "")] == 1 and norm:
            layer: Any = child.get_submodule(name)
            fuse: Any = fuse_conv_bn_eval if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval
            child.set_submodule(name, fuse(layer, child.get_submodule(norm)))
            child.set_submodule(norm, nn.Identity())
            folded[reader] = norm
    if not calls:
        raise ValueError(f"{type(child).__name__} has no Conv2d and no Linear layer that runs once: there is nothing to quantize")
    return child, tuple(folded.values()), tuple(_layer(child, node, dict(calls), set(folded)) for node, _ in calls)


def _layer(child: nn.Module, node: Any, calls: dict[Any, str], folded: set[Any]) -> Layer:
    weight: Tensor = child.get_submodule(calls[node]).weight  # type: ignore[assignment]
    macs = node.meta["val"].numel() // 2 * weight[0].numel()
    origin = node.args[0]
    while origin.target in MOVES or origin.target in RELUS or origin in folded:
        origin = origin.args[0]
    source = calls[origin] if origin in calls and child.get_submodule(calls[origin]).weight.dim() == 4 else ""  # type: ignore[union-attr,operator]
    first = not any(other in _ancestors(node) for other in calls)
    reader = _only_reader(node, MOVES, folded)
    relu = reader is not None and reader.target in RELUS
    return Layer(calls[node], macs, weight.numel(), len(weight), first, weight.dim() == 4, relu, source)


def _only_reader(node: Any, moves: Collection[Any], folded: Collection[Any] = ()) -> Any:
    """What alone reads this layer's output, behind what only moves it; None where there are several."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.target not in moves and node not in folded:
            return node
    return None


def _ancestors(node: Any) -> set[Any]:
    found, todo = set(), list(node.all_input_nodes)
    while todo:
        if (one := todo.pop()) not in found:
            found.add(one)
            todo += one.all_input_nodes
    return found


def total_macs(child: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates for one example of `shape`, all matrix products included."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        copy.deepcopy(child).to("meta")(torch.empty(1, *shape))
    return counter.get_total_flops() // 2
