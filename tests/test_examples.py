"""The examples: held to their contracts as their first lines say, and run on real workers from their own folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nas
from nas.cli.check import find, run
from tests.driving import PATIENCE, STRANGER, command, environment, outputs_of, records, sets

EXAMPLES = Path(__file__).parent.parent / "examples"
FEW = [
    *("recipe.epochs=2", "train.checkpoint_every=20", "search.window=4", "search.candidates=6"),
    *("export.children=1", "export.onnx=false"),
]
ONE = ["train.workers=1", "search.trials=1"]
OWN = ["search.algorithm=own_search:Ageing", "search.options.population=10", "search.cost=energy", "train.workers=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples, where a user would stand."""
    return shutil.copytree(EXAMPLES, tmp_path_factory.mktemp("user") / "examples")


def lines_of(path: Path) -> list[str]:
    """The commands that a file opens with."""
    return re.findall(r"^    (nas check .*)$", path.read_text().split('"""')[1], re.MULTILINE)


CHECKED = sorted(path.name for path in EXAMPLES.glob("*.py") if lines_of(path))


def test_every_kind_has_an_example() -> None:
    wanted = {f"own_{kind}.py" for kind in ("space", "recipe", "search", "task", "cost")}
    assert wanted <= set(CHECKED)


@pytest.mark.parametrize("name", CHECKED)
def test_an_example_keeps_its_contract(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    (line,) = lines_of(folder / name)
    _, _, thing, *words = line.split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    plugin = find(thing, given.get("--size", ""), [given["--set"]] if "--set" in given else [])
    assert [outcome for outcome in run(plugin) if not outcome.ok] == []


def test_the_command_goes_check_by_check_and_says_what_is_next(folder: Path) -> None:
    ended = command("check", "own_cost:Energy", cwd=folder)
    assert ended.code == 0, ended.text
    assert all(
        re.search(rf"^  ok +{name} +\d+\.\d\d s$", ended.text, re.MULTILINE) for name in ("names", "pure", "speed")
    )
    assert "next: nas run bignas-digits --set 'search.costs=[{name: \"own_cost:Energy\"}]'" in ended.text


def test_a_broken_plug_in_is_explained_on_one_screen(folder: Path) -> None:
    broken = (folder / "own_cost.py").read_text().replace("/ 1e6", "/ 1e6 - 9e9")
    (folder / "broken.py").write_text(broken)
    ended = command("check", "broken:Energy", cwd=folder)
    assert ended.code == 1 and len(ended.lines) <= 24, ended.text
    assert "FAILED numbers" in ended.text and "allowed: finite numbers from 0" in ended.text
    assert "Look for" in ended.text and "next:" not in ended.text and "Traceback" not in ended.text


@pytest.mark.parametrize(
    ("thing", "told"),
    [
        ("no_such:Thing", "there is no module 'no_such'; it must lie in the current directory"),
        ("own_space:nothing", "the module 'own_space' has no 'nothing'; it has: "),
        ("own_space:SIZES", "allowed: a subclass of Recipe, Search, Task, Cost, or what makes a Supernet"),
        ("sandwitch", "nothing is called 'sandwitch'"),
    ],
)
def test_what_is_no_plug_in_is_told(thing: str, told: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(ValueError, match=re.escape(told)):
        find(thing)


@pytest.fixture(scope="module")
def own(folder: Path) -> Path:
    """A run whose space, recipe, search and cost are all of one's own, on two workers; where the user stands lie files
    too that are called as packages are, those that are here and those that some package would use if they were."""
    traps = [folder / f"{name}.py" for name in ("deepspeed", "torch", "mlflow", "yaml", "cupy", "tensorflow", "triton")]
    for trap in traps:
        trap.write_text(f"open({str(folder / 'trapped')!r}, 'a').write(__name__)\nraise SystemExit(3)")
    recipe = "recipe={name: own_recipe:Balanced, epochs: 2, batch: 64}"
    words = [recipe, *FEW, "search.costs=[{name: own_cost:Energy}]", *OWN]
    ended = command("run", "own_space.yaml", *sets(words), cwd=folder, patience=PATIENCE)
    assert ended.code == 0, ended.text
    for trap in traps:
        trap.unlink()
    return folder / "runs" / "own-space"


def test_a_run_of_all_but_a_task_of_ones_own(own: Path, folder: Path) -> None:
    assert not (folder / "trapped").exists(), f"imported: {(folder / 'trapped').read_text()}"
    found = records(own)
    assert sorted(found) == list(range(6))
    assert all(record["cost"]["energy"] > 0 and record["metrics"] is not None for record in found.values())
    line = json.loads((own / "train" / "metrics.jsonl").read_text().splitlines()[0])
    assert set(line["loss"]) == {"largest", "random", "smallest"}
    header = json.loads(next((own / "search").glob("journal-*")).read_text().splitlines()[0])
    assert header["algorithm"] == "ageing" and "energy" in header["costs"]


def test_its_children_load_where_there_is_no_raynas(own: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = next(path for path in (own / "children").iterdir() if (path / "arch.json").is_file())
    lines, *_ = re.findall(r"```python\n(.*?)```", (child / "README.md").read_text(), re.DOTALL)
    shape = "print(list(model(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape))"
    script = STRANGER + lines + shape
    done = subprocess.run([sys.executable, "-c", script], cwd=child, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [3, 10]
    page = (child / "README.md").read_text()
    (elsewhere,) = re.findall(r'nas.load_child\("PATH/\w+", modules=\("(\w+)",\)\)', page)
    assert nas.load_child(child, modules=(elsewhere,)).training is False
    monkeypatch.chdir(folder)
    net = nas.Run(own).child(child.name)
    assert net(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_a_run_of_a_task_of_ones_own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ["recipe.epochs=1", "data.train=320", "data.validation=64", *FEW[1:], *ONE]
    ended = command("run", "own_task.yaml", *sets(few), cwd=folder, patience=PATIENCE)
    assert ended.code == 0, ended.text
    made = folder / "runs" / "own-task"
    assert all(set(record["metrics"]) == {"mean_iou", "pixel_accuracy"} for record in records(made).values())
    child = next(path for path in (made / "children").iterdir() if (path / "arch.json").is_file())
    figures = json.loads((child / "metrics.json").read_text())
    assert set(figures["test"]) == {"mean_iou", "pixel_accuracy"} and "background" in figures["baselines"]
    assert json.loads((child / "arch.json").read_text())["classes"][0] == "background"
    monkeypatch.syspath_prepend(folder)
    import own_task

    scenes, folder_ = own_task.Scenes(own_task.ScenesOptions(name="own", validation=64), 0), tmp_path / "scenes"
    folder_.mkdir()
    x, target = scenes.test.batch(np.arange(len(scenes.test)))
    pictures = [folder_ / f"{row}.png" for row in range(len(x))]
    for picture, path in zip((x * 255).round().to(torch.uint8), pictures, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    right = torch.cat(outputs_of(child, pictures, folder_)).argmax(1) == target
    assert 100 * float(right.double().mean()) == pytest.approx(figures["test"]["pixel_accuracy"], abs=0.001)
