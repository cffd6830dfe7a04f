"""The graph of a child: its layers in the order they run, what follows them, and batch norms folded into them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from nas.quantization.integer import QUANTIZABLE, HasFloatLayer, IntegerLayer

aten = torch.ops.aten
LAYERS = (aten.conv2d.default, aten.conv2d.padding, aten.linear.default)
ORDERS = (aten.contiguous.default, aten.clone.default)  # the same tensor in another order of memory
RELUS = (aten.relu.default, aten.relu_.default)
MOVES = {  # the same numbers elsewhere, or some of them
    *ORDERS,
    *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.transpose.int),
    *(aten.permute.default, aten.pixel_shuffle.default, aten.slice.Tensor, aten.select.int, aten.max_pool2d.default),
    *(aten.squeeze.dims, aten.unsqueeze.default),
}


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a child that runs once in a pass: what can be quantized.

    Attributes:
        name: of the module.
        macs: multiply-accumulates for one example.
        weights: how many.
        channels: that come out.
        first: it sees the network's input, through no other layer.
        conv: whether it is a convolution.
        relu: a ReLU alone reads its output.
        source: the convolution whose output it sees, moved about or through that ReLU, but not computed with; empty
            where there is none.
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
    """A copy of a child without the quantizers that it was trained with, and the names of the layers that had them."""
    child = copy.deepcopy(child)
    layers = {name: module for name, module in child.named_modules() if isinstance(module, HasFloatLayer)}
    for name, layer in layers.items():
        child.set_submodule(name, layer.float_layer())
    return child, list(layers)


def float_layer(net: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    """The convolution or linear layer of that name.

    Raises:
        TypeError: it is something else.
    """
    layer = net.get_submodule(name)
    if not isinstance(layer, QUANTIZABLE):
        raise TypeError(f"{name} is a {type(layer).__name__}; give the name of a Conv2d or a Linear")
    return layer


def integer_layer_of(net: nn.Module, name: str) -> IntegerLayer:
    """The integer layer of that name.

    Raises:
        TypeError: it is something else.
    """
    layer = net.get_submodule(name)
    if not isinstance(layer, IntegerLayer):
        raise TypeError(f"{name} is a {type(layer).__name__}; give the name of a quantized layer")
    return layer


def fold(child: nn.Module, x: Tensor) -> tuple[nn.Module, tuple[str, ...], tuple[Layer, ...]]:
    """A copy of a child in evaluation mode, its batch norms folded into the layers before them.

    A batch norm stays where something else reads the layer before it.

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
    times = Counter(name for _, name in calls)
    once = [(n, name) for n, name in calls if name and times[name] == 1]
    calls = [(n, name) for n, name in once if type(child.get_submodule(name)) in QUANTIZABLE]
    if not calls:
        kind = type(child).__name__
        raise ValueError(f"{kind} has no Conv2d and no Linear layer that runs once: there is nothing to quantize")
    norms = Counter(owner.get(str(n.args[1]), "") for n in nodes if n.target == aten.batch_norm.default)
    folded: dict[Node, str] = {}
    for node, name in calls:
        reader = _only_reader(node, ORDERS)
        if reader is not None and reader.target == aten.batch_norm.default:
            norm = owner.get(str(reader.args[1]), "")
            if norm and norms[norm] == 1:
                _fold_norm(child, name, norm)
                folded[reader] = norm
    layers = tuple(_layer(child, node, dict(calls), set(folded)) for node, _ in calls)
    return child, tuple(folded.values()), layers


def _fold_norm(child: nn.Module, name: str, norm: str) -> None:
    """Multiply the batch norm of one name into the layer of the other, in place."""
    layer, folded = float_layer(child, name), child.get_submodule(norm)
    if not isinstance(folded, _BatchNorm):
        raise TypeError(f"{norm} is a {type(folded).__name__}; what computes a batch norm must be torch's own")
    fused = fuse_conv_bn_eval(layer, folded) if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval(layer, folded)
    child.set_submodule(name, fused)
    child.set_submodule(norm, nn.Identity())


def _layer(child: nn.Module, node: Node, calls: Mapping[Node, str], folded: Collection[Node]) -> Layer:
    weight = float_layer(child, calls[node]).weight
    macs = node.meta["val"].numel() // 2 * weight[0].numel()
    origin = _input(node)
    while origin.target in MOVES or origin.target in RELUS or origin in folded:
        origin = _input(origin)
    source = calls.get(origin, "")
    if source and not isinstance(float_layer(child, source), nn.Conv2d):
        source = ""
    first = not any(other in _ancestors(node) for other in calls)
    reader = _only_reader(node, MOVES, folded)
    relu = reader is not None and reader.target in RELUS
    return Layer(calls[node], macs, weight.numel(), len(weight), first, weight.dim() == 4, relu, source)


def _input(node: Node) -> Node:
    """The tensor that an operation is applied to."""
    first = node.args[0]
    assert isinstance(first, Node)
    return first


def _only_reader(node: Node, moves: Collection[object], folded: Collection[Node] = ()) -> Node | None:
    """What alone reads this layer's output, behind what only moves it; None where there are several."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.target not in moves and node not in folded:
            return node
    return None


def _ancestors(node: Node) -> set[Node]:
    found: set[Node] = set()
    todo = list(node.all_input_nodes)
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
