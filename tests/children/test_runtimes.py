"""Children in further formats: written beside the others, the same outputs, and a clear answer where that cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import nas
from nas.build import load_task
from nas.children.formats import OnnxFile, write_onnx
from nas.children.runtimes import RUNTIMES, add, run_pt2, write_pt2, written
from nas.cli.commands import FORMATS, app, check_formats
from nas.config.experiment import load_experiment
from nas.rundir import atomic
from nas.rundir.fence import Fence
from nas.space import COSTS
from tests.children.test_card import exported


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A child in every format."""
    run = tmp_path_factory.mktemp("formats") / "run"
    child, _, task = exported(load_experiment("bignas-digits", []), run)
    before = {path.name: path.read_bytes() for path in child.iterdir()}
    assert add(child, list(FORMATS), task, ("searchspaces",), COSTS, Fence.take(run)) == list(FORMATS)
    assert add(child, list(FORMATS), task, ("searchspaces",), COSTS, Fence.take(run)) == []
    for name in ("model.safetensors", "model.py", "config.json", "arch.json"):
        assert (child / name).read_bytes() == before[name]
    return child


def test_every_format_gives_the_same(child: Path) -> None:
    atomic.verify(child, ("model.pt2", "openvino.xml", "openvino.bin", "model.pte"))
    x, net = torch.rand(5, 1, 8, 8), nas.load_child(child)
    figures = json.loads((child / "metrics.json").read_text())
    page = (child / "README.md").read_text()
    for name, runtime in RUNTIMES.items():
        found = runtime.run(child / runtime.file, x)
        assert torch.allclose(found, net(x), atol=1e-5), name
        assert 0 <= figures["parity"][name] < 1e-5 and runtime.file in page


def test_a_program_is_loaded_where_there_is_no_raynas(child: Path) -> None:
    script = (
        "import sys; sys.modules['nas'] = sys.modules['searchspaces'] = None\nimport torch\n"
        "print(tuple(torch.export.load('model.pt2').module()(torch.rand(3, 1, 8, 8)).shape))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=child, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "(3, 10)", done.stderr


@pytest.mark.parametrize("space", ["bignas", "vit_resnas"])
def test_a_lone_example_makes_files_for_any_number(space: str, tmp_path: Path) -> None:
    """As search.score_batch 1 and search.validation 1 give it."""
    torch.manual_seed(0)
    net = nas.load_supernet(space, "d8" if space == "bignas" else "d8-smoke")
    child = net.extract(net.space.smallest()).eval()
    write_onnx(child, torch.rand(1, *net.input_shape), tmp_path / "model.onnx")
    x = torch.rand(3, *net.input_shape)
    assert torch.allclose(OnnxFile(tmp_path / "model.onnx")(x), child(x), atol=1e-4)
    write_pt2(child, x[:1], False, tmp_path / "model.pt2")
    assert torch.allclose(run_pt2(tmp_path / "model.pt2", x), child(x), atol=1e-5)


def test_super_resolution_takes_any_size(tmp_path: Path) -> None:
    """But for ExecuTorch, whose memory is laid out beforehand."""
    experiment = load_experiment("quantnas-photos", ["search.validation=2"])
    child, _, task = exported(experiment, tmp_path / "run", test=1)
    add(child, ["pt2", "openvino"], task, ("searchspaces",), COSTS, Fence.take(tmp_path / "run"))
    x, net = torch.rand(1, 3, 21, 34), nas.load_child(child)
    for name in ("pt2", "openvino"):
        found = RUNTIMES[name].run(child / RUNTIMES[name].file, x)
        assert found.shape == (1, 3, 42, 68) and torch.allclose(found, net(x), atol=1e-4), name


def test_a_child_of_before_is_left_as_it_is(child: Path, tmp_path: Path) -> None:
    """Its card would speak of files that it has not."""
    run, old = tmp_path / "run", tmp_path / "run" / "children" / "old"

    def without(directory: Path) -> None:
        for name in ("model.safetensors", "model.py", "arch.json", "metrics.json", "README.md"):
            (directory / name).write_bytes((child / name).read_bytes())

    old.parent.mkdir(parents=True)
    atomic.write_directory(old, without, {"supernet": "5a" * 32})
    task = load_task(load_experiment("bignas-digits", []))
    with pytest.raises(ValueError, match="old was exported before children had their preprocessing: remove it"):
        add(old, ["pt2"], task, ("searchspaces",), COSTS, Fence.take(run))


def test_the_command_knows_every_format() -> None:
    assert list(FORMATS) == list(RUNTIMES)


class Sorting(nn.Module):
    """What an exporter cannot follow: a branch on what the pixels are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("name", ["pt2", "openvino"])
def test_a_network_that_cannot_be_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} does not take this network: "):
        written(name, Sorting(), torch.rand(2, 1, 4, 4), False, tmp_path)


def test_formats_that_are_not_there_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = CliRunner().invoke(app, ["export", "runs/nowhere", "--format", "tflite"])
    assert "no format 'tflite'; there are pt2, openvino, executorch" in str(told.exception)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'raynas\[openvino\]'"):
        check_formats(["openvino"])
