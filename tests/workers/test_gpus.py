"""Trials on parts of GPUs: how large they are, where Ray puts them, and what happens where one is too small."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray import tune
from ray.tune.search import Searcher
from torch import nn

from nas.build import load_task, make_supernet
from nas.children.evaluate import Judged
from nas.config.experiment import load_experiment
from nas.device import MemoryShort, device, enough_memory
from nas.rundir.fence import Fence
from nas.search.constraints import Constraints
from nas.search.core import Objective
from nas.space import Arch
from nas.workers import session, trials
from nas.workers.session import RAY_ENVIRONMENT, gpu_share
from nas.workers.stopping import StopAsked
from nas.workers.trials import Asker, Scored


@pytest.mark.parametrize(
    ("count", "gpus", "on_each"), [(4, 1, 4), (2, 4, 1), (4, 2, 2), (3, 2, 2), (8, 3, 3), (7, 1, 7), (64, 3, 22)]
)
def test_all_trials_fit_at_once(count: int, gpus: float, on_each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPUs divided by the trials would leave trials waiting: of 0.67 of a GPU there is one on each of two."""
    monkeypatch.setattr(session, "gpus", lambda: gpus)
    share = gpu_share(count)
    assert int(1 / share) == on_each and on_each * gpus >= count
    assert on_each * round(share * 1e4) <= 1e4, "in the ten-thousandths that Ray counts in"


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """A Ray session that claims two GPUs, which no process looks for."""
    with pytest.MonkeyPatch.context() as around:
        for name, value in RAY_ENVIRONMENT.items():
            around.setenv(name, value)
        ray.init(num_cpus=8, num_gpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def waits(config: dict[str, Any]) -> None:
    """Says which GPU it was given, and stays until as many others are there."""
    here, number = Path(config["folder"]), config["number"]
    (here / str(number)).write_text(" ".join(map(str, ray.get_gpu_ids())))
    ends = time.monotonic() + 120
    while len(list(here.iterdir())) < config["count"] and time.monotonic() < ends:
        time.sleep(0.1)


@pytest.mark.parametrize("count", [3, 8])
def test_ray_runs_the_trials_of_a_search_side_by_side(count: int, two_gpus: None, tmp_path: Path) -> None:
    """Each on one GPU, no GPU with more than its share."""
    (tmp_path / "seen").mkdir()
    tuner = tune.Tuner(
        tune.with_resources(waits, {"cpu": 1, "gpu": gpu_share(count)}),
        param_space={"folder": str(tmp_path / "seen"), "count": count, "number": tune.grid_search(list(range(count)))},
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    began = time.monotonic()
    assert not tuner.fit().errors
    assert time.monotonic() - began < 100, "they waited for one another"
    given = Counter(path.read_text() for path in (tmp_path / "seen").iterdir())
    assert set(given) == {"0", "1"} and given.total() == count and max(given.values()) == -(-count // 2)


def test_a_worker_without_its_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch for CPUs on a node that has told Ray of GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(RuntimeError, match=r"sees none \(CUDA_VISIBLE_DEVICES is '3'\).*train.use_gpu: false"):
        device(True)


def asker_over(written: list[Any]) -> Asker:
    """One that hands out candidates for ever and writes down whatever comes."""
    numbers: Any = iter(range(100))
    search: Any = SimpleNamespace(
        window=32,
        next_k=0,
        rungs=[SimpleNamespace(steps=0)],
        ask=lambda: SimpleNamespace(k=next(numbers), arch=Arch({})),
    )
    journal: Any = SimpleNamespace(records=[], climbing={}, append_proposals=lambda _: None, append=written.append)
    fence: Any = SimpleNamespace(stopping=lambda: False, check=lambda: None)
    return Asker(search, journal, [], 50, 2, 2, float("inf"), lambda _: None, fence)


def test_a_gpu_too_small_for_a_child_ends_the_search_and_blames_nobody() -> None:
    """A candidate that failed would be one that is never tried again."""

    def judge(arch: object, steps: int, hopeless: object) -> Any:
        with enough_memory("lower search.score_batch"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    written: list[Any] = []
    asker = asker_over(written)
    worker: Any = Scored.__new__(Scored)
    worker.evaluator, worker.early_stop = SimpleNamespace(judge=judge), "never"
    Scored.reset_config(worker, asker.suggest("a"))  # type: ignore[arg-type]
    asker.began("a", worker.reset_config)
    assert not asker.over("a", Scored.step(worker)) and asker.over("a", Scored.step(worker))
    assert asker.suggest("b") == Searcher.FINISHED and not written
    assert "lower search.score_batch" in asker.short and "2.00 GiB" in asker.short


def test_what_is_not_judged_when_a_run_is_to_end_stays_open() -> None:
    """A candidate in the midst of its steps is no failure."""

    def judge(arch: object, steps: int, hopeless: object) -> Any:
        if written:
            worker.evaluator.told(7)
        written.append(arch)
        return Judged({"accuracy": 1.0}, [{"accuracy": 1.0}])

    written: list[Any] = []
    worker: Any = Scored.__new__(Scored)
    told = StopAsked(SimpleNamespace(stopping=lambda: True))  # type: ignore[arg-type]
    worker.evaluator, worker.early_stop, told.asked = SimpleNamespace(judge=judge, told=told), "never", 0.0
    worker.objective = Objective()
    Scored.reset_config(worker, {"candidates": [(3, {}, 0), (4, {}, 9), (5, {}, 9)]})
    assert [row["k"] for row in Scored.step(worker)["judged"]] == [3]


def test_a_gpu_too_small_for_the_supernet_blames_nobody_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as soon as the worker is asked for something: what fails before would be its candidates' death."""

    def moved(self: nn.Module, *_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    experiment = load_experiment("bignas-digits")
    weights = {
        name: value.numpy() for name, value in make_supernet(experiment, load_task(experiment)).state_dict().items()
    }
    monkeypatch.setattr(nn.Module, "to", moved)
    worker: Any = Scored.__new__(Scored)
    told = experiment.model_dump(mode="json"), str(tmp_path), Objective(), False, Fence.take(tmp_path)
    Scored.setup(worker, {"candidates": []}, weights, *told)
    told = Scored.step(worker)
    assert "3.00 GiB" in told["short"] and "lower search.trials (now 2)" in told["short"]


def test_what_the_worker_said_is_what_the_command_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asker: Any = SimpleNamespace(
        short="", broken=0, trials=2, over=None, search=SimpleNamespace(objective=SimpleNamespace(metric="m"))
    )
    settings: Any = SimpleNamespace(
        search=SimpleNamespace(trials=2), train=SimpleNamespace(use_gpu=False), model_dump=lambda **_: {}
    )

    def fit(*_: object) -> None:
        asker.short = "lower search.score_batch"

    for name, value in (("on_ray", fit), ("check_room", lambda _: None)):
        monkeypatch.setattr(trials, name, value)
    monkeypatch.setattr(trials, "tune", SimpleNamespace(**{**vars(tune), "with_parameters": lambda *_, **__: None}))
    monkeypatch.setattr(trials.tune, "with_resources", lambda *_: None)
    monkeypatch.setattr(trials.tune, "Tuner", lambda *_, **__: SimpleNamespace(fit=None))
    run, fence, trained = (SimpleNamespace(path=tmp_path, ray=tmp_path), SimpleNamespace(attempt=1), SimpleNamespace())
    trained.child_weights = dict
    with pytest.raises(MemoryShort, match="lower search.score_batch"):
        trials._run(settings, run, fence, asker, trained)  # type: ignore[arg-type]


def test_a_bound_on_a_metric_excludes_nothing_that_was_found_elsewhere() -> None:
    """Nobody knows it before the child is judged."""
    bounds = Constraints({"psnr": (30.0, None)})
    search: Any = SimpleNamespace(next_k=0, first=[Arch({})], metrics=("psnr",), cost=lambda _: {"bitops": 5})
    search.constraints = lambda _: bounds
    trials._check_first(search, 1)
    bounds = Constraints({"psnr": (30.0, None), "bitops": (None, 4)})
    with pytest.raises(ValueError, match=r"exclude what was found \(.*: bitops 5\)"):
        trials._check_first(search, 1)
