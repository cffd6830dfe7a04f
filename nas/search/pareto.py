"""Dominance, fronts, ranks, crowding and hypervolume. Everything is minimised; a point with NaN or infinity has failed.

A failed point stands on no front, dominates nothing and is dominated by every finite point.
Two equal points do not dominate each other, so both may stand on the front.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray


def _points(points: ArrayLike) -> NDArray[np.float64]:
    """`points` as a float64 array of shape ``(points, objectives)``; nothing at all becomes ``(0, 2)``."""
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0 and array.ndim < 2:
        return np.empty((0, 2))
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"points must have shape (points, objectives), not {array.shape}")
    return array


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether `first` is nowhere worse (larger) than `second` and somewhere better.

    Raises:
        ValueError: the two have different numbers of objectives.
    """
    if len(first) != len(second):
        raise ValueError(f"cannot compare points of {len(first)} and {len(second)} objectives")
    if not np.all(np.isfinite(first)):
        return False
    if not np.all(np.isfinite(second)):
        return True
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def front(points: ArrayLike) -> NDArray[np.int64]:
    """Indices, ascending, of the points that no other point dominates.

    Args:
        points: shape ``(points, objectives)``, to be minimised.

    Raises:
        ValueError: another shape.
    """
    array = _points(points)
    finite = np.flatnonzero(np.isfinite(array).all(axis=1))
    array = array[finite]
    if len(array) == 0:
        return finite
    if array.shape[1] == 2:
        return finite[_front_2d(array)]
    return finite[moocore.is_nondominated(array, keep_weakly=True)]


def _front_2d(array: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The mask of the front of finite points of shape ``(points, 2)``, by one sweep over the first objective."""
    order = np.lexsort((array[:, 1], array[:, 0]))
    x, y = array[order, 0], array[order, 1]
    lowest = np.concatenate(([np.inf], np.minimum.accumulate(y)[:-1]))  # the least y among all points before
    better = y < lowest
    equal = np.concatenate(([False], (x[1:] == x[:-1]) & (y[1:] == y[:-1])))
    # A copy stands on the front if the first of its equals does; they are neighbours in the sorted order.
    head = np.maximum.accumulate(np.where(equal, 0, np.arange(len(order))))
    mask = np.zeros(len(order), dtype=np.bool_)
    mask[order] = better[head]
    return mask


def ranks(points: ArrayLike) -> NDArray[np.int64]:
    """The number of the front that each point stands on once all fronts before it are taken away (Deb et al. 2002,
    NSGA-II).

    Args:
        points: shape ``(points, objectives)``, to be minimised.

    Returns:
        Shape ``(points,)``: 0 for the front; failed points get the rank after the last.
    """
    array = _points(points)
    finite = np.isfinite(array).all(axis=1)
    result = np.zeros(len(array), dtype=np.int64)
    left = np.flatnonzero(finite)
    if array.shape[1] == 2:
        result[left] = _ranks_2d(array[left])
    else:
        rank = 0
        while len(left):
            top = front(array[left])
            result[left[top]] = rank
            left = np.delete(left, top)
            rank += 1
    result[~finite] = result[finite].max() + 1 if finite.any() else 0
    return result


def _ranks_2d(array: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks of finite points of shape ``(points, 2)`` in n log n: patience sorting (Jensen 2003).

    Taken in order of x, then y, a point is dominated by a front exactly when the front's lowest y so far is at most its
    own; those lowest values rise from front to front, so the first front without one is found by bisection.
    """
    result = np.zeros(len(array), dtype=np.int64)
    lowest: list[float] = []
    before: tuple[float, float] | None = None
    rank = 0
    order = np.lexsort((array[:, 1], array[:, 0]))
    for index, x, y in zip(order.tolist(), *array[order].T.tolist(), strict=True):
        point = (x, y)
        if point != before:  # a copy keeps the rank of the point that it equals
            rank = bisect_right(lowest, y)
            lowest[rank : rank + 1] = [y]
            before = point
        result[index] = rank
    return result


def crowding(points: ArrayLike) -> NDArray[np.float64]:
    """How far apart the neighbours of each point lie within one front (Deb et al. 2002, NSGA-II).

    Args:
        points: shape ``(points, objectives)``, all of one front.

    Returns:
        Shape ``(points,)``: the sum over objectives of the distance between both neighbours over the range; infinite
        for the ends, 0 for failed points. Large means lonely.
    """
    array = _points(points)
    finite = np.flatnonzero(np.isfinite(array).all(axis=1))
    result = np.zeros(len(array))
    if len(finite) == 0:
        return result
    for column in array[finite].T:
        order = np.argsort(column, kind="stable")
        values = column[order]
        span = values[-1] - values[0]
        gaps = np.full(len(values), np.inf)
        if len(values) > 2:
            gaps[1:-1] = (values[2:] - values[:-2]) / span if span > 0 else 0.0
        result[finite[order]] += gaps
    return result


def hypervolume(points: ArrayLike, reference: Sequence[float]) -> float:
    """The exact area or volume that the points dominate below `reference` (Zitzler and Thiele 1999), in the product of
    all units.

    Args:
        points: shape ``(points, objectives)``, to be minimised; points that are not below the reference in all add
            nothing.
        reference: the corner, two finite numbers or more.

    Raises:
        ValueError: a reference of another number of objectives, of less than two, or one that is not finite.
    """
    array = _points(points)
    if array.size == 0:
        array = array.reshape(0, len(reference))
    if array.shape[1] != len(reference) or len(reference) < 2:
        raise ValueError(
            f"hypervolume takes two objectives or more; got points of {array.shape[1]}, a reference of {len(reference)}"
        )
    if not np.all(np.isfinite(reference)):
        raise ValueError(f"the reference must be finite, not {tuple(reference)}")
    array = array[front(array)]
    array = np.unique(array[(array < np.asarray(reference)).all(axis=1)], axis=0)  # sorted by x, so y falls
    if len(reference) > 2:
        return float(moocore.hypervolume(array, ref=reference)) if len(array) else 0.0
    right = np.append(array[1:, 0], reference[0])
    return float(((right - array[:, 0]) * (reference[1] - array[:, 1])).sum())
