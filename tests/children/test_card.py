"""A child is what its card says: the card's own lines, on the original pictures of the test part, in a process that
cannot import raynas, give the card's own figures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio
from sklearn.datasets import load_digits

from nas.build import load_task, make_supernet
from nas.children.card import given
from nas.children.evaluate import Batches, Evaluator
from nas.children.export import bundle, export_child, made_smaller
from nas.config.experiment import Experiment, load_experiment
from nas.draws import stratified
from nas.rundir.fence import Fence
from nas.supernet import CostModel
from nas.tasks.pairs import TEST_PHOTOS
from nas.tasks.task import Task
from tests.driving import outputs_of

CPU = torch.device("cpu")


def exported(experiment: Experiment, run: Path, test: int = 1000) -> tuple[Path, dict, Task]:
    """A child of an untrained supernet, exported as the pipeline does it; its figures of the first `test` examples."""
    task = load_task(experiment)
    net = make_supernet(experiment, task)
    arch = net.space.largest()
    (run / "children").mkdir(parents=True)
    about = {"space": experiment.space.name, "size": "", "supernet": "5a" * 32, "data": experiment.data.name}
    figures = export_child(
        run / "children" / arch.id,
        arch,
        CostModel(net),
        Evaluator(net, task, experiment.search, CPU),
        Batches(task.test, test, 100, CPU),
        about | dict(task.about),
        False,
        Fence.take(run),
    )
    return run / "children" / arch.id, figures, task


def check_classes(child: Path, figures: dict, pictures: list[Path], labels: np.ndarray, folder: Path) -> None:
    logits, truth = torch.cat(outputs_of(child, pictures, folder)), torch.from_numpy(labels).long()
    accuracy = 100 * float((logits.argmax(1) == truth).double().mean())
    nats = float(torch.nn.functional.cross_entropy(logits, truth))
    assert accuracy == pytest.approx(figures["test"]["accuracy"], abs=1e-9)
    assert nats == pytest.approx(figures["test"]["cross_entropy"], rel=1e-5)
    page = (child / "README.md").read_text()
    for name, value in (("accuracy", accuracy), ("cross_entropy", nats)):
        assert re.search(rf"^\| test {name} \| {re.escape(f'{value:.4g}')} (± \S+ )?\|$", page, re.MULTILINE)


def test_digits(tmp_path: Path) -> None:
    experiment = load_experiment("bignas-digits", [])
    child, figures, task = exported(experiment, tmp_path / "run")
    found = load_digits()
    rows = stratified(found.target, 297, 0, "digits test")
    assert made_smaller(make_supernet(experiment, task), task) == ""
    for row in rows:
        Image.fromarray(np.round(found.images[row] * (255 / 16)).astype(np.uint8)).save(tmp_path / f"{row}.png")
    check_classes(child, figures, [tmp_path / f"{row}.png" for row in rows], found.target[rows], tmp_path)


def test_the_card_names_the_examples_that_were_looked_at(tmp_path: Path) -> None:
    experiment = load_experiment("bignas-digits", ["search.validation=100"])
    child, figures, _ = exported(experiment, tmp_path / "run", test=40)
    assert figures["examples"] == {"validation": 100, "test": 40}
    page = " ".join((child / "README.md").read_text().split())
    assert "chosen on 100 validation examples; the test figures, on 40 others" in page


def test_a_network_that_wants_larger_pictures_says_so() -> None:
    assert "height, width)` from 15 pixels a side on" in given(
        {"input": {"shape": [3, 32, 32], "any_size": True, "least_side": 15}}
    )
    assert "width)`, already" in given({"input": {"shape": [3, 32, 32], "any_size": True}})


@pytest.mark.parametrize("second", ["ONE = 2.0", "ONE: int = 3", "def ONE(): ...", "class ONE: ..."])
def test_two_files_of_a_child_that_give_one_name_are_refused(second: str, tmp_path: Path) -> None:
    """In model.py the later would be what the earlier one's code reads."""
    for name, source in (("first.py", "ONE = 1.0\n"), ("second.py", second + "\n")):
        (tmp_path / name).write_text(source)
    with pytest.raises(ValueError, match=r"second\.py and .*first\.py both define ONE"):
        bundle([tmp_path / "first.py", tmp_path / "second.py"])


