"""Intervals, agreement of orders, variance: against SciPy, and against simulations whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, ttest_rel

from nas.statistics import (
    beside,
    best_of,
    bootstrapped,
    half_width,
    half_widths,
    smallest_difference,
    spread,
    tau,
    told_apart,
)

pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=15)


@given(pairs)
def test_tau_is_scipys(points: list[tuple[int, int]]) -> None:
    first, second = zip(*points, strict=True)
    assert tau(first, second) == pytest.approx(kendalltau(first, second).statistic, nan_ok=True)


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    parts = rng.normal(3.0, 2.0, size=(4000, 16))
    hit = np.mean([abs(row.mean() - 3.0) <= half_width(row.tolist()) for row in parts])
    assert 0.94 < hit < 0.96
    assert math.isnan(half_width([1.0])) and half_widths([]) == {}
    assert half_widths([{"a": 1.0, "b": math.nan}, {"a": 3.0, "b": 1.0}]).keys() == {"a"}


@given(st.integers(0, 1000))
def test_two_are_told_apart_as_by_a_paired_t_test(seed: int) -> None:
    """On what both have seen: noise that they share does not hide a difference."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 100, size=16)
    first, second = shared + rng.normal(1, 1, size=16), shared + rng.normal(0, 1, size=16)
    assert told_apart(first.tolist(), second.tolist()) == bool(ttest_rel(first, second).pvalue < 0.05)
    assert not told_apart(first.tolist(), second[:8].tolist()) and not told_apart([1.0], [2.0])


def test_variance_of_networks_and_of_trainings() -> None:
    rng = np.random.default_rng(1)
    cost = np.exp(rng.uniform(0, 3, size=3000))
    networks = 2.0 * np.log(cost) + rng.normal(0, 0.5, size=3000)
    alone = networks[:, None] + rng.normal(0, 0.2, size=(3000, 2))
    found = spread(beside(alone, cost), fitted=2)
    assert found.networks == pytest.approx(0.5, rel=0.05) and found.trainings == pytest.approx(0.2, rel=0.05)
    assert spread(alone).networks > 1.0
    few = [spread(beside(rng.normal(size=(6, 2)), cost[at : at + 6]), fitted=2) for at in range(0, 2994, 6)]
    assert np.mean([each.trainings**2 for each in few]) == pytest.approx(1.0, rel=0.1), "of few networks too"
    noise = np.tile([1.0, -1.0], (10, 1)) + np.linspace(0, 0.1, 10)[:, None]
    assert spread(noise).networks == 0.0


def test_the_best_of_many_and_the_smallest_difference() -> None:
    rng = np.random.default_rng(2)
    for count in (2, 12, 100):
        assert best_of(count) == pytest.approx(rng.normal(size=(20_000, count)).max(axis=1).mean(), abs=0.03)
    assert best_of(1) == 0.0
    assert smallest_difference(1.0) == pytest.approx(2.80, abs=0.01)


def test_a_bootstrap_of_networks() -> None:
    values = np.arange(20.0)
    found = bootstrapped(lambda at: float(values[at].mean()), 20)
    assert found.value == 9.5 and 6.5 < found.low < 8.0 and 11.0 < found.high < 12.5
    assert math.isnan(bootstrapped(lambda at: math.nan, 20).low)
