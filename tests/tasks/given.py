"""What tests of classification share: the options of the digits, and the data at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nas.tasks.options import ClassificationOptions

DIGITS = ClassificationOptions(name="digits", validation=300, shift=1)


def given(name: str) -> Path:
    """The folder of that name in one of RAYNAS_DATA's; without it the test is skipped."""
    for root in os.environ.get("RAYNAS_DATA", "").split(os.pathsep):
        if root and (Path(root) / name).is_dir():
            return Path(root) / name
    pytest.skip(f"no {name} under RAYNAS_DATA")