@pytest.mark.parametrize("name", ["bignas-fashion-mnist", "vit-resnas-cifar10"])
def test_data_sets_of_arrays(name: str, tmp_path: Path) -> None:
    """The examples that the figures are of, from the files of the data set."""
    import torchvision

    from nas.draws import permutation
    from nas.tasks.places import roots

    experiment = load_experiment(name, ["search.calibration=32", "search.calibration_batch=16", "search.validation=64"])
    child, figures, task = exported(experiment, tmp_path / "run", test=40)
    kind = torchvision.datasets.FashionMNIST if "fashion" in name else torchvision.datasets.CIFAR10
    places = [*roots(), Path.home() / ".cache" / "raynas"]
    part = next(
        kind(str(root), train=False)
        for root in places
        if (root / "FashionMNIST" / "raw").is_dir()
        or kind is torchvision.datasets.CIFAR10
        and (root / "cifar-10-batches-py").is_dir()
    )
    rows, labels, pictures = permutation(len(task.test), 0, "batches")[:40], [], []
    for row in rows:
        picture, label = part[int(row)]
        pictures.append(tmp_path / f"{row}.png")
        picture.save(pictures[-1])
        labels.append(label)
    check_classes(child, figures, pictures, np.array(labels), tmp_path)


def folder_of_photographs(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Crops of scikit-image's photographs, of all sizes and shapes; the test part's files and labels."""
    rng = np.random.default_rng(0)
    for label, photo in enumerate((data.astronaut(), data.chelsea(), data.coffee())):
        for part, count in (("train", 12), ("test", 9)):
            (folder / part / f"class{label}").mkdir(parents=True)
            for i in range(count):
                high, wide = rng.integers(30, 200, 2)
                top, left = (
                    int(rng.integers(side - size)) for side, size in zip(photo.shape, (high, wide), strict=False)
                )
                crop = Image.fromarray(photo[top : top + high, left : left + wide])
                crop.save(folder / part / f"class{label}" / f"{i}.{'jpg' if i % 2 else 'png'}")
    files = sorted((folder / "test").rglob("*.*"))
    return files, np.array([int(file.parent.name[-1]) for file in files])


def test_a_folder_of_photographs(tmp_path: Path) -> None:
    """The worst of all was here: photographs were judged by another resizing than the card's."""
    files, labels = folder_of_photographs(tmp_path / "mine")
    data_ = ["data.name=folder", f"data.path={tmp_path / 'mine'}", "data.size=40", "data.validation=6"]
    more = ["space.size=m28", "search.validation=null", "search.calibration=16", "search.calibration_batch=16"]
    experiment = load_experiment("bignas-fashion-mnist", [*data_, *more])
    child, figures, task = exported(experiment, tmp_path / "run")
    check_classes(child, figures, files, labels, tmp_path)
    page = (child / "README.md").read_text()
    assert "on folder mine" in page and "short side of 46 pixels" in page and "centre of 40 x 40" in page
    assert "makes it 28 x 28 itself" in page, "a network smaller than data.size says so"
    told = made_smaller(make_supernet(experiment, task), task)
    assert "work at 28 x 28 pixels or less; inputs of 40 are made smaller first" in told, "and the run before"


@pytest.mark.parametrize("tile", [None, 40])
def test_super_resolution(tile: int | None, tmp_path: Path) -> None:
    """PSNR of the image as the card's lines make and store it, by scikit-image; in tiles where it is judged so."""
    experiment = load_experiment(
        "quantnas-photos", [f"data.tile={'null' if tile is None else tile}", "search.validation=8"]
    )
    child, figures, task = exported(experiment, tmp_path / "run")
    home = Path(data.__file__).parent
    files = [home / name for name in TEST_PHOTOS]
    border, scale, found = task.scale, task.scale, []
    weights = np.array([65.481, 128.553, 24.966])
    for file, levels in zip(files, outputs_of(child, files, tmp_path), strict=True):
        whole = np.asarray(Image.open(file).convert("RGB")).astype(float)
        height, width = (side // scale * scale for side in whole.shape[:2])
        a, b = whole[:height, :width] / 255 @ weights + 16, levels.permute(1, 2, 0).numpy() / 255 @ weights + 16
        cut = np.s_[border:-border, border:-border]
        found.append(peak_signal_noise_ratio(a[cut], b[cut], data_range=255))
    assert np.mean(found) == pytest.approx(figures["test"]["psnr"], abs=2e-3)
    assert ("in_tiles(" in (child / "README.md").read_text()) == (tile is not None)


def test_the_child_of_a_card_loads_from_elsewhere(tmp_path: Path) -> None:
    """`from_pretrained` of the class in model.py, with the files that it needs alone beside it."""
    child, _, _ = exported(load_experiment("bignas-digits", []), tmp_path / "run")
    away = tmp_path / "away"
    away.mkdir()
    for name in ("model.py", "model.safetensors", "config.json"):
        (away / name).write_bytes((child / name).read_bytes())
    script = (
        "import sys\nsys.modules['nas'] = sys.modules['searchspaces'] = None\nsys.path.insert(0, 'away')\n"
        "import torch\nfrom model import Model\nmodel = Model.from_pretrained('away')\n"
        "print(model.classes, model(torch.zeros(2, 3, 30, 20, dtype=torch.uint8)).shape, model.training)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == str(tuple("0123456789")).split() + ["torch.Size([2,", "10])", "False"], done.stderr
