"""A child as others use it: every line of Python in docs/children.md is run on a real one, and one is registered in
MLflow."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import nas
from nas.build import load_supernet, load_task, make_supernet
from nas.children.evaluate import Batches, Evaluator
from nas.children.export import export_child, parity
from nas.children.formats import write_onnx
from nas.cli.commands import app
from nas.config.experiment import dump, load_experiment
from nas.results.tracking import Tracker, default_uri, register_model
from nas.rundir import atomic
from nas.rundir.directory import ChildDir, RunDir
from nas.rundir.fence import Fence
from nas.search.journal import Journal, Record
from nas.supernet import CostModel, inherit

PAGE = Path(__file__).parent.parent.parent / "docs" / "children.md"
ARGUMENTS = ["search.calibration=64", "search.calibration_batch=64"]


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A child of an untrained supernet, exported into a run as the pipeline does it."""
    run = tmp_path_factory.mktemp("work") / "runs" / "bignas-digits"
    (run / "search").mkdir(parents=True)
    experiment = load_experiment("bignas-digits", ARGUMENTS)
    (run / "experiment.yaml").write_text(dump(experiment))
    (run / "run.json").write_text(json.dumps({"id": "the-run", "name": "bignas-digits"}))
    task = load_task(experiment)
    net, device = make_supernet(experiment, task), torch.device("cpu")
    arch = net.space.smallest()
    about = {
        "space": "bignas",
        "size": experiment.space.size,
        "supernet": "5a" * 32,
        "data": "digits",
        "classes": list(task.classes),
    }
    evaluator = Evaluator(net, task, experiment.search, device)
    export_child(
        run / "children" / arch.id,
        arch,
        CostModel(net),
        evaluator,
        Batches(task.test, len(task.test), 500, device),
        about,
        True,
        Fence.take(run),
    )
    with Journal(run / "search" / "journal-5a5a5a5a.jsonl", {"supernet": "5a" * 32}) as journal:
        journal.append(Record(0, arch, {"accuracy": 10.0}, net.cost(arch), 0.1, None))
    return run / "children" / arch.id


