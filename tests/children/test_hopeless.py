"""When scoring may end early: what can still come onto the front is scored to the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nas.build import load_task, open_search
from nas.children.evaluate import judge
from nas.children.hopeless import Hopeless
from nas.config.experiment import ExperimentError, load_experiment
from nas.search.core import Objective
from nas.search.journal import Record
from nas.space import Arch
from nas.tasks.classification import Classification

N, BATCH, EVERY = 2000, 250, 125


@pytest.fixture(scope="module")
def task() -> Classification:
    found = load_task(load_experiment("bignas-digits"))
    assert isinstance(found, Classification)
    return found


def batches(right: np.ndarray) -> list[tuple[Tensor, Tensor]]:
    """Inputs that say whether the child will be right; all labels are 0."""
    x = torch.from_numpy(right.astype(np.float32))[:, None]
    return [(rows, torch.zeros(len(rows), dtype=torch.int64)) for rows in x.split(BATCH)]


def child(x: Tensor) -> Tensor:
    """Logits of two classes."""
    return torch.cat([x, 1 - x], dim=1) * 4


def stopper(task: Any, bar: float, macs: float = 100.0, likely: bool = False, metric: str = "accuracy") -> Hopeless:
    objective = Objective(metric, "macs", task.metrics[metric])
    figure = -bar if task.metrics[metric] == "higher" else bar
    return Hopeless(task, objective, [(figure, 100.0)], {"macs": macs}, N, likely)


def accuracies(seed: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(N) < share


@pytest.mark.parametrize("metric", ["accuracy", "cross_entropy"])
def test_exact_never_stops_who_would_have_come_onto_the_front(task: Classification, metric: str) -> None:
    """And stops many of the others; of those it has not stopped the figures are whole."""
    bar, stopped = {"accuracy": 90.0, "cross_entropy": 0.4}[metric], 0
    for seed in range(60):
        right = accuracies(seed, 0.6 + 0.4 * seed / 60)
        whole = judge(child, batches(right), task)
        found = judge(child, batches(right), task, stopper(task, bar, metric=metric))
        better = whole.metrics[metric] > bar if metric == "accuracy" else whole.metrics[metric] < bar
        if found.seen is None:
            assert found.metrics == pytest.approx(whole.metrics, rel=1e-6) and len(found.parts) == len(whole.parts)
        else:
            stopped += 1
            assert not better and found.seen % EVERY == 0 and found.seen < N
    assert stopped > 15


def test_a_cheaper_one_is_never_stopped_and_a_dearer_one_is(task: Classification) -> None:
    wrong = np.zeros(N, bool)
    assert judge(child, batches(wrong), task, stopper(task, 90.0, macs=99.0)).seen is None
    for macs in (100.0, 101.0):
        assert judge(child, batches(wrong), task, stopper(task, 90.0, macs=macs)).seen == 2 * EVERY


def test_a_tie_with_the_bar_is_scored_to_the_end(task: Classification) -> None:
    """Exactly 90 % at the bar's cost: two equal points both stand on a front."""
    right = np.arange(N) >= 200
    assert judge(child, batches(right), task, stopper(task, 90.0)).seen is None
    right[200] = False
    assert judge(child, batches(right), task, stopper(task, 90.0)).seen == 2 * EVERY


def test_where_it_stops_does_not_depend_on_what_is_scored_at_once(task: Classification) -> None:
    right = accuracies(3, 0.6)
    x, y = (torch.cat(part) for part in zip(*batches(right), strict=True))
    for likely in (False, True):
        stops = [
            judge(child, zip(x.split(size), y.split(size), strict=True), task, stopper(task, 90.0, likely=likely))
            for size in (7, 50, 60, 400)
        ]
        assert stops[0].seen and all(stop.seen == stops[0].seen for stop in stops)
        assert all(stop.metrics["accuracy"] == stops[0].metrics["accuracy"] for stop in stops)


def test_parts_that_do_not_differ_say_nothing(task: Classification) -> None:
    """All wrong so far, or so few of each that they may be alike by chance."""
    likely, sums = stopper(task, 62.0, likely=True), {"examples": 250.0, "correct": 25.0, "nats": 900.0}
    alike = [{"accuracy": 10.0, "cross_entropy": 3.6}] * 16
    other = [{"accuracy": 9.0 + number % 3, "cross_entropy": 3.6} for number in range(16)]
    assert not likely(sums, alike, 250) and likely(sums, other, 250)
    assert not likely(sums, other, 120)


def test_likely_stops_sooner_and_is_hardly_ever_wrong(task: Classification) -> None:
    """Of 300 candidates that would have beaten the bar by a little, drawn at random, one at most is stopped."""
    lost = sum(
        judge(child, batches(right), task, stopper(task, 88.0, likely=True)).seen is not None
        for seed in range(300)
        if (right := accuracies(seed, 0.9)).mean() > 0.88
    )
    assert lost <= 1
    poor = [accuracies(seed, 0.8) for seed in range(20)]
    soon, late = (
        np.mean([judge(child, batches(right), task, stopper(task, 90.0, likely=way)).seen or N for right in poor])
        for way in (True, False)
    )
    assert soon < 0.6 * late


def test_nothing_is_known_of_a_metric_without_bound() -> None:
    psnr: Any = SimpleNamespace(
        best=lambda sums, left: {}, summarise=lambda sums: {"psnr": 1.0}, metrics={"psnr": "higher"}
    )
    assert not Hopeless(psnr, Objective("psnr", "macs"), [(-50.0, 1.0)], {"macs": 5.0}, N, False)({}, [], 10)
    with pytest.raises(ValueError, match="early_stop exact: nothing bounds what photos may still come to"):
        experiment = load_experiment("quantnas-photos", ["search.early_stop=exact"])
        open_search(experiment, None, load_task(experiment))  # type: ignore[arg-type]


def test_rungs_and_an_early_stop_are_two_ways() -> None:
    rungs = ["search.rungs=[[1, 0], [0.5, 10]]", "search.recipe={name: single, epochs: 1, batch: 64}"]
    with pytest.raises(ExperimentError, match="early_stop exact is for searches of one rung"):
        load_experiment("bignas-digits", [*rungs, "search.early_stop=exact"])


def test_a_record_says_how_many_were_seen() -> None:
    record = Record(3, Arch({"a": 1}), {"accuracy": 50.0}, {"macs": 5.0}, 1.0, None, (), (), 50)
    assert Record.from_json(record.to_json()) == record
    for wrong in (0, -1, 1.5, "9"):
        with pytest.raises(ValueError, match="no record"):
            Record.from_json({**record.to_json(), "seen": wrong})
