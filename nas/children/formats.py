"""A child as files of other runtimes: ONNX, of the network alone and from the picture on."""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from nas.preprocess import Preprocess
from nas.rundir.directory import ChildDir

# torch.export (2.14) fails once in a hundred times, its nodes in an order that it refuses itself, and does not when
# asked again
EXPORTS = 3
PARITY_PICTURES = 8  # on which the ONNX file that takes pictures is compared
PIXELS, OUTPUT, PICTURE = "pixels", "output", "picture"  # names of inputs and outputs
BEFORE = "preprocess/"  # what names of nodes before the network begin with


def write_onnx(child: nn.Module, x: Tensor, path: Path, any_size: bool = False) -> None:
    """The child as one ONNX file, any batch size, weights inside; of any height and width too, where the task wants
    that."""
    from torch.export import Dim

    free = {2: Dim.AUTO, 3: Dim.AUTO} if any_size else {}
    _write(child, several(x), path, (PIXELS, OUTPUT), {0: Dim("batch", min=1), **free})


def several(x: Tensor) -> Tensor:
    """Examples, a lone one twice: torch.export takes a side of 1 for one that is always 1."""
    return x if len(x) > 1 else x.expand(2, *x.shape[1:]).contiguous()


def write_fixed_onnx(child: nn.Module, x: Tensor, path: Path) -> None:
    """The child as one ONNX file of this batch and size alone: quicker to write, for what is only to be timed."""
    _write(child, x, path, (PIXELS, OUTPUT), {})


def write_picture_onnx(preprocess: Preprocess, network: Path, path: Path) -> None:
    """A network's ONNX file with its preprocessing before it: from one picture, uint8 ``(H, W, 3)`` of any size."""
    import onnx  # takes time to import, so where it is used

    config = preprocess.config
    before = onnx.load_from_string(_preprocessing(config["channels"] or 3, config["side"], config["short"]))
    after = onnx.load(network)
    joined = onnx.compose.merge_models(
        onnx.compose.add_prefix(before, BEFORE), after, io_map=[(BEFORE + PIXELS, after.graph.input[0].name)]
    )
    joined.graph.input[0].name = PICTURE
    for node in joined.graph.node:
        node.input[:] = [PICTURE if name == BEFORE + PICTURE else name for name in node.input]
    onnx.save(joined, path)


class _FromArray(nn.Module):
    """Preprocessing of an array ``(H, W, 3)``, as other runtimes give it."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess

    def forward(self, x: Tensor) -> Tensor:
        return self.preprocess(x.permute(2, 0, 1))


@cache
def _preprocessing(channels: int, side: int | None, short: int | None) -> bytes:
    """The ONNX file of preprocessing, the same for all children of a run."""
    from torch.export import Dim

    example = torch.zeros((side or 31) + 3, (side or 31) + 5, 3, dtype=torch.uint8)
    with TemporaryDirectory() as folder:
        path = Path(folder, "preprocess.onnx")
        _write(
            _FromArray(Preprocess(channels, side, short)),
            example,
            path,
            (PICTURE, PIXELS),
            {0: Dim.DYNAMIC, 1: Dim.DYNAMIC},
        )
        return path.read_bytes()


def _write(net: nn.Module, x: Tensor, path: Path, names: tuple[str, str], shapes: Mapping[int, Any]) -> None:
    """At most `EXPORTS` tries; the last error is raised."""
    with quiet():
        for left in reversed(range(EXPORTS)):
            try:
                torch.onnx.export(
                    net.eval(),
                    (x,),
                    path,
                    dynamo=True,
                    external_data=False,
                    input_names=[names[0]],
                    output_names=[names[1]],
                    dynamic_shapes={"x": dict(shapes)} if shapes else None,
                    verbose=False,
                )
                break
            except torch.onnx.OnnxExporterError:
                if not left:
                    raise
    _anonymise(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters talk about their own insides."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    silent = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _anonymise(path: Path) -> None:
    """Take out of an ONNX file what the exporter noted of this machine's source files; it is most of a small one."""
    import onnx

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


class OnnxFile:
    """An ONNX file as something to call with a batch, exact on every CPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if not integers_are_exact():
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # no integer kernels
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, x: Tensor) -> Tensor:
        (pixels,) = self.session.get_inputs()
        return torch.from_numpy(self.session.run(None, {pixels.name: x.cpu().numpy()})[0]).to(x.device)


def onnx_pass(path: Path, x: Tensor, threads: int) -> Callable[[], object]:
    """One pass of an ONNX file on the CPU, all of ONNX Runtime's optimisations on, as something to call and to time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, given)


def integers_are_exact() -> bool:
    """Whether ONNX Runtime's kernels for 8 bits are exact on this CPU: those of x86 without VNNI add pairs in 16
    bits, which saturate."""
    cpu = Path("/proc/cpuinfo")
    return platform.machine() not in ("x86_64", "AMD64") or not cpu.exists() or "vnni" in cpu.read_text()


@torch.no_grad()
def onnx_parity(child: nn.Module, x: Tensor, files: ChildDir, preprocess: Preprocess | None) -> dict[str, float]:
    """Largest differences between a child's outputs and those of its ONNX files, as far as there are any.

    ``onnx``: of the network alone, on `x` ``(n, C, H, W)``; ``picture_onnx``: of that which takes pictures, on some of
    these as such.
    """
    found = {}
    if files.onnx.exists():
        found["onnx"] = float((child(x) - OnnxFile(files.onnx)(x)).abs().max())
    if files.picture_onnx.exists() and preprocess is not None:
        levels, taken = (x[:PARITY_PICTURES] * 255).round().to(torch.uint8), OnnxFile(files.picture_onnx)
        pictures = levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
        apart = [child(preprocess(picture.permute(2, 0, 1))) - taken(picture) for picture in pictures]
        found["picture_onnx"] = float(torch.cat(apart).abs().max())
    return found
