"""Fixtures that tests of spaces share: the supernet of AttentiveNAS."""

from __future__ import annotations

import pytest
import torch

from nas.build import load_supernet
from searchspaces.bignas import BigNAS


@pytest.fixture(scope="module")
def attentive() -> BigNAS:
    torch.manual_seed(0)
    return load_supernet("bignas", "attentivenas")  # type: ignore[return-value]
