"""A child as files of further runtimes: torch.export, OpenVINO, ExecuTorch; each by an extra of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nas.children.card import card, quantized_card
from nas.children.evaluate import Batches
from nas.children.export import PARITY_EXAMPLES, load_child
from nas.children.formats import quiet, several, write_onnx
from nas.rundir import atomic
from nas.rundir.directory import ChildDir
from nas.rundir.fence import Fence
from nas.space import Measure
from nas.tasks.task import Task


@dataclass(frozen=True)
class Runtime:
    """How a child becomes a file of some runtime, and how that is run.

    Attributes:
        file: the file's name.
        write: the network, one example a row, whether sizes are free, and where to.
        run: a file, and a batch; gives its output.
    """

    file: str
    write: Callable[[nn.Module, Tensor, bool, Path], None]
    run: Callable[[Path, Tensor], Tensor]


def program(net: nn.Module, x: Tensor, any_size: bool) -> torch.export.ExportedProgram:
    """The network by torch.export, of any batch size; of any height and width too, where the task wants that."""
    free = dict.fromkeys((0, 2, 3) if any_size else (0,), torch.export.Dim.AUTO)
    return torch.export.export(net.eval(), (several(x),), dynamic_shapes={"x": free})


def write_pt2(net: nn.Module, x: Tensor, any_size: bool, path: Path) -> None:
    torch.export.save(program(net, x, any_size), path)


def run_pt2(path: Path, x: Tensor) -> Tensor:
    return torch.export.load(path).module()(x)


def write_openvino(net: nn.Module, x: Tensor, any_size: bool, path: Path) -> None:
    """By way of ONNX: OpenVINO has no rules for the sizes of an exported program that are left open."""
    import openvino

    between = path.with_suffix(".onnx")
    write_onnx(net, x, between, any_size)
    openvino.save_model(openvino.convert_model(between), path, compress_to_fp16=False)
    between.unlink()


def run_openvino(path: Path, x: Tensor) -> Tensor:
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(np.array(model([x.numpy()])[0]))


def write_executorch(net: nn.Module, x: Tensor, any_size: bool, path: Path) -> None:
    """One example at a time, of this size: XNNPACK lays its memory out beforehand."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(net.eval(), (x[:1],))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def run_executorch(path: Path, x: Tensor) -> Tensor:
    from executorch.runtime import Runtime as Executor

    method = Executor.get().load_program(path).load_method("forward")
    return torch.cat([method.execute([example])[0].clone() for example in x.split(1)])


RUNTIMES = {
    "pt2": Runtime("model.pt2", write_pt2, run_pt2),
    "openvino": Runtime("openvino.xml", write_openvino, run_openvino),
    "executorch": Runtime("model.pte", write_executorch, run_executorch),
}


def add(
    child: Path, names: Sequence[str], task: Task, modules: tuple[str, ...], costs: Mapping[str, Measure], fence: Fence
) -> list[str]:
    """Write an exported child in further formats; the directory is replaced as a whole. Returns those that were not
    there.

    Raises:
        ValueError: the network has an operation that the runtime does not take, which is named; or the child is of
            before it had preprocessing, whose card would not be true of it.
    """
    files = ChildDir(child)
    manifest = atomic.verify(child)
    if not files.config.exists():
        raise ValueError(
            f"{child} was exported before children had their preprocessing: remove it, export it again, then in formats"
        )
    figures, about = json.loads(files.metrics.read_text()), json.loads(files.arch.read_text())
    wanted = [name for name in names if name not in figures["parity"]]
    if not wanted:
        return []
    net = load_child(child, modules)
    count = int(figures["parity"]["examples"])
    x = next(iter(Batches(task.validation, min(count, PARITY_EXAMPLES), count, torch.device("cpu"))))[0]

    def fill(directory: Path) -> None:
        for name in manifest["files"]:
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copy(child / name, directory / name)
        here = ChildDir(directory)
        for name in wanted:
            figures["parity"][name] = written(name, net, x, task.any_size, directory)
        here.metrics.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        plan = about.get("quantization")
        page = quantized_card(figures, plan, about, task) if plan else card(figures, about, task, costs)
        here.card.write_text(page, encoding="utf-8")

    facts = {key: value for key, value in manifest.items() if key != "files"}
    atomic.write_directory(child, fill, facts, fence.check)
    return wanted


@torch.no_grad()
def written(name: str, net: nn.Module, x: Tensor, any_size: bool, directory: Path) -> float:
    """The largest difference of outputs between the network and its file, which stands in `directory` afterwards."""
    runtime = RUNTIMES[name]
    path = directory / runtime.file
    expected = net(x)
    try:
        with quiet():
            runtime.write(net, x, any_size, path)
            found = runtime.run(path, x)
    except Exception as error:  # whatever an exporter makes of a network that it cannot take
        told = " ".join(str(error).split())[:500]
        raise ValueError(f"{name} does not take this network: {type(error).__name__}: {told}") from error
    return float((expected - found).abs().max())
