"""A child as files that need no raynas: weights, the source of its classes, ONNX, figures, and a proof that they
agree."""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas import preprocess, pretrained
from nas.children.card import card
from nas.children.evaluate import Batches, Evaluator, judge, score
from nas.children.formats import onnx_parity, write_onnx, write_picture_onnx
from nas.config import plugins
from nas.device import enough_memory, exact
from nas.preprocess import Preprocess
from nas.quantization.integer import Plan, load_quantized
from nas.quantization.learned import byte_layers, for_onnx, pack, unpack
from nas.rundir import atomic, forms
from nas.rundir.checkpoint import tensors_in
from nas.rundir.directory import ChildDir
from nas.rundir.fence import Fence
from nas.space import Arch
from nas.statistics import half_widths
from nas.supernet import CostModel, QuantizingChild, Supernet, main_head
from nas.tasks.pictures import save_pictures
from nas.tasks.task import Task

PARITY_EXAMPLES = 64
OTHER = 0.02  # a larger difference, as a share of the largest output, is no rounding
SOURCES = (Path(preprocess.__file__), Path(pretrained.__file__))  # of model.py, besides the child's own


@exact()
def export_child(
    target: Path,
    arch: Arch,
    costs: CostModel,
    evaluator: Evaluator,
    test: Batches,
    about: dict[str, Any],
    onnx: bool,
    fence: Fence,
    steps: int = 0,
) -> dict[str, Any]:
    """Write one child as a directory, whole or not at all.

    Args:
        target: where; its name is the child's id.
        costs: what children of its network cost.
        evaluator: extracts, calibrates and scores it, as it did in the search.
        test: the test examples; they are looked at here for the first time.
        about: where the child comes from: ``space``, ``size``, ``supernet`` (sha256), ``data``, ``classes``.
        onnx: also write model.onnx and picture.onnx.
        steps: for which it was trained by itself before the search scored it; they are repeated.

    Returns:
        What metrics.json says.

    Raises:
        MemoryShort: the GPU is too small for it.
    """
    task = evaluator.task
    with enough_memory(evaluator.lower):
        net, child = evaluator.cut(arch, steps)
        validated, tested = judge(child, evaluator.validation, task), judge(child, test, task)
    sample = next(iter(evaluator.validation))[0][:PARITY_EXAMPLES]
    figures: dict[str, Any] = {
        "id": target.name,
        **costs(arch),
        "validation": validated.metrics,
        "test": tested.metrics,
        "examples": {"validation": evaluator.validation.examples, "test": test.examples},
        "interval": {
            "validation": half_widths(validated.parts),
            "test": half_widths(tested.parts),
        },
        "baselines": {name: score(baseline, test, task) for name, baseline in task.baselines().items()},
    }
    pictures = task.pictures(child, test.device)

    def fill(directory: Path) -> None:
        here = ChildDir(directory)
        child.cpu().to(memory_format=torch.contiguous_format)  # as it will be loaded
        save_file(child.state_dict(), here.weights)
        here.classes.write_text(bundle((*net.sources, *task.helpers, *SOURCES)), encoding="utf-8")
        identity = _identity(net, child, arch, about, task)
        here.arch.write_text(json.dumps(identity, indent=1), encoding="utf-8")
        write_config(here, task)
        if byte_layers(child):
            save_file(pack(child), here.packed)
        if onnx:
            write_onnx(for_onnx(child), sample.cpu(), here.onnx, task.any_size)
            if task.preprocess is not None:
                write_picture_onnx(task.preprocess, here.onnx, here.picture_onnx)
        figures["parity"] = parity(net, child, arch, sample.cpu(), here, task.preprocess)
        here.metrics.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        save_pictures(pictures, directory)
        here.card.write_text(card(figures, identity, task, costs.measures), encoding="utf-8")

    trained = {"steps": steps} if steps else {}
    atomic.write_directory(target, fill, {"id": target.name, "supernet": about["supernet"], **trained}, fence.check)
    return figures


