"""Draws: their values, uniform and unrelated; permutations and stratified parts."""

from __future__ import annotations

import numpy as np
import pytest

from nas.draws import _mix, bits, permutation, stratified, uniform


def test_draws_keep_their_values() -> None:
    """A change here changes every run's data order: golden, and splitmix64's published first output for seed 0."""
    assert int(_mix(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF
    assert int(bits(0, "order", 0, 0)[0]) == 1581373162068164290
    assert permutation(8, 0, "order", 3).tolist() == [4, 6, 1, 5, 3, 7, 0, 2]


def test_draws_are_uniform_and_unrelated() -> None:
    n = 100_000
    u = uniform(3, "top", 5, np.arange(n))
    assert u.min() >= 0 and u.max() < 1
    counts = np.bincount((u * 64).astype(int), minlength=64)
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 120  # chi-square, 63 degrees of freedom: 99.999 % is 124
    for other in (
        uniform(4, "top", 5, np.arange(n)),
        uniform(3, "left", 5, np.arange(n)),
        uniform(3, "top", 6, np.arange(n)),
        np.roll(u, 1),
    ):
        assert abs(np.corrcoef(u, other)[0, 1]) < 0.015
    assert bits(2**70 + 1, "top", 1).dtype == np.uint64  # any whole number is a seed


def test_permutation_is_one() -> None:
    assert sorted(permutation(1000, 1, "order", 2)) == list(range(1000))
    assert not np.array_equal(permutation(1000, 1, "order", 2), permutation(1000, 1, "order", 3))


def test_stratified_keeps_the_shares_of_classes() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    chosen = stratified(labels, 101, 0, "validation")
    assert len(chosen) == len(set(chosen)) == 101
    assert np.abs(np.bincount(labels[chosen]) - [60.6, 30.3, 10.1]).max() < 1
    with pytest.raises(ValueError, match="hold fewer out"):
        stratified(labels, 1000, 0, "validation")
