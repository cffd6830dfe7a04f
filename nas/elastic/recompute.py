"""Activation checkpointing (Chen et al., arXiv:1604.06174): what a block computes within is not kept for its backward
pass but computed again there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(block: Callable[..., Tensor], *given: Any, generator: torch.Generator | None) -> Tensor:
    """``block(*given, generator)``, of which only the inputs are kept.

    The second time the block draws what it drew the first time, and leaves the generator as it finds it: others have
    drawn from it in between.
    """
    if generator is None:  # torch's own, which `checkpoint` looks after
        return checkpoint(block, *given, None, use_reentrant=False)
    began, again = generator.get_state(), False

    def run(*args: Any) -> Tensor:
        nonlocal again
        if not again:
            again = True
            return block(*args, generator)
        now = generator.get_state()
        generator.set_state(began)
        try:
            return block(*args, generator)
        finally:  # torch leaves by an exception once it has all that it needs
            generator.set_state(now)

    return checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False)
