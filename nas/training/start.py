"""What a supernet begins with where that is not fresh: weights of another run, of an exported child, or of a network
that somebody else has trained (``train.init_from``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nas.rundir.atomic import verify
from nas.rundir.checkpoint import Checkpoint, tensors_in
from nas.rundir.directory import ChildDir, RunDir
from nas.supernet import Supernet, window

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
SHOWN = 4  # names in a message


def start_from(net: Supernet, given: Path) -> str:
    """Copy into a network what another one has learnt, and say what was taken and what not.

    Tensors are found by their names, as `Supernet.translated` gives them, and each is laid over the other: where one is
    smaller, the window that both share is copied. Of a network that was not trained with shared weights the channels
    are put in order by `Supernet.sort_channels`, so that small children begin with the important ones.

    Args:
        net: with fresh weights, which it keeps where there is nothing to take.
        given: a run, a checkpoint of one, an exported child, or a file of safetensors.

    Raises:
        FileNotFoundError: nothing is there.
        Damaged: what is there is not whole.
        ValueError: it is none of these, or nothing of it goes into this network.
    """
    found, shared = _read(given)
    tensors, parameters = net.translated(found), dict(net.named_parameters())
    taken = {name for name, parameter in parameters.items() if name in tensors and _fits(net, name, parameter, tensors)}
    if not taken:
        raise ValueError(
            f"train.init_from: nothing of {given} goes into this network; it has {_few(list(parameters))}, the file "
            f"{_few(list(tensors))}: say in Supernet.translated which is which (docs/pretrained.md)"
        )
    for name in taken:
        _lay(parameters[name], tensors[name])
    if not shared:
        net.sort_channels()
    return _told(given, parameters, tensors, taken)


def _read(given: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors, and whether they are of a network whose small children share them."""
    if given.is_file():
        if given.suffix in PICKLES:
            raise ValueError(
                f"train.init_from: {given} may hold code, so it is not read. If you trust it, make a file of weights "
                "alone: python -c 'import sys, torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v "
                f"in torch.load(sys.argv[1], weights_only=True).items()}}, sys.argv[2])' {given} "
                f"{given.with_suffix('.safetensors')}"
            )
        return tensors_in(given), False
    if not given.is_dir():
        raise FileNotFoundError(f"train.init_from: nothing is at {given.absolute()}")
    child, run = ChildDir(given), RunDir(given)
    if child.arch.is_file():
        verify(given, (child.weights.name, child.arch.name))
        return tensors_in(child.weights), True
    newest = Checkpoint.newest(run.checkpoints) if run.is_run() else Checkpoint.open(given)
    if newest is None:
        raise ValueError(f"train.init_from: the run {given} has no checkpoint yet: nas train {given}")
    return newest.child_weights(), True


def _fits(net: Supernet, name: str, parameter: Tensor, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tensor means the same here: as many axes, and what is made for the data made for as many classes."""
    same = parameter.shape == tensors[name].shape
    outputs = bool(net.outputs) and name.split(".")[0] == net.outputs
    return same or (parameter.dim() == tensors[name].dim() and not outputs)


@torch.no_grad()
def _lay(parameter: Tensor, tensor: Tensor) -> None:
    """Copy the window that both have."""
    shape = torch.Size(map(min, parameter.shape, tensor.shape))
    window(parameter, shape).copy_(window(tensor, shape))


def _told(given: Path, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], taken: set[str]) -> str:
    whole = [name for name in taken if parameters[name].shape == tensors[name].shape]
    part = [name for name in parameters if name in taken and name not in whole]
    fresh = [name for name in parameters if name not in taken]
    unused = [name for name in tensors if name not in taken]
    rows = {"in part": part, "fresh": fresh, "not used of the file": unused}
    more = "".join(f"; {len(names)} {what} ({_few(names)})" for what, names in rows.items() if names)
    return f"{given}: of {len(parameters)} tensors {len(whole)} are taken whole{more}"


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])
