"""Files of a child and of a run that somebody else has made: each is told for what it is, and nothing of it is run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nas
from nas.config.trust import Untrusted
from nas.results.history import front_table, read_children, read_pictures
from nas.rundir import atomic
from nas.rundir.checkpoint import Checkpoint
from nas.rundir.directory import RunDir

OLD = Path(__file__).parent.parent / "golden" / "old-run"
PLAIN, QUANTIZED = "a7fb0a02abc3", "a7fb0a02abc3-w4a4"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(OLD, tmp_path / "run")


def seal(directory: Path) -> None:
    """Make the manifest say what is there, as who forges one would."""
    manifest = json.loads((directory / "manifest.json").read_text())
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json"]
    manifest["files"] = {
        str(path.relative_to(directory)): {"size": path.stat().st_size, "sha256": atomic.sha256(path)} for path in files
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))


def forge(file: Path, change: Change | str) -> None:
    if isinstance(change, str):
        file.write_text(change)
    else:
        form = json.loads(file.read_text())
        change(form)
        file.write_text(json.dumps(form))
    seal(file.parent)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("", r"arch.json is not what it should be: Invalid JSON"),
        (10_000 * "[", r"arch.json is not what it should be"),
        ("[1, 2]", r"arch.json is not what it should be"),
        (lambda a: a.pop("child"), r"arch.json is not what it should be: child: Field required"),
        (lambda a: a.pop("network"), r"network: Field required"),
        (lambda a: a.update(child=7), r"child: "),
        (lambda a: a.update(child="searchspaces.bignas_child"), r"child: "),
        (lambda a: a.update(child="searchspaces.bignas_child:"), r"child: "),
        (lambda a: a.update(child="searchspaces.nothing:Child"), r"searchspaces.nothing:Child .* is not here"),
        (lambda a: a.update(child="searchspaces.bignas_child:Nothing"), r"bignas_child:Nothing .* is not here"),
        (lambda a: a.update(child="searchspaces.bignas:supernet", network={}), r"bignas:supernet .* is no class of a"),
        (lambda a: a.update(child="searchspaces.bignas_child:annotations"), r"is no class of a network"),
        (lambda a: a.update(child="os:system", network={"command": "true"}), r"os:system, outside searchspaces"),
        (lambda a: a.update(network=[1]), r"network: "),
        (lambda a: a.update(network={}), r"does not take the network of .*missing"),
        (lambda a: a["network"].update(more=1), r"does not take the network of .*unexpected keyword argument 'more'"),
        (lambda a: a["network"].update(classes="ten"), r"does not take the network of"),
        (lambda a: a["network"].update(classes=11), r"does not go with .*arch.json"),
        (lambda a: a["input"].update(shape=[1, 8]), r"input.shape"),
        (lambda a: a["input"].update(shape=[1, -8, 8]), r"input.shape.1"),
        (lambda a: a.update(quantization=3), r"quantization: "),
        (lambda a: a.update(quantization={"of": "x"}), r"quantization.method"),
    ],
)
def test_a_forged_arch_json_is_told(run: Path, change: Change | str, says: str) -> None:
    forge(run / "children" / PLAIN / "arch.json", change)
    with pytest.raises(ValueError, match=says) as told:
        nas.load_child(run / "children" / PLAIN)
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a["quantization"]["layers"].update(nothing={"weight_bits": 4, "input_bits": 4}),
        lambda a: a["quantization"].update(layers={}),
        lambda a: a["quantization"].update(folded=["nothing"]),
        lambda a: a["quantization"]["layers"].popitem(),
    ],
)
def test_a_forged_plan_of_a_quantized_child_is_told(run: Path, change: Change) -> None:
    forge(run / "children" / QUANTIZED / "arch.json", change)
    with pytest.raises(ValueError, match="does not go with .*arch.json"):
        nas.load_child(run / "children" / QUANTIZED)


def test_weights_that_are_none_are_told(run: Path) -> None:
    weights = run / "children" / PLAIN / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, next(iter(tensors)): torch.zeros(3, 3, 3)}, weights)
    seal(weights.parent)
    with pytest.raises(ValueError, match=r"model.safetensors does not go with .*arch.json"):
        nas.load_child(weights.parent)
    weights.write_bytes(b"no tensors")
    seal(weights.parent)
    with pytest.raises(atomic.Damaged, match=r"model.safetensors holds no tensors"):
        nas.load_child(weights.parent)


@pytest.mark.parametrize(
    "files",
    [
        None,
        3,
        [],
        {"arch.json": 3},
        {"arch.json": {"size": "1", "sha256": "x"}},
        {"arch.json": {"size": True, "sha256": 64 * "0"}},
        {"arch.json": {"size": 1, "sha256": "short"}},
        {"../../experiment.yaml": {"size": 1, "sha256": 64 * "0"}},
        {"/etc/passwd": {"size": 1, "sha256": 64 * "0"}},
        {"": {"size": 1, "sha256": 64 * "0"}},
    ],
)
def test_a_forged_manifest_is_no_manifest(run: Path, files: object) -> None:
    child = run / "children" / PLAIN
    (child / "manifest.json").write_text(json.dumps({"files": files}))
    with pytest.raises(atomic.Damaged, match=r"manifest.json"):
        nas.load_child(child)


def test_a_link_is_no_file_of_a_child(run: Path) -> None:
    child = run / "children" / PLAIN
    (child / "model.safetensors").rename(run / "elsewhere")
    (child / "model.safetensors").symlink_to(run / "elsewhere")
    with pytest.raises(atomic.Damaged, match="is a link"):
        nas.load_child(child)


@pytest.mark.parametrize(
    "change",
    [
        "",
        "[]",
        10_000 * "[",
        lambda m: m.update(validation=3),
        lambda m: m.update(validation={"accuracy": "good"}),
        lambda m: m.update(test=None),
        lambda m: m.update(baselines=[1]),
        lambda m: m.pop("id"),
    ],
)
def test_a_report_shows_what_is_whole(run: Path, change: Change | str) -> None:
    forge(run / "children" / PLAIN / "metrics.json", change)
    at = RunDir(run)
    assert list(read_children(at)) == [QUANTIZED]
    assert QUANTIZED in {row["id"] for row in front_table(at)}
    assert nas.Run(run).front.loc[QUANTIZED, "exported"]


def test_costs_that_are_no_numbers_are_left_out(run: Path) -> None:
    forge(run / "children" / PLAIN / "metrics.json", lambda m: m.update(macs=["<script>"]))
    (row,) = (row for row in front_table(RunDir(run)) if row["id"] == PLAIN)
    assert row["macs"] is None


@pytest.mark.parametrize("text", ["{", "{}", '[{"title": 1}]', '[{"title": "a", "panels": [{"file": "x"}]}]'])
def test_a_forged_list_of_pictures_is_passed_over(run: Path, text: str) -> None:
    (run / "children" / PLAIN / "pictures.json").write_text(text)
    assert read_pictures(RunDir(run)) == {}


@pytest.mark.parametrize("text", ["{", "{}", '{"state": {}}', '{"state": {"step": -1, "total": 3}, "recipe": {}}'])
def test_a_forged_state_is_told(run: Path, text: str) -> None:
    (directory,) = (run / "supernet").iterdir()
    (directory / "state.json").write_text(text)
    seal(directory)
    with pytest.raises(atomic.Damaged, match=r"state.json is not what it should be"):
        Checkpoint.open(directory)


# --- whose code


@pytest.fixture
def strange(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A run whose experiment names a function of a module that lies here, and leaves a mark when it is imported."""
    (tmp_path / "theirs.py").write_text(
        "from pathlib import Path\nPath('imported').touch()\nfrom nas.search.random import Random\n"
        "class Mine(Random):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    text = (run / "experiment.yaml").read_text()
    assert "algorithm: evolution" in text
    (run / "experiment.yaml").write_text(text.replace("algorithm: evolution", "algorithm: theirs:Mine"))
    yield run
    sys.modules.pop("theirs", None)


def test_a_run_imports_nothing_that_is_not_trusted(strange: Path) -> None:
    with pytest.raises(Untrusted, match="(?s)theirs.*--trust theirs") as told:
        RunDir(strange).load()
    assert len(str(told.value).splitlines()) < 5 and not Path("imported").exists()
    assert nas.Run(strange).front.loc[PLAIN, "exported"], "to look at it takes no trust"


def test_trust_is_remembered_for_that_run_outside_of_it(strange: Path, tmp_path: Path) -> None:
    before = {path.name for path in strange.iterdir()}
    RunDir(strange).trust(["theirs"])
    moved = strange.rename(tmp_path / "moved")
    assert nas.Run(moved).experiment.search.algorithm == "theirs:Mine" and Path("imported").exists()
    assert {path.name for path in moved.iterdir()} == before
    about = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps({**about, "id": "another"}))
    with pytest.raises(Untrusted):
        RunDir(moved).load()
    assert nas.Run(moved, trust=["theirs"]).experiment.search.algorithm == "theirs:Mine"


@pytest.mark.parametrize(
    "change",
    [
        "space: {name: 'os:system', size: touch imported}",
        "recipe: {name: 'os:system'}",
        "data: {name: 'os:system'}",
        "finetune: {recipe: {name: 'os:system'}}",
        "search: {costs: [{name: 'os:system'}]}",
        "search: {algorithm: 'os.path:join'}",
    ],
)
def test_every_place_of_a_plug_in_is_held_to_it(run: Path, change: str) -> None:
    (run / "experiment.yaml").write_text(change)
    with pytest.raises(Untrusted, match="names code that does not come with raynas: os"):
        RunDir(run).load()