def exported(target: Path, supernet: str, onnx: bool, steps: int = 0) -> bool:
    """Whether a whole child of this supernet stands there, with model.onnx if that is wanted, trained for so many steps
    by itself."""
    try:
        found = atomic.verify(target, [ChildDir(target).onnx.name] if onnx else [])
        return found["supernet"] == supernet and found.get("steps", 0) == steps
    except (atomic.Damaged, KeyError):
        return False


def _identity(net: Supernet, child: nn.Module, arch: Arch, about: dict[str, Any], task: Task) -> dict[str, Any]:
    home = f"{type(child).__module__}:{type(child).__qualname__}"
    takes = {"shape": list(net.input_shape), "any_size": task.any_size, "range": [0, 1]}
    if task.any_size and net.least_side > 1:
        takes["least_side"] = net.least_side
    if (side := works_at(child, net.input_shape)) < net.input_shape[1] and not task.any_size:
        takes["works_at"] = side
    return {**about, "arch": dict(arch), "child": home, "network": child.config, "input": takes}


def write_config(files: ChildDir, task: Task) -> None:
    """config.json: what `Model.from_pretrained` of model.py makes the child of."""
    about = json.loads(files.arch.read_text())
    config = {
        "model_type": "raynas",
        "class": about["child"].rpartition(":")[2].rpartition(".")[2],
        "network": about["network"],
        "preprocess": task.preprocess and task.preprocess.config,
        **{key: about[key] for key in ("classes", "quantization") if key in about},
    }
    files.config.write_text(json.dumps(config, indent=1), encoding="utf-8")


class _Reached(Exception):
    """The first convolution of a network is reached."""


@torch.no_grad()
def works_at(net: nn.Module, shape: tuple[int, int, int]) -> int:
    """Height of what the first convolution of a network sees of inputs ``(C, H, W)``; H where it has none."""
    seen = [shape[1]]

    def look(module: nn.Module, given: tuple[Tensor]) -> None:
        seen.append(given[0].shape[-2])
        raise _Reached

    hooks = [module.register_forward_pre_hook(look) for module in net.modules() if isinstance(module, nn.Conv2d)]
    was = net.training
    with contextlib.suppress(_Reached):
        net.eval()(torch.zeros(1, *shape, device=next(net.parameters()).device))
    net.train(was)
    for hook in hooks:
        hook.remove()
    return seen[-1]


def made_smaller(net: Supernet, task: Task) -> str:
    """What a person is told where no network of the space sees all the pixels of its inputs; empty where one does."""
    side, pixels = works_at(net.extract(net.space.largest()), task.input_shape), task.input_shape[-1]
    if task.any_size or side >= pixels:
        return ""
    return (
        f"networks of this space work at {side} x {side} pixels or less; inputs of {pixels} are made smaller first: "
        "lower data.size, or take a larger space"
    )


def bundle(sources: Iterable[Path]) -> str:
    """One Python file with the child's classes: the sources one after another, without the imports between them."""
    text = ['"""The classes of this child. Needs torch alone."""\n\nfrom __future__ import annotations\n']
    names: dict[str, Path] = {}
    for path in sources:
        source = path.read_text(encoding="utf-8")
        drop: set[int] = set()
        for node in ast.parse(source).body:
            for name in _defined(node):
                if names.setdefault(name, path) != path:
                    raise ValueError(
                        f"{path} and {names[name]} both define {name}, and model.py has room for one: rename it"
                    )
            ours = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
                "nas",
                "searchspaces",
                "__future__",
            )
            if ours or (isinstance(node, ast.Expr) and node.lineno == 1):
                drop.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        text.append(
            "".join(
                line for number, line in enumerate(source.splitlines(keepends=True), 1) if number not in drop
            ).strip()
            + "\n"
        )
    return "\n\n".join(text)


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement of a module gives: of a class, a function, or constants."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [name for each in (node, *targets) if (name := getattr(each, "name", None) or getattr(each, "id", None))]


