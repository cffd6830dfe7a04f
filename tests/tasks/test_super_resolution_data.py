"""Photographs that are not there or not right, and what an experiment says of the task."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from nas.build import load_supernet, load_task, objective_of
from nas.config.experiment import ExperimentError, dump, load_experiment
from nas.tasks import pairs
from nas.tasks.index import Index
from nas.tasks.options import SuperResolutionOptions
from nas.tasks.pairs import Crops, load_photos
from nas.tasks.places import DataMissing, images
from nas.tasks.stored import Store, StoredPhoto
from nas.tasks.super_resolution import SuperResolution
from tests.tasks.photographs import experiment, noise, settings


def test_a_missing_folder_is_told_with_the_ways_to_get_it(nowhere: Path) -> None:
    wanted = settings(name="sr-folder", path="sr", train="BSDS200_train", test="Set5")
    for call in (load_photos, SuperResolutionOptions.locate):
        with pytest.raises(DataMissing) as error:
            call(wanted)
        for part in (
            "data.path",
            str(nowhere / "sr"),
            str(Path.cwd() / "data" / "sr"),
            "BSDS200_train",
            "Set5",
            "RAYNAS_DATA",
            "photos",
        ):
            assert part in str(error.value), part
    assert settings().locate() is None


def test_broken_folders_are_told(nowhere: Path) -> None:
    wanted = settings(name="sr-folder", path="mine", patch=8, validation=3)
    for folder in ("train", "test"):
        (nowhere / "mine" / folder / "deep").mkdir(parents=True)
    with pytest.raises(ValueError, match="no images in .*train"):
        SuperResolution(wanted, 0)
    for i in range(3):
        Image.fromarray(noise(70, 70, i)).save(nowhere / "mine" / "train" / "deep" / f"{i}.png")
    Image.fromarray(noise(31, 40)).save(nowhere / "mine" / "test" / "small.png")
    with pytest.raises(ValueError, match="small is smaller than 32"):
        SuperResolution(wanted, 0)
    Image.fromarray(noise(40, 40)).save(nowhere / "mine" / "test" / "small.png")
    with pytest.raises(ValueError, match=r"all but one of the 3 training images hold 2 crops of 64 x 64"):
        SuperResolution(wanted, 0)
    with pytest.raises(ValueError, match=r"small is smaller than 45 pixels \(with data.border 16\)"):
        SuperResolution(settings(name="sr-folder", path="mine", patch=16, validation=1, border=16), 0)
    task = SuperResolution(wanted.model_copy(update={"validation": 2}), 0)
    assert len(task.train) == 4 and len(task.validation) == 2
    with pytest.raises(ValueError, match=r"0 is 70 x 70 pixels; data.patch 40 at scale 2 needs 80"):
        SuperResolution(wanted.model_copy(update={"patch": 40}), 0)
    shutil.copy(nowhere / "mine" / "train" / "deep" / "1.png", nowhere / "mine" / "test" / "other.png")
    with pytest.raises(ValueError, match=r"1 of 2 test images are in data.train too, such as .*other.png"):
        SuperResolution(wanted, 0)
    (nowhere / "mine" / "test" / "other.png").unlink()
    file = nowhere / "mine" / "train" / "deep" / "1.png"
    file.write_bytes(file.read_bytes()[:-900])
    with pytest.raises(ValueError, match=r"cannot read the image .*1\.png"):
        SuperResolution(wanted, 0)


def test_what_is_hidden_is_no_photograph(nowhere: Path) -> None:
    base = nowhere / ".mine"
    for folder in ("train/deep", "train/.old/deep", "test", "test/.ipynb_checkpoints"):
        (base / folder).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(noise(70, 70, i + 3 * folder.startswith("test"))).save(base / folder / f"{i}.png")
        (base / folder / "._0.png").write_bytes(b"no image")
    learnt, judged = load_photos(settings(name="sr-folder", path=str(base), patch=8))
    assert [len(learnt), len(judged), len(list(images(base / "train")))] == [3, 3, 3]


def test_many_photographs_lie_in_one_file(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch holds does not depend on where they lie; the file is written once, whatever the process."""
    for folder, seeds in (("train", range(6)), ("test", range(6, 8))):
        (nowhere / "mine" / folder).mkdir(parents=True)
        for i in seeds:
            Image.fromarray(noise(70 + i, 80, i)).save(nowhere / "mine" / folder / f"{i}.png")
    given, run = settings(name="sr-folder", path="mine", patch=8, validation=3), nowhere / "run"
    run.mkdir()
    here = SuperResolution(given, 0)
    monkeypatch.setattr(pairs, "MOST_BYTES", 2 * 77 * 80 * 3)  # for the test part
    first = Index(run / "index.json")
    with first.used():
        there = SuperResolution(given, 0)
    (run / "index.json").write_text(str(first.news))
    rows = np.arange(len(here.train))

    def same(task: SuperResolution) -> bool:
        pairs_of = ((here.train, task.train, rows, 3), (here.validation, task.validation, np.arange(3), None))
        return all(
            torch.equal(a, b)
            for one, two, which, epoch in pairs_of
            for a, b in zip(one.batch(which, epoch), two.batch(which, epoch), strict=True)
        )

    assert here.network == there.network and here.chance == there.chance and isinstance(there.train, Crops)
    assert isinstance(there.train.photos[0], StoredPhoto) and not isinstance(here.train.photos[0], StoredPhoto)
    assert same(there), "decoded at each use where there is no run yet"
    first.shared = run / "shared"
    assert same(there) and (run / "shared" / "photographs").stat().st_size == sum(3 * 80 * (70 + i) for i in range(6))
    again = Index(run / "index.json", run / "shared")
    reads = mock.Mock(side_effect=AssertionError("it was looked at before"))
    with again.used(), monkeypatch.context() as patch:
        patch.setattr(Store, "_write", reads)
        assert same(SuperResolution(given, 0)) and again.news is None and not reads.called
    monkeypatch.setattr(pairs, "MOST_BYTES", 77 * 80 * 3)
    with pytest.raises(ValueError, match="2 test images would take"):
        SuperResolution(given, 0)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.scale=5", "data.scale: given 5; allowed: 2, 3 or 4"),
        ("data.patch=4", "greater than or equal to 8"),
        ("data.name=sr-folder", "needs path"),
        ("data.path=here", "sr-folder alone"),
        ("data.border=17", "at most patch, 16"),
        ("data.shift=1", "data.shift: unknown key"),
        ("data.name=sr_folder", "sr-folder"),
        ("search.validation=9", "more than the 8 examples"),
    ],
)
def test_refused(override: str, part: str) -> None:
    with pytest.raises(ExperimentError) as error:
        experiment(override)
    assert part in str(error.value)


def test_an_experiment_says_its_task(tmp_path: Path) -> None:
    told = experiment("data.tile=64")
    (tmp_path / "again.yaml").write_text(dump(told))
    assert load_experiment(tmp_path / "again.yaml") == told
    assert (
        isinstance(load_task(told), SuperResolution)
        and load_task(load_experiment("bignas-digits")).metric == "accuracy"
    )


def test_the_search_wants_a_figure_that_the_task_gives() -> None:
    task, plain = load_task(experiment()), load_supernet("bignas", "d8")
    assert (
        objective_of(experiment(), task, plain).metric == "psnr"
        and objective_of(experiment("search.metric=ssim"), task, plain).better == "higher"
    )
    assert (
        objective_of(experiment(), task, plain).cost,
        objective_of(experiment(), task, load_supernet("quantnas", "basic-c12")).cost,
    ) == ("macs", "bitops")
    with pytest.raises(ValueError, match="search.metric 'accuracy' is not .*'photos'; it has: psnr, ssim"):
        objective_of(experiment("search.metric=accuracy"), task, plain)
    assert (
        objective_of(load_experiment("bignas-digits"), load_task(load_experiment("bignas-digits")), plain).metric
        == "accuracy"
    )
