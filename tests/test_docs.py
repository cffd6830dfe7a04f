"""What the pages name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = sorted(
    set(re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(\w+))?`( soak)?", (ROOT / "docs/reliability.md").read_text()))
)


@pytest.mark.parametrize(("file", "name", "soak"), NAMED)
def test_every_promise_is_held_by_a_test_that_is_there(file: str, name: str, soak: str) -> None:
    text = (ROOT / "tests" / file).read_text()
    assert not name or f"\ndef {name}(" in text
    whole = re.search(r"^pytestmark = .*soak", text, re.MULTILINE)
    before = text.partition(f"\ndef {name}(")[0].rpartition("\n\n\n")[2] if name else ""
    assert bool(soak) == bool(whole or "mark.soak" in before)


def test_the_page_names_many() -> None:
    assert len(NAMED) > 35