@torch.no_grad()
def parity(
    net: Supernet, child: nn.Module, arch: Arch, x: Tensor, files: ChildDir, preprocess: Preprocess | None
) -> dict[str, float]:
    """Largest differences of outputs on real examples `x` ``(n, C, H, W)``, with the files as they were just written.

    ``supernet``: against the supernet, both on batch statistics, quantizers off (the steps are the child's own), and
    refused where it is more than rounding;
    ``reloaded``: the child rebuilt from its files; ``packed``: from the packed one; and those of
    `onnx_parity`.
    """
    home = next(net.parameters()).device
    on_batch = copy.deepcopy(child).to(home).train()
    if isinstance(on_batch, QuantizingChild):
        on_batch.quantize(False)
    wanted = main_head(net(x.to(home), arch)).cpu()
    found = {"examples": float(len(x)), "supernet": _apart(on_batch(x.to(home)).cpu(), wanted)}
    if found["supernet"] > OTHER * float(wanted.abs().max()):
        raise ValueError(
            f"the child {arch.id} is another network than the supernet's: outputs are {found['supernet']:.2g} apart, "
            f"where they reach {float(wanted.abs().max()):.2g}. Its class computes something else: nas check tells what"
        )
    child.eval()
    reloaded = type(child)(**child.config)  # type: ignore[arg-type]
    reloaded.load_state_dict(load_file(files.weights))
    found["reloaded"] = _apart(child(x), reloaded.eval()(x))
    if files.packed.exists():
        reloaded.load_state_dict(unpack(reloaded, load_file(files.packed)))
        found["packed"] = _apart(child(x), reloaded(x))
    return found | onnx_parity(child, x, files, preprocess)


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def child_packages(space: str) -> tuple[str, ...]:
    """The packages that children of a space may come from.

    They are that of the built-in ones, and of a user's own ``my_module:my_space`` the modules ``my_module`` and
    ``my_module_child``.
    """
    own = space.partition(":")[0].split(".")[0]
    return "searchspaces", own, f"{own}_child"


def load_child(path: str | Path, modules: tuple[str, ...] = ("searchspaces",)) -> nn.Module:
    """An exported child, rebuilt by the classes that are installed here; no code of the directory is run.

    Args:
        path: the child's directory.
        modules: packages that the child's class may come from; name your own module for a space of your own.

    Raises:
        Damaged: the directory is not what its manifest says, or a file has not the form that it should have.
        ValueError: its class comes from elsewhere, is no network, or does not go with the files.
    """
    files = ChildDir(Path(path))
    atomic.verify(files.path, (files.weights.name, files.arch.name))
    about = forms.read(files.arch, forms.Arch)
    child, tensors = _build(about, files, modules), tensors_in(files.weights)
    try:
        if about.quantization is not None:
            return load_quantized(child, cast(Plan, about.quantization.model_dump()), tensors)
        child.load_state_dict(tensors)
    except (RuntimeError, KeyError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{files.weights} does not go with {files.arch}: {_first_line(error)}") from error
    return child.eval()


def _build(about: forms.Arch, files: ChildDir, modules: tuple[str, ...]) -> nn.Module:
    """The network that arch.json names, with fresh weights."""
    module, _, name = about.child.partition(":")
    if module.split(".")[0] not in modules:
        raise ValueError(
            f"the child's class is {about.child}, outside {', '.join(modules)}; if you trust it: load_child(path, "
            f"modules=({module!r},))"
        )
    try:
        kind = plugins.load(about.child)
    except (ImportError, ValueError) as error:
        raise ValueError(f"the child's class {about.child} of {files.arch} is not here: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"{about.child} of {files.arch} is no class of a network")
    try:
        inspect.signature(kind).bind(**about.network)
        made: nn.Module = kind(**about.network)
    except Exception as error:  # whatever a class makes of arguments that it was not made for
        raise ValueError(f"{about.child} does not take the network of {files.arch}: {_first_line(error)}") from error
    return made


def _first_line(error: Exception) -> str:
    """What an error says, short: torch lists every tensor."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2])[:300]
