"""Processes that load images: the same batches as without them, and nothing left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nas.elastic import ElasticLinear
from nas.tasks.classification import Classification
from nas.tasks.options import ClassificationOptions
from nas.training.feeds import Feed, loaders_of, make_feeds, prefetched
from tests.training.tiny import Tiny, experiment, loop_in, newest

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 20 JPEGs, larger than networks see them."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part in ("train", "test"):
        for label, name in enumerate(("dark", "light")):
            (folder / part / name).mkdir(parents=True)
            for i in range(20):
                coarse = rng.integers(100 * label, 100 * label + 156, (5, 7, 3), np.uint8)
                picture = Image.fromarray(coarse).resize((70 + i, 50), Image.Resampling.BICUBIC)
                picture.save(folder / part / name / f"{i}.jpg")
    return folder


def options(photos: Path) -> ClassificationOptions:
    return ClassificationOptions(
        name="folder",
        path=str(photos),
        size=16,
        validation=8,
        resized_crop=True,
        flip=True,
        rand_augment=True,
        erase=0.5,
    )


def feeds_of(photos: Path) -> dict[str, Feed]:
    recipe: Any = SimpleNamespace(feeds={"weights": 0.6, "others": 0.4})
    return make_feeds(recipe, Classification(options(photos), 0).train, 4, 0, 1, 0)


def taken(photos: Path, loaders: int, first: int, number: int) -> list[Tensor]:
    with closing(prefetched(feeds_of(photos), first, loaders)) as batches:
        return [part for step in islice(batches, number) for name in sorted(step) for part in step[name]]


def gone(pids: list[int], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_batches_do_not_depend_on_who_loads_them(photos: Path) -> None:
    """Over the end of an epoch, and begun in the middle; the global generator is left alone."""
    state = torch.get_rng_state()
    wanted = taken(photos, 0, 0, 9)
    for loaders in (1, 2):
        found = taken(photos, loaders, 0, 9)
        assert len(found) == len(wanted) == 36 and all(map(torch.equal, found, wanted))
    assert all(map(torch.equal, taken(photos, 2, 5, 4), wanted[20:]))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(wanted[0], wanted[20]) and wanted[0].dtype == torch.uint8
    assert gone([process.pid for process in active_children() if process.pid], 10)


def test_how_many_processes(photos: Path) -> None:
    decoded, kept = Classification(options(photos), 0).train, SimpleNamespace(decodes=False)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    asked: list[tuple[int | None, float, Any, torch.device]] = [
        (None, 4.0, decoded, gpu),
        (None, 0.5, decoded, gpu),
        (None, 4.0, decoded, cpu),
        (2, 1.0, decoded, cpu),
        (2, 4.0, kept, gpu),
    ]
    assert [loaders_of(*each) for each in asked] == [3, 0, 0, 2, 0]


def test_a_file_that_cannot_be_read_is_told_as_it_is(photos: Path, tmp_path: Path) -> None:
    feeds = feeds_of(photos)
    split: Any = feeds["others"].split
    split.varied.paths[:] = [str(tmp_path / "none.jpg")] * len(split.varied.paths)
    with pytest.raises(ValueError, match=r"cannot read the image .*none\.jpg"):
        next(prefetched(feeds, 0, 1))


def test_a_killed_loader_is_told(photos: Path) -> None:
    ending = {process.pid for process in active_children()}  # of a test before
    with closing(prefetched(feeds_of(photos), 0, 2)) as batches:
        next(batches)
        pids = [process.pid for process in active_children() if process.pid and process.pid not in ending]
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"loads images has died: .* lower train.loaders"):
            for _ in range(50):
                next(batches)
    assert gone(pids, 10)


def test_nothing_is_left_where_the_worker_is_killed(photos: Path) -> None:
    program = (
        "import os, sys, time; from pathlib import Path; from multiprocessing import active_children\n"
        "from tests.training.test_loaders import feeds_of; from nas.training.feeds import prefetched\n"
        f"batches = prefetched(feeds_of(Path({str(photos)!r})), 0, 2); next(batches)\n"
        "print(*[process.pid for process in active_children()], flush=True); time.sleep(100)"
    )
    worker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    pids = [int(pid) for pid in worker.stdout.readline().split()]
    above = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in pids}
    worker.kill()
    worker.wait()
    assert len(pids) == 2 and worker.pid not in above, "a process without threads forks them"
    assert gone([*pids, *above], 20)


class Colours(Tiny):
    """A perceptron of three channels."""

    def __init__(self, image: int = 8, classes: int = 10, **_: Any) -> None:
        super().__init__(image=image, classes=classes)
        self.input_shape = (3, image, image)
        self.first = ElasticLinear(3 * image**2, 16)


def colours(size: str, **options: Any) -> Colours:
    return Colours(**options)


@pytest.mark.usefixtures("one_rank")
def test_resumed_by_others_it_ends_with_the_same_weights(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole with a thread; stopped in the middle with two processes, and gone on with a thread and with two."""
    told = options(photos).model_dump(mode="json", exclude_none=True)
    given = [f"data={told}", "space.name=tests.training.test_loaders:colours", "recipe.batch=8", "recipe.epochs=3"]

    def weights(run: str, loaders: int, *more: str) -> bytes:
        (tmp_path / run).mkdir(exist_ok=True)
        loop_in(tmp_path / run, *given, *more, f"train.loaders={loaders}").train()
        return (newest(tmp_path / run) / "weights.safetensors").read_bytes()

    whole = weights("whole", 0)
    for run, then in (("one", 0), ("other", 2)):
        with monkeypatch.context() as patch:
            patch.setattr("nas.rundir.fence.Fence.stopping", Stops(7))
            middle = weights(run, 2)
        assert newest(tmp_path / run).name == "step-00000007" and middle != whole
        assert weights(run, then) == whole
    assert experiment(*given).train.loaders is None


class Stops:
    """In the place of `Fence.stopping`: asks to stop at that call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, *_: object) -> bool:
        self.left -= 1
        return self.left == 0
