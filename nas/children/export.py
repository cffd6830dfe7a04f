"""A child as files that need no raynas: weights, the source of its classes, ONNX, figures, and a proof that they
agree."""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import io
import json
import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas.children.evaluate import Batches, Evaluator, score
from nas.config import plugins
from nas.quantization.integer import Plan, load_quantized
from nas.quantization.learned import byte_layers, for_onnx, pack, unpack
from nas.rundir import atomic, forms
from nas.rundir.checkpoint import tensors_in
from nas.rundir.directory import ChildDir
from nas.rundir.fence import Fence
from nas.space import COSTS, Arch, Measure
from nas.supernet import CostModel, QuantizingChild, Supernet, main_head
from nas.tasks.pictures import save_pictures

PARITY_EXAMPLES = 64
# torch.export (2.14) fails once in a hundred times, its nodes in an order that it refuses itself, and does not when
# asked again
EXPORTS = 3


def export_child(
    target: Path,
    arch: Arch,
    costs: CostModel,
    evaluator: Evaluator,
    test: Batches,
    about: dict[str, Any],
    onnx: bool,
    fence: Fence,
) -> dict[str, Any]:
    """Write one child as a directory, whole or not at all.

    Args:
        target: where; its name is the child's id.
        costs: what children of its network cost.
        evaluator: extracts, calibrates and scores it, as it did in the search.
        test: the test examples; they are looked at here for the first time.
        about: where the child comes from: ``space``, ``size``, ``supernet`` (sha256), ``data``, ``classes``.
        onnx: also write model.onnx.

    Returns:
        What metrics.json says.
    """
    net, task = evaluator.net, evaluator.task
    child = evaluator.child(arch)
    sample = next(iter(evaluator.validation))[0][:PARITY_EXAMPLES]
    figures: dict[str, Any] = {
        "id": target.name,
        **costs(arch),
        "validation": score(child, evaluator.validation, task),
        "test": score(child, test, task),
        "baselines": {name: score(baseline, test, task) for name, baseline in task.baselines().items()},
    }
    pictures = task.pictures(child, test.device)

    def fill(directory: Path) -> None:
        here = ChildDir(directory)
        child.cpu().to(memory_format=torch.contiguous_format)  # as it will be loaded
        save_file(child.state_dict(), here.weights)
        here.classes.write_text(bundle(net.sources))
        here.arch.write_text(json.dumps(_identity(net, child, arch, about, task.any_size), indent=1))
        if byte_layers(child):
            save_file(pack(child), here.packed)
        if onnx:
            write_onnx(for_onnx(child), sample.cpu(), here.onnx, task.any_size)
        figures["parity"] = parity(net, child, arch, sample.cpu(), here)
        here.metrics.write_text(json.dumps(figures, indent=1))
        save_pictures(pictures, directory)
        here.card.write_text(card(figures, about, type(child).__name__, net.input_shape, task.any_size, costs.measures))

    atomic.write_directory(target, fill, {"id": target.name, "supernet": about["supernet"]}, fence.check)
    return figures


def exported(target: Path, supernet: str) -> bool:
    """Whether a whole child of this supernet stands there."""
    try:
        return atomic.verify(target)["supernet"] == supernet
    except (atomic.Damaged, KeyError):
        return False


def _identity(net: Supernet, child: nn.Module, arch: Arch, about: dict[str, Any], any_size: bool) -> dict[str, Any]:
    home = f"{type(child).__module__}:{type(child).__qualname__}"
    takes = {"shape": list(net.input_shape), "any_size": any_size, "range": [0, 1]}
    return {**about, "arch": dict(arch), "child": home, "network": child.config, "input": takes}


def bundle(sources: Iterable[Path]) -> str:
    """One Python file with the child's classes: the sources one after another, without the imports between them."""
    text = ['"""The classes of this child. Needs torch alone."""\n\nfrom __future__ import annotations\n']
    for path in sources:
        source = path.read_text()
        drop: set[int] = set()
        for node in ast.parse(source).body:
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


def write_onnx(child: nn.Module, x: Tensor, path: Path, any_size: bool = False) -> None:
    """The child as one ONNX file, any batch size, weights inside; of any height and width too, where the task wants
    that."""
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # the exporter talks about its own insides
        try:
            _export(child.eval(), x, path, any_size)
        finally:
            quiet.setLevel(level)
    _anonymise(path)


def _export(child: nn.Module, x: Tensor, path: Path, any_size: bool) -> None:
    """At most `EXPORTS` tries; the last error is raised."""
    from torch.export import Dim

    shapes = {"x": {0: Dim("batch", min=1), **({2: Dim.AUTO, 3: Dim.AUTO} if any_size else {})}}
    for left in reversed(range(EXPORTS)):
        try:
            torch.onnx.export(
                child,
                (x,),
                path,
                dynamo=True,
                external_data=False,
                input_names=["pixels"],
                output_names=["output"],
                dynamic_shapes=shapes,
                verbose=False,
            )
            return
        except torch.onnx.OnnxExporterError:
            if not left:
                raise


