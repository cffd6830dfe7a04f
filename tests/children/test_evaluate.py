"""What children are judged on: which examples, and how many of them stay in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nas.children.evaluate
import nas.workers.session
from nas.build import load_supernet, load_task, make_supernet
from nas.children.evaluate import Batches, Evaluator
from nas.config.experiment import load_experiment
from nas.rundir.checkpoint import tensors_in
from nas.search.journal import Candidate, Journal, Record
from nas.search.rungs import INHERITED
from nas.space import Arch
from nas.supernet import undrawn, window
from nas.testing.space import ready
from nas.workers.trials import Asker

CPU = torch.device("cpu")


class Sorted:
    """Class after class, as folders come; the target of an example is a hundred times as large as its input."""

    at_once = None

    def __init__(self) -> None:
        self.loaded = 0

    def __len__(self) -> int:
        return 400

    def batch(self, rows: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        self.loaded += 1
        classes = torch.from_numpy(rows // 100)
        return classes.float()[:, None], classes[:, None].float().repeat(1, 100)


def test_every_batch_is_of_all_kinds_and_always_the_same() -> None:
    first, again = (list(Batches(Sorted(), 64, 32, CPU)) for _ in range(2))
    assert [len(x) for x, _ in first] == [32, 32]
    for (x, _), (same, _) in zip(first, again, strict=True):
        assert torch.equal(x, same) and set(x.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert sorted(torch.cat([x for x, _ in Batches(Sorted(), 400, 64, CPU)]).flatten().tolist()) == sorted(
        np.repeat(np.arange(4.0), 100)
    )


def test_what_is_kept_counts_targets_too_and_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 400 * 101 * 4
    for limit, kept, loaded in ((size, 10, 10), (size - 1, 0, 1)):
        monkeypatch.setattr(nas.children.evaluate, "CACHE_BYTES", limit)
        split = Sorted()
        batches = Batches(split, 400, 40, CPU)
        assert len(batches.kept) == kept and split.loaded == loaded
        assert len(list(batches)) == 10


class Levels(Sorted):
    """Pictures, as they are sent."""

    def levels(self, rows: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        self.loaded += 1
        return torch.from_numpy(rows % 256).to(torch.uint8)[:, None].repeat(1, 3000), torch.from_numpy(rows)

    def batch(self, rows: np.ndarray, epoch: int | None = None) -> tuple[Tensor, Tensor]:
        x, y = self.levels(rows, epoch)
        return x.float() / 255, y


@pytest.mark.parametrize("kind", [Sorted, Levels])
def test_many_are_written_once_for_all(kind: type[Sorted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read from files is what is loaded, to the bit; levels are mapped, not copied into each process."""
    wanted = list(Batches(kind(), 400, 48, CPU))
    monkeypatch.setattr(nas.children.evaluate, "FEW_BYTES", 1000)
    place = tmp_path / "shared" / "validation"
    first, second = kind(), kind()
    for split in (first, second):
        batches = Batches(split, 400, 48, CPU, place=place)
        for _ in range(2):
            for (x, y), (same, target) in zip(batches, wanted, strict=True):
                assert torch.equal(x, same) and torch.equal(y, target) and x.dtype == same.dtype
    assert first.loaded == 1 + 9 and second.loaded == 1, "one looked how much it is"
    if kind is Levels:
        assert sum(file.stat().st_size for file in place.glob("*.safetensors")) < 400 * 3100
        mapped = tensors_in(place / "000000.safetensors")["x"]
        maps = Path("/proc/self/maps").read_text()
        assert str(place / "000000.safetensors") in maps and len(mapped) == 48


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nas.children.evaluate, "FEW_BYTES", 1000)
    split: Any = Sorted()
    split.batch = lambda rows, epoch=None: Sorted().batch(rows) if split.left.pop() else 1 / 0
    split.left = [False, True, True, True]
    with pytest.raises(ZeroDivisionError):
        Batches(split, 400, 40, CPU, place=tmp_path / "shared" / "test")
    assert [path.name for path in (tmp_path / "shared").iterdir() if path.is_dir()] == []
    assert len(list(Batches(Sorted(), 400, 40, CPU, place=tmp_path / "shared" / "test"))) == 10


