"""What the metric of an architecture may be, told from those that were judged: it screens the children of a guided
search.

An architecture becomes a row with as many numbers as all choices have values: for each choice, one for each of its
values up to the chosen one, zeros beyond. A choice that does not count is all zeros. So neighbouring values are near.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from nas.space import Arch, Space

SHAPED = 150  # rows that the kernel's shape is learnt from
LEAST = 1e-9  # standard deviation of a guess, so that nothing is divided by zero


class Regressor(Protocol):
    """What of scikit-learn can tell how sure it is."""

    def predict(self, rows: np.ndarray, return_std: bool) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, each of shape ``(len(rows),)``."""


class Predictor:
    """A Gaussian process with noise for each metric.

    Args:
        space: what the architectures are of.
    """

    def __init__(self, space: Space) -> None:
        each = list(space.choices.values())
        self._steps = {(c.name, value): at for c in each for at, value in enumerate(c.values, start=1)}
        self._place = {name: at for at, name in enumerate(space.choices)}
        self._choice = np.repeat(np.arange(len(each)), [len(c.values) for c in each])  # of each number of a row,
        self._step = np.concatenate([np.arange(len(c.values)) for c in each])  # and the steps that come before it

    def rows(self, archs: Sequence[Arch]) -> np.ndarray:
        """Zeros and ones, shape ``(len(archs), values of all choices)``."""
        steps = np.zeros((len(archs), len(self._place)))
        for row, arch in zip(steps, archs, strict=True):
            row[[self._place[name] for name in arch]] = [self._steps[picked] for picked in arch.items()]
        table: np.ndarray = (steps[:, self._choice] > self._step).astype(float)
        return table

    def fit(self, archs: Sequence[Arch], values: np.ndarray) -> Predictor:
        """Take in what was judged; `values` has shape ``(len(archs), metrics)``."""
        rows = self.rows(archs)
        self._models = [self.model(rows, column) for column in values.T]
        return self

    def model(self, rows: np.ndarray, values: np.ndarray) -> Regressor:
        """Of one metric: the kernel's shape is learnt from some rows, which takes long, the rest from all of them."""
        kernel = ConstantKernel(1.0) * RBF(3.0, (0.3, 100.0)) + WhiteKernel(0.1, (1e-6, 10.0))
        some = np.unique(np.linspace(0, len(rows) - 1, SHAPED).round().astype(int))
        with warnings.catch_warnings():  # of data without noise, say, a part of it comes to the end of its range
            warnings.simplefilter("ignore", ConvergenceWarning)
            shaped = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0).fit(rows[some], values[some])
        return GaussianProcessRegressor(shaped.kernel_, optimizer=None, normalize_y=True).fit(rows, values)

    def __call__(self, archs: Sequence[Arch]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the guesses, each of shape ``(len(archs), metrics)``."""
        if not archs:
            return np.empty((0, len(self._models))), np.empty((0, len(self._models)))
        rows = self.rows(archs)
        guesses = [model.predict(rows, return_std=True) for model in self._models]
        mean, deviation = (np.stack(each, axis=1) for each in zip(*guesses, strict=True))
        return mean, np.maximum(deviation, LEAST)
