"""Tables that grow, and their first rows."""

from __future__ import annotations

import numpy as np
import pytest

from nas.search.rows import First


def test_the_first_items_of_a_list_are_as_of_a_list() -> None:
    items = list("abcdef")
    for count in range(7):
        view, plain = First(items, count), items[:count]
        assert list(view) == plain and len(view) == count
        assert [view[at] for at in range(-count, count)] == plain * 2
        assert all(view[np.int64(at)] == plain[at] for at in range(count))
        assert view[1:] == plain[1:] and view[-2:] == plain[-2:] and view[::-1] == plain[::-1]
        for at in (count, -count - 1):
            with pytest.raises(IndexError):
                view[at]


def test_they_stay_as_the_list_grows() -> None:
    items = ["a", "b"]
    view = First(items, 2)
    items.append("c")
    assert list(view) == ["a", "b"]
