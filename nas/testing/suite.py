"""Runs the checks of a plug-in one by one, and tells what each found."""

from __future__ import annotations

import contextlib
import inspect
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ParamSpec

import torch

P = ParamSpec("P")


@dataclass(frozen=True)
class Outcome:
    """What came of one check.

    Attributes:
        name: of the check, without ``check_``.
        contract: what must hold: the first line of its docstring.
        look: where to look when it does not: the rest of the docstring, in one line.
        seconds: how long it took.
        why: what was found instead; None where all is well.
    """

    name: str
    contract: str
    look: str
    seconds: float
    why: str | None

    @property
    def ok(self) -> bool:
        return self.why is None


def outcomes(checks: Iterable[Callable[P, None]], *subject: P.args, **named: P.kwargs) -> Iterator[Outcome]:
    """Every check on the same subject, one after the other; one that fails does not end the suite.

    Args:
        checks: the ``CHECKS`` of a suite.
        subject: what each of them is called with.
    """
    for check in checks:
        contract, _, look = inspect.cleandoc(check.__doc__ or "").partition("\n")
        began, why = time.perf_counter(), None
        with modes_put_back():
            try:
                check(*subject, **named)
            except AssertionError as error:
                why = str(error) or f"{check.__name__} does not hold"
            except Exception as error:  # whatever the plug-in raises is a finding, told with its place
                place = traceback.extract_tb(error.__traceback__)[-1]
                why = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        yield Outcome(
            check.__name__.removeprefix("check_"), contract, " ".join(look.split()), time.perf_counter() - began, why
        )


@contextlib.contextmanager
def modes_put_back() -> Iterator[None]:
    """Gradient mode, autocast and the default type are afterwards what they were, whatever a plug-in did to them."""
    gradients, autocast, dtype = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_autocast_enabled("cpu", autocast)
        torch.set_default_dtype(dtype)