def test_every_snippet_of_the_page_runs(child: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(snippets) == 5
    ours, others = (
        [s for s in snippets if "nas.load_child" in s],
        [s for s in snippets if "nas." not in s and "models:/" not in s],
    )
    assert len(ours) == 1 and len(others) == 3
    for snippet in others:  # in the child's directory, where raynas cannot be imported
        script = "import sys\nsys.modules['nas'] = sys.modules['searchspaces'] = None\n" + snippet
        done = subprocess.run([sys.executable, "-c", script], cwd=child, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stdout.strip().endswith(("]", ")")), done.stderr
    script = ours[0].replace("<id>", child.name)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=child.parents[3], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_registered_child_is_loaded_by_its_alias(child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process, with no class of raynas at hand; and the batch is free."""
    run = child.parents[1]
    told = CliRunner().invoke(app, ["register", str(run), child.name, "digits", "--alias", "champion"])
    assert isinstance(told.exception, ValueError) and "no run of the child" in str(told.exception)
    tracker = Tracker(RunDir(run), None, "bignas-digits")
    tracker.start()
    assert tracker.close(120) == 0
    monkeypatch.chdir(run.parent)
    for version, place in (("1", run), ("2", Path(run.name))):
        told = CliRunner().invoke(app, ["register", str(place), child.name, "digits", "--alias", "champion"])
        assert told.exit_code == 0 and f"digits, version {version}" in told.output, told.output
    [snippet] = [s for s in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "models:/" in s]
    pixels = torch.rand(5, 1, 8, 8)
    expected = nas.load_child(child)(pixels)
    script = f"""
import sys
sys.modules['nas'] = sys.modules['searchspaces'] = None
import mlflow
mlflow.set_tracking_uri({default_uri(RunDir(run))!r})
{snippet}
print(model(torch.tensor({pixels.tolist()})).flatten().tolist())
print(mlflow.MlflowClient().get_model_version_by_alias('digits', 'champion').version)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures, version = done.stdout.strip().splitlines()[-2:]
    assert version == "2"
    torch.testing.assert_close(torch.tensor(json.loads(figures)), expected.flatten())


def test_a_version_keeps_its_files_whatever_is_registered_after_it(
    child: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another child of the same architecture, as one that was trained on is; and one that takes images of any size."""
    import mlflow.pytorch

    run, other = child.parents[1], child.with_name(f"{child.name}-finetuned")

    def changed(directory: Path) -> None:
        for path in child.iterdir():
            if path.name != atomic.MANIFEST:
                shutil.copy(path, directory)
        tensors = load_file(child / "model.safetensors")
        save_file(
            {name: value * 2 if name.endswith("bias") else value for name, value in tensors.items()},
            directory / "model.safetensors",
        )

    atomic.write_directory(other, changed, {})
    tracker = Tracker(RunDir(run), None, "bignas-digits")
    tracker.start()
    assert tracker.close(120) == 0
    for each in (child, other):
        assert CliRunner().invoke(app, ["register", str(run), each.name, "two"]).exit_code == 0
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", default_uri(RunDir(run))
    )  # mlflow.set_tracking_uri would set it for every later test
    x = torch.rand(3, 1, 8, 8)
    for version, each in (("1", child), ("2", other)):
        torch.testing.assert_close(mlflow.pytorch.load_model(f"models:/two/{version}")(x), nas.load_child(each)(x))
    assert not torch.allclose(nas.load_child(child)(x), nas.load_child(other)(x))

    enlarger = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.PixelShuffle(2)).eval()
    register_model(
        RunDir(run),
        default_uri(RunDir(run)),
        "bignas-digits",
        enlarger,
        child.name,
        "5a" * 32,
        "enlarger",
        (1, 8, 8),
        True,
        "enlarger",
        None,
    )
    x = torch.rand(1, 1, 14, 9)
    torch.testing.assert_close(mlflow.pytorch.load_model("models:/enlarger/1")(x), enlarger(x))


def test_what_is_not_exported_is_told(child: Path) -> None:
    told = CliRunner().invoke(app, ["register", str(child.parents[1]), "nobody", "digits"])
    assert isinstance(told.exception, ValueError) and f"there are {child.name}" in str(told.exception)


@pytest.mark.parametrize("failures", [2, 3])
def test_an_exporter_that_fails_now_and_then_is_asked_again(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export, calls = torch.onnx.export, []

    def flaky(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) <= failures:
            raise torch.onnx.OnnxExporterError("in no order")
        return export(*args, **options)

    monkeypatch.setattr(torch.onnx, "export", flaky)
    net = nas.load_supernet("bignas", "d8")
    child, x = net.extract(net.space.smallest()), torch.rand(2, 1, 8, 8)
    with nullcontext() if failures == 2 else pytest.raises(torch.onnx.OnnxExporterError, match="in no order"):
        write_onnx(child, x, tmp_path / "model.onnx")
    assert len(calls) == 3 and (tmp_path / "model.onnx").exists() == (failures == 2)


def test_a_child_that_is_another_network_is_not_exported() -> None:
    """Its class may compute something else than the supernet does, and nobody would see it in a score."""
    net = load_supernet("bignas", "d8", classes=3, channels=1)
    arch = net.space.smallest()
    child, x = net.extract(arch), torch.rand(16, *net.input_shape)
    with torch.no_grad():
        [*child.parameters()][0].mul_(-1.0)
    with pytest.raises(ValueError, match=rf"the child {arch.id} is another network than the supernet's: outputs are"):
        parity(net, child, arch, x, ChildDir(Path("nowhere")), None)


def test_a_parameter_that_the_supernet_does_not_have_is_named() -> None:
    """And one that is larger than the supernet's."""
    net = torch.nn.ModuleDict({"broad": torch.nn.Linear(4, 4)})
    with pytest.raises(
        ValueError, match=r"a parameter 'bread.weight', and the supernet none of that name \(broad.weight"
    ):
        inherit(torch.nn.ModuleDict({"bread": torch.nn.Linear(4, 4)}), net)
    for wrong in (torch.nn.Linear(4, 5), torch.nn.Conv2d(4, 4, 1)):
        with pytest.raises(ValueError, match=r"'broad.weight' is \(.*\) in the child and \(4, 4\) in the supernet"):
            inherit(torch.nn.ModuleDict({"broad": wrong}), net)
    child = torch.nn.ModuleDict({"broad": torch.nn.Linear(2, 3)})
    inherit(child, net)
    assert torch.equal(child["broad"].weight, net["broad"].weight[:3, :2])
