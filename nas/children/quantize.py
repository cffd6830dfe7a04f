"""An exported child in, a quantized one out, as files beside it: the stage behind ``nas quantize``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NotRequired

import onnx
import onnxruntime
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas.children.card import quantized_card
from nas.children.evaluate import Batches, score
from nas.children.export import PARITY_EXAMPLES, bundle, load_child, write_config
from nas.children.export import SOURCES as MODEL
from nas.children.formats import OnnxFile, onnx_parity, write_onnx, write_picture_onnx
from nas.device import exact
from nas.preprocess import Preprocess
from nas.quantization import integer, levels
from nas.quantization.adaquant import widths
from nas.quantization.allocate import Costs
from nas.quantization.compare import Judged, Row, compare
from nas.quantization.graph import fold, plain, total_macs
from nas.quantization.integer import Plan, load_quantized, pack
from nas.quantization.target import QuantizationTarget
from nas.rundir import atomic, forms
from nas.rundir.directory import ChildDir
from nas.rundir.fence import Fence
from nas.tasks.task import Task

SOURCES = (Path(levels.__file__), Path(integer.__file__))  # of quantized.py
CALIBRATION, BATCH = 512, 32  # examples of the training part, and at once
INTEGER_KERNELS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")  # of ONNX Runtime


class QuantizedFigures(Judged):
    """What metrics.json of a quantized child says.

    Attributes:
        id: its directory's name.
        macs, params: of the child that it was made of.
        bitops, bytes: of itself.
        rows: the ways that were tried.
        onnx: the ONNX file's figures on validation.
        parity: see `parity`.
    """

    id: str
    macs: int
    params: int
    bitops: int
    bytes: int
    rows: list[Row]
    onnx: NotRequired[dict[str, float]]
    parity: NotRequired[dict[str, float]]


@exact()
def quantize_child(
    source: Path,
    target: QuantizationTarget,
    task: Task,
    device: torch.device,
    fence: Fence,
    modules: tuple[str, ...],
    score_batch: int,
    write: bool,
    tell: Callable[[float, float, str], None],
) -> QuantizedFigures:
    """Quantize one exported child; its files stand beside it afterwards, whole or not at all.

    Args:
        source: the child's directory.
        task: gives the calibration examples (of the training part, no labels), and scores.
        modules: see `load_child`.
        score_batch: examples at once in scoring.
        write: also model.onnx.
        tell: see `LayerProgress`.

    Returns:
        What metrics.json says.

    Raises:
        Damaged, ValueError: the child's directory is not whole, nothing in it can be quantized, or the budget cannot be
            met.
    """
    form = forms.read(source / "arch.json", forms.Arch)
    if form.quantization is not None:
        first = form.quantization.of
        raise ValueError(f"{source.name} is quantized already; give the child it was made of, {first}")
    original, shape, about = load_child(source, modules), form.input.shape, form.model_dump(exclude_unset=True)
    batches = [x for x, _ in Batches(task.train, CALIBRATION, BATCH, device, epoch=0, whole=True)]
    if len(batches) < 2:
        few = len(task.train)
        raise ValueError(f"the training part has {few} examples; calibration takes at least {2 * BATCH}")
    child, unquantized = plain(original)
    child, folded, layers = fold(child, torch.zeros(2, *shape))
    costs = Costs.of(child, layers, total_macs(child, shape))
    validation = Batches(task.validation, len(task.validation), score_batch, device)
    test = Batches(task.test, len(task.test), score_batch, device)

    def judge(net: nn.Module) -> Judged:
        return {"validation": score(net, validation, task), "test": score(net, test, task)}

    found = compare(child.to(device), costs, target, batches, judge, tell)
    plan: Plan = {
        "of": source.name,
        "method": found.row["method"],
        "plain": unquantized,
        "folded": list(folded),
        "layers": {layer.name: widths(layer, found.bits[layer.name]) for layer in layers},
    }
    about["quantization"] = plan
    figures: QuantizedFigures = {
        "id": f"{source.name}-{target.suffix}",
        "macs": costs.macs,
        "params": sum(p.numel() for p in original.parameters()),
        "bitops": found.row["bitops"],
        "bytes": found.row["bytes"],
        "validation": found.row["validation"],
        "test": found.row["test"],
        "rows": found.rows,
    }
    final, sample = found.net.cpu().eval(), next(iter(validation))[0][:PARITY_EXAMPLES].cpu()

    def fill(directory: Path) -> None:
        here = ChildDir(directory)
        save_file(pack(final), directory / "model.safetensors")
        classes = (source / "model.py").read_text()
        if "class Model(" not in classes:  # a child of before there was one
            classes += "\n\n" + bundle((*task.helpers, *MODEL)).partition("import annotations\n")[2]
        here.classes.write_text(classes, encoding="utf-8")
        (directory / "quantized.py").write_text(bundle(SOURCES), encoding="utf-8")
        here.arch.write_text(json.dumps(about, indent=1), encoding="utf-8")
        write_config(here, task)
        if write:
            write_onnx(final, sample, here.onnx, task.any_size)
            if task.preprocess is not None:
                write_picture_onnx(task.preprocess, here.onnx, here.picture_onnx)
            figures["onnx"] = score(OnnxFile(directory / "model.onnx"), validation, task)
        fresh, tensors = type(original)(**about["network"]), load_file(directory / "model.safetensors")
        figures["parity"] = parity(final, load_quantized(fresh, plan, tensors), sample, here, task.preprocess)
        (directory / "metrics.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
        (directory / "README.md").write_text(quantized_card(figures, plan, about, task), encoding="utf-8")

    source_sha = atomic.sha256(source / "model.safetensors")
    facts = {
        "id": figures["id"],
        "supernet": about.get("supernet"),
        "source": source_sha,
        "bits": sorted(target.bits),
    }
    atomic.write_directory(source.with_name(figures["id"]), fill, facts, fence.check)
    return figures


def done_before(source: Path, target: QuantizationTarget, onnx: bool) -> QuantizedFigures | None:
    """The figures of this very quantization where it stands already, whole, with model.onnx if that is wanted."""
    directory = source.with_name(f"{source.name}-{target.suffix}")
    try:
        manifest = atomic.verify(directory, [ChildDir(directory).onnx.name] if onnx else [])
        same_child = manifest["source"] == atomic.sha256(source / "model.safetensors")
        same = same_child and manifest["bits"] == sorted(target.bits)
        return json.loads((directory / "metrics.json").read_text()) if same else None
    except (atomic.Damaged, KeyError, OSError):
        return None


@torch.no_grad()
def parity(
    net: nn.Module, again: nn.Module, x: Tensor, files: ChildDir, preprocess: Preprocess | None
) -> dict[str, float]:
    """Largest differences of outputs on real examples between the network and its files.

    ``reloaded``: rebuilt from the packed weights; ``integer_layers``: how many layers ONNX Runtime computes with 8-bit
    integers; and those of `onnx_parity`.
    """
    expected = net(x)
    found = {"examples": float(len(x)), "reloaded": float((expected - again(x)).abs().max())}
    if files.onnx.exists():
        found |= onnx_parity(net, x, files, preprocess)
        found["integer_layers"] = float(integer_layers(files.onnx))
    return found


def integer_layers(path: Path) -> int:
    """How many kernels of an ONNX file compute with 8-bit integers after ONNX Runtime's optimizer."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 3  # it warns that such a file is for this machine alone
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return sum(node.op_type in INTEGER_KERNELS for node in graph.node)