def _anonymise(path: Path) -> None:
    """Take out of an ONNX file what the exporter noted of this machine's source files; it is most of a small one."""
    model = onnx.load(path)
    for note in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
        model.graph,
        model,
    ):
        note.ClearField("metadata_props")
    onnx.save(model, path)


@torch.no_grad()
def parity(net: Supernet, child: nn.Module, arch: Arch, x: Tensor, files: ChildDir) -> dict[str, float]:
    """Largest differences of outputs on real examples `x` ``(n, C, H, W)``, with the files as they were just written.

    ``supernet``: against the supernet, both on batch statistics, quantizers off (the steps are the child's own);
    ``reloaded``: the child rebuilt from its files; ``packed``: from the packed one; ``onnx``: the ONNX file in ONNX
    Runtime.
    """
    home = next(net.parameters()).device
    on_batch = copy.deepcopy(child).to(home).train()
    if isinstance(on_batch, QuantizingChild):
        on_batch.quantize(False)
    found = {
        "examples": float(len(x)),
        "supernet": _apart(on_batch(x.to(home)).cpu(), main_head(net(x.to(home), arch)).cpu()),
    }
    child.eval()
    reloaded = type(child)(**child.config)  # type: ignore[arg-type]
    reloaded.load_state_dict(load_file(files.weights))
    found["reloaded"] = _apart(child(x), reloaded.eval()(x))
    if files.packed.exists():
        reloaded.load_state_dict(unpack(reloaded, load_file(files.packed)))
        found["packed"] = _apart(child(x), reloaded(x))
    if files.onnx.exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(files.onnx, providers=["CPUExecutionProvider"])
        found["onnx"] = _apart(child(x), torch.from_numpy(session.run(None, {"pixels": x.numpy()})[0]))
    return found


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


PACKED = """
`packed.safetensors` has the same child with its weights of at most 8 bits as levels of their grids,
those of at most 4 bits two to a byte:

```python
from model import unpack

net.load_state_dict(unpack(net, load_file("packed.safetensors")))
```
"""
INTEGERS = """
`model.onnx` carries the same levels and steps, between QuantizeLinear and DequantizeLinear of bytes. On x86 CPUs
without VNNI, ONNX Runtime's kernels for 8-bit weights can saturate; its session option
`graph_optimization_level` = `ORT_ENABLE_BASIC` avoids that.
"""


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


def card(
    figures: dict[str, Any],
    about: dict[str, Any],
    name: str,
    shape: tuple[int, int, int],
    any_size: bool,
    costs: Mapping[str, Measure] = COSTS,
) -> str:
    """The model card: what it is, how good, how to load it. `costs` are those that `figures` has by these names."""
    *most, last = (costs[key].told(f"{figures[key]:,}") for key in costs if costs[key].shown)
    takes_up = f"{', '.join(most)} and {last}" if most else last
    rows = [
        f"| {part} {metric} | {value:.4g} |"
        for part in ("validation", "test")
        for metric, value in figures[part].items()
    ]
    rows += [
        f"| test {metric} of {name} | {value:.4g} |"
        for name, given in figures["baselines"].items()
        for metric, value in given.items()
    ]
    rows += [
        f"| largest output difference to {what} | {value:.2g} |"
        for what, value in figures["parity"].items()
        if what != "examples"
    ]
    size = " x ".join(str(n) for n in shape)
    tuned = about.get("finetuned")
    how = "without retraining" if not tuned else f"and trained on by itself for {tuned['epochs']:g} epochs"
    if tuned and not tuned["from"]:
        how = f"and then trained by itself from fresh weights for {tuned['epochs']:g} epochs"
    takes = f"{shape[0]}, height, width" if any_size else ", ".join(map(str, shape))
    gives = "an image" if any_size else "one row"
    return f"""# Child {figures["id"]} of {about["space"]} {about["size"]} on {about["data"]}

{takes_up} for one input of {size} pixels. Cut out of a supernet
{how} (sha256 of the weights `{about["supernet"][:16]}`); its batch statistics were calibrated on training images.
It was chosen on validation data; the test figures were taken once, after the search.

| figure | value |
| --- | --- |
{chr(10).join(rows)}

Input: float32 pixels in [0, 1], `(batch, {takes})`; normalisation and resizing are inside. Output: {gives} an example.

With PyTorch (needs torch and safetensors; run it in this directory):

```python
import json
from safetensors.torch import load_file
from model import {name}

net = {name}(**json.load(open("arch.json"))["network"])
net.load_state_dict(load_file("model.safetensors"))
net.eval()
```
{PACKED if "packed" in figures["parity"] else ""}{INTEGERS if {"packed", "onnx"} <= figures["parity"].keys() else ""}
With ONNX Runtime: `onnxruntime.InferenceSession("model.onnx").run(None, {{"pixels": array}})`.
With raynas, from another directory: `nas.load_child("PATH/{figures["id"]}")`.
"""
