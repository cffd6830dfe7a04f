"""``nas init``: what it finds in a folder, and that what it writes can be run as it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nas.build import load_recipe, load_task, make_supernet
from nas.cli import starter
from nas.cli.commands import app
from nas.config.experiment import load_experiment
from tests.driving import command


def pictures(folder: Path, count: int, side: int, long: int = 0) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (side, max(side, long), 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.{('jpg', 'PNG')[i % 2]}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my pictures"


def started(*words: str) -> str:
    told = CliRunner().invoke(app, ["init", *words])
    assert told.exit_code == 0, told.exception
    return " ".join(told.output.split())


@pytest.mark.parametrize(("side", "size"), [(40, "c32-lite"), (90, "p64"), (420, "p96")])
def test_class_folders_become_an_experiment_that_fits(side: int, size: str, folder: Path) -> None:
    for name, count in (("ant", 8), ("bee", 14)):
        pictures(folder / "train" / name, count, side, side + 20)
        pictures(folder / "val" / name, 3, side)
    told = started("my pictures")
    assert f"2 classes of 8 to 14, 22 pictures to train on, 6 in val, {side} pixels the short side" in told
    assert "next: nas run my-pictures.yaml (--minutes 10 trains" in told
    experiment = load_experiment("my-pictures.yaml")
    task = load_task(experiment)
    net = make_supernet(experiment, task)
    load_recipe(task, experiment.recipe).optimizer(net)
    assert experiment.space.size == size and net.input_shape == task.input_shape
    assert (len(task.train), len(task.validation), len(task.test)) == (18, 4, 6)
    assert experiment.recipe.batch <= len(task.train)
    text = Path("my-pictures.yaml").read_text()
    assert "$" not in text and text.count("#") > 10


@pytest.mark.parametrize(
    ("out", "name", "told"),
    [
        ("my exp.yaml", "my-exp", "nas run 'my exp.yaml'"),
        ("010.yaml", "010", "nas run 010.yaml"),
        ("on.yml", "on", ""),
    ],
)
def test_a_file_of_another_name_loads(out: str, name: str, told: str, folder: Path) -> None:
    pictures(folder / "train" / "ant", 4, 32)
    pictures(folder / "train" / "bee", 4, 32)
    pictures(folder / "val" / "ant", 2, 32)
    pictures(folder / "val" / "bee", 2, 32)
    assert told in started("my pictures", "--out", out)
    assert load_experiment(out).name == name


@pytest.mark.parametrize(("ants", "bees", "held"), [(2, 2, 2), (2, 3, 2), (2, 40, 8)])
def test_few_pictures_are_enough_to_begin(ants: int, bees: int, held: int, folder: Path) -> None:
    """Of every class something is left to train on, and a batch is not larger than that."""
    for name, count in (("ant", ants), ("bee", bees)):
        pictures(folder / "train" / name, count, 50)
        pictures(folder / "test" / name, 1, 50)
    started("my pictures")
    experiment = load_experiment("my-pictures.yaml")
    task = load_task(experiment)
    assert (len(task.train), len(task.validation)) == (ants + bees - held, held)
    assert experiment.recipe.batch <= len(task.train) and experiment.search.calibration > 1


@pytest.mark.parametrize("count", [6, 8, 40])
def test_any_number_of_photographs_can_be_begun_with(count: int, folder: Path) -> None:
    pictures(folder / "train", count, 40)
    pictures(folder / "test", 2, 90)
    started("my pictures")
    assert load_experiment("my-pictures.yaml").recipe.epochs == 30


def test_photographs_become_a_super_resolution(folder: Path) -> None:
    pictures(folder / "train", 6, 400)
    pictures(folder / "test", 2, 90)
    started("my pictures", "--out", "sr.yaml")
    experiment = load_experiment("sr.yaml")
    assert (experiment.name, experiment.space.name) == ("sr", "quantnas")
    assert make_supernet(experiment, load_task(experiment)).quantizes


def test_an_own_space_to_start_from_is_checked_and_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            pictures(folder / part / name, 4, 64)
    told = started("my pictures", "--own-space")
    assert "nas check own_space:resnet" in told
    monkeypatch.syspath_prepend(folder.parent)
    experiment = load_experiment("my-pictures.yaml")
    assert experiment.space.name == "own_space:resnet"
    assert make_supernet(experiment, load_task(experiment)).input_shape == (3, 64, 64)


def test_nothing_is_written_over(folder: Path) -> None:
    pictures(folder / "train", 6, 200)
    pictures(folder / "test", 2, 90)
    Path("my-pictures.yaml").write_text("mine")
    told = CliRunner().invoke(app, ["init", "my pictures"])
    assert "my-pictures.yaml is there already" in str(told.exception)
    assert Path("my-pictures.yaml").read_text() == "mine"


def test_what_is_no_data_is_told(folder: Path) -> None:
    for change, says in (
        (lambda: folder.mkdir(), "it has no folders"),
        (lambda: pictures(folder / "cats", 2, 40), "it has the folders cats"),
        (lambda: pictures(folder / "train" / "ant", 1, 40), "train/<class>/"),
        (lambda: (folder / "test").mkdir(), "no images in test"),
        (lambda: pictures(folder / "test" / "ant", 1, 40), "the class ant alone"),
        (lambda: pictures(folder / "train" / "cow", 2, 40), "ant of .* one training image; it takes two"),
        (lambda: (folder / "train" / "bee").mkdir(), "no images in train/bee"),
        (lambda: (folder / "train" / "bee" / "0.jpg").write_bytes(b"no image"), "one training image"),
    ):
        change()
        with pytest.raises(ValueError, match=says):
            starter.look(folder)
    for name in ("ant", "bee"):
        pictures(folder / "train" / name / "more", 3, 40)
    with pytest.raises(ValueError, match=r"cannot read the image .*bee/0\.jpg"):
        starter.look(folder)


def test_every_row_of_the_table_is_of_a_space_that_is_there() -> None:
    import json

    from nas.build import load_supernet

    for row in json.loads((starter._presets() / "starters.json").read_text()):
        load_supernet(row["space"], row["size"])
        assert load_experiment(row["measured"]).space.name == row["space"]


def test_it_answers_without_torch(folder: Path) -> None:
    pictures(folder / "train", 6, 200)
    pictures(folder / "test", 2, 90)
    import subprocess
    import sys

    script = (
        "import sys; sys.argv = ['nas', 'init', 'my pictures']\nfrom nas.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
    assert command("init", "nowhere", cwd=folder.parent).code == 1
