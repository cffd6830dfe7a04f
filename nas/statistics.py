"""How far a figure is to be trusted: intervals from parts of the examples, agreement of two orders, variance between
networks and between trainings of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

LEVEL = 0.95  # of all intervals
POWER = 0.8  # with which a difference shows that is as large as `smallest_difference`
DRAWS = 2000  # of a bootstrap
LEAST = 1e-9  # a cost of zero has no logarithm; this counts in its place


def standard_error(parts: Sequence[float]) -> float:
    """Of the mean of independent parts of about equal size; NaN of fewer than two."""
    return float(np.std(parts, ddof=1) / math.sqrt(len(parts))) if len(parts) > 1 else math.nan


def half_width(parts: Sequence[float]) -> float:
    """Half of the interval of the mean of such parts (Student's t); NaN of fewer than two."""
    return float(stdtrit(max(len(parts) - 1, 1), 0.5 + LEVEL / 2)) * standard_error(parts)


def half_widths(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """`half_width` of each figure that is finite."""
    names = parts[0] if parts else ()
    found = {name: half_width([part[name] for part in parts]) for name in names}
    return {name: width for name, width in found.items() if math.isfinite(width)}


def told_apart(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two networks differ by more than chance, on the same parts of the same examples; of too few parts nobody
    can tell."""
    if len(first) != len(second) or len(first) < 2:
        return False
    apart = np.subtract(first, second)
    return bool(abs(apart.mean()) > half_width(apart.tolist()))


class Between(NamedTuple):
    """A figure with its interval; NaN where it cannot be told."""

    value: float
    low: float
    high: float


def tau(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Kendall's tau-b (Kendall 1945); NaN where one of the two is constant. For few networks, many times: SciPy's
    takes a hundred times as long, for its p-value."""
    one, other = (np.sign(np.subtract.outer(values, values)) for values in (first, second))
    ties = math.sqrt(float((one**2).sum()) * float((other**2).sum()))
    return float((one * other).sum()) / ties if ties else math.nan


def bootstrapped(figure: Callable[[np.ndarray], float], count: int, seed: int = 0) -> Between:
    """A figure of `count` networks, with the interval of its values over networks drawn anew with replacement.

    Args:
        figure: of the numbers of some of the networks, shape ``(count,)``.
    """
    rng = np.random.default_rng(seed)
    drawn = np.array([figure(rng.integers(count, size=count)) for _ in range(DRAWS)])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]) if len(drawn) else (math.nan, math.nan)
    return Between(figure(np.arange(count)), float(low), float(high))


def beside(figures: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """What is left of figures when a line over the logarithm of cost is taken out: of trainings the one of their mean,
    since a line of each would take what they differ by along with it.

    Args:
        figures: shape ``(networks,)`` or ``(networks, trainings)``.
        cost: shape ``(networks,)``, 0 or more.
    """
    line, means = np.vander(np.log(np.maximum(cost, LEAST)), 2), figures.reshape(len(figures), -1).mean(axis=1)
    found: np.ndarray = (figures.T - line @ np.linalg.lstsq(line, means, rcond=None)[0]).T
    return found


class Spread(NamedTuple):
    """Standard deviations: of networks about what they are compared with, and of trainings of one network."""

    networks: float
    trainings: float


def spread(figures: np.ndarray, fitted: int = 1) -> Spread:
    """One-way analysis of variance with random effects, of trainings of networks.

    Args:
        figures: shape ``(networks, trainings)``, two trainings at least.
        fitted: how many numbers were fitted to the networks' means: 1, their mean; 2, a line.

    Returns:
        0 for the networks where they differ by no more than trainings do.
    """
    networks, trainings = figures.shape
    means = figures.mean(axis=1)
    within = ((figures - means[:, None]) ** 2).sum() / (networks * (trainings - 1))
    between = ((means - means.mean()) ** 2).sum() / max(networks - fitted, 1)
    return Spread(math.sqrt(max(between - within / trainings, 0.0)), math.sqrt(within))


def best_of(count: int) -> float:
    """By how many standard deviations the best of `count` draws from a Gaussian lies above their mean, in the mean
    (Blom 1958)."""
    return float(ndtri((count - 0.375) / (count + 0.25))) if count > 1 else 0.0


def smallest_difference(error: float) -> float:
    """The difference of two figures that shows with a chance of `POWER`, where the standard error of a difference is
    `error`."""
    return float((ndtri(0.5 + LEVEL / 2) + ndtri(POWER)) * error)