@pytest.mark.parametrize(
    ("gpus", "settings", "count"),
    [
        (0.0, [], 2),
        (1.0, [], 1),
        (4.0, [], 2),
        (1.0, ["train.use_gpu=true"], 2),
        (3.0, ["train.workers=4"], 4),
        (2.0, ["train.workers=4"], 2),
    ],
)
def test_one_worker_for_each_gpu_where_there_are_fewer(
    gpus: float, settings: list[str], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the batch, here 64, divides among them; what was asked for in so many words is asked for."""
    monkeypatch.setattr(nas.workers.session, "gpus", lambda: gpus)
    assert nas.workers.session.workers(load_experiment("bignas-digits", settings)) == count


def test_a_candidate_is_written_down_before_it_is_given_out() -> None:
    numbers: Any = iter(range(100))
    search: Any = SimpleNamespace(
        window=32, next_k=0, rungs=INHERITED, ask=lambda: SimpleNamespace(k=next(numbers), arch=Arch({}))
    )
    written: list[Any] = []
    out: list[Any] = []
    journal: Any = SimpleNamespace(records=[], climbing={}, append_proposals=written.extend)
    fence: Any = SimpleNamespace(stopping=lambda: False, check=lambda: None)
    asker = Asker(search, journal, [], 50, 2, 1, float("inf"), lambda _: None, fence)
    for trial in "ab":
        assert asker.suggest(trial) == {"candidates": []}
        asker.began(trial, lambda given: out.append(([k for k, _, _ in given["candidates"]], [w.k for w in written])))
        assert not asker.over(trial, {"judged": []})
    assert out == [([0], [0]), ([1], [0, 1])]


def test_what_is_known_is_not_judged_again(tmp_path: Path) -> None:
    """It is written down as soon as it is proposed, and may let others be proposed."""
    archs = [Arch({"a": number}) for number in range(6)]
    known = {
        archs[k].id: Record(99, archs[k], {"accuracy": 90.0 + k}, {}, 7.0, None, (), (1.0, 2.0)) for k in (0, 1, 3)
    }
    told: list[Record] = []

    class Stepwise:
        """Proposes two candidates more for each that it was told of."""

        window, next_k, rungs = 32, 0, INHERITED

        def ask(self) -> Candidate | None:
            if self.next_k >= 2 + 2 * len(told) or self.next_k == len(archs):
                return None
            self.next_k += 1
            return Candidate(self.next_k - 1, archs[self.next_k - 1], ())

        def cost(self, arch: Arch) -> dict[str, float]:
            return {"macs": 5.0}

        def climbs(self, record: Record) -> bool:
            return False

        def tell(self, record: Record) -> None:
            told.append(record)

    fence: Any = SimpleNamespace(stopping=lambda: False, check=lambda: None)
    search: Any = Stepwise()
    journal = Journal(tmp_path / "journal", {})
    asker = Asker(search, journal, [], 6, 1, 2, float("inf"), lambda _: None, fence, known)
    out: list[Any] = []
    assert asker.suggest("0") == {"candidates": []}
    asker.began("0", out.append)
    assert not asker.over("0", {"judged": []})
    assert [[k for k, _, _ in given["candidates"]] for given in out] == [[2]]
    assert [record.k for record in journal.records] == [0, 1, 3] and list(journal.proposals) == [0, 1, 2, 3]
    assert "bars" not in out[0] and asker.bars is False
    asker.bars, asker.batch = True, 1
    asker.waiting.append(Candidate(4, archs[4], ((-90.0, 3.0),)))
    assert not asker.over("0", {"judged": []})
    assert out[1] == {"candidates": [(4, {"a": 4}, 0)], "bars": {4: (((-90.0, 3.0),), {"macs": 5.0})}}
    first = journal.records[0]
    assert (first.metrics, first.cost, first.seconds, first.parts) == (
        {"accuracy": 90.0},
        {"macs": 5.0},
        0.0,
        (1.0, 2.0),
    )


def test_norms_that_are_alike_are_calibrated_once_a_supernet() -> None:
    """The same figures to the bit as of children calibrated each by itself; anew for other weights."""
    told = load_experiment("vit-resnas-digits", ["search.calibration=64", "search.calibration_batch=32"])
    task = load_task(told)
    net = ready(make_supernet(told, task))
    archs = [net.space.largest(), net.space.smallest(), net.space.sample(np.random.default_rng(0))]
    once, each = Evaluator(net, task, told.search, CPU), Evaluator(net, task, told.search, CPU)
    passes = 0

    def counted(known: bool) -> list[dict[str, float]]:
        nonlocal passes
        passes, figures = 0, []
        for arch in archs:
            if not known:
                each.net = net
            figures.append((once if known else each)(arch))
        return figures

    class Counting(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            nonlocal passes
            passes += 1
            return super().__iter__()

    for evaluator in (once, each):
        evaluator.calibration = Counting(evaluator.calibration)  # type: ignore[assignment]
    first = counted(known=True)
    assert passes == 1
    assert counted(known=False) == first and passes == 3
    once.net = ready(net, seed=1)
    assert counted(known=True) == counted(known=False) != first


@pytest.mark.parametrize(("space", "size"), [("bignas", "d8"), ("vit_resnas", "d8")])
def test_a_supernet_that_is_given_its_weights_draws_none(space: str, size: str) -> None:
    drawn = torch.get_rng_state()
    with undrawn():
        load_supernet(space, size)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_an_extracted_child_draws_no_weights_and_other_threads_draw_theirs() -> None:
    net = load_supernet("bignas", "d8")
    drawn = torch.get_rng_state()
    child = net.extract(net.space.smallest())
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, parameter in child.named_parameters():
        assert torch.equal(parameter, window(net.get_parameter(name), parameter.shape)), name
    made: list[torch.nn.Linear] = []
    with undrawn():
        thread = threading.Thread(target=lambda: made.append(torch.nn.Linear(64, 64)))
        thread.start()
        thread.join()
    assert made[0].weight.std() > 0.01 and made[0].weight.abs().max() <= 0.125
    assert not torch.equal(torch.nn.Linear(64, 64).weight, torch.nn.Linear(64, 64).weight)
