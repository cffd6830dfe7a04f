"""Draws that are pure functions of numbers (seed, purpose, counters): the same in any order, batch, process and NumPy
version.

A counter-based generator in the sense of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the
mixing function is splitmix64's (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

import zlib

import numpy as np


def bits(seed: int, purpose: str, *counters: int | np.ndarray) -> np.ndarray:
    """uint64 of the counters' broadcast shape (at least 1-d), uniform; other seeds and purposes give unrelated
    numbers."""
    state = np.zeros(1, np.uint64)
    for key in (seed % 2**64, zlib.crc32(purpose.encode()), *counters):
        state = _mix(state ^ np.asarray(key).astype(np.uint64))
    return state


def uniform(seed: int, purpose: str, *counters: int | np.ndarray) -> np.ndarray:
    """float64 in [0, 1), shaped like `bits`."""
    return (bits(seed, purpose, *counters) >> np.uint64(11)) * 2.0**-53


def permutation(count: int, seed: int, purpose: str, *counters: int) -> np.ndarray:
    """The numbers 0 .. count - 1 in random order: int64 of shape ``(count,)``."""
    return np.argsort(bits(seed, purpose, *counters, np.arange(count)), kind="stable")


def stratified(labels: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """Positions of `count` random examples, each class in proportion to its size (largest remainders rounded up):
    sorted int64.

    Raises:
        ValueError: `count` would leave a class without examples.
    """
    order = permutation(len(labels), seed, purpose)
    classes, sizes = np.unique(labels, return_counts=True)
    share = sizes * (count / len(labels))
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share, kind="stable")[: count - quota.sum()]] += 1
    if (quota >= sizes).any():
        raise ValueError(
            f"cannot hold {count} of {len(labels)} examples out and leave some of each of {len(classes)} classes; "
            f"the smallest class has {sizes.min()}: hold fewer out"
        )
    return np.sort(np.concatenate([order[labels[order] == label][:n] for label, n in zip(classes, quota, strict=True)]))


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's step on uint64 arrays, which wrap around."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
