"""raynas: train one supernet, cut many networks out of it.

``nas.run("bignas-digits")`` does all and gives a `nas.Run`; ``nas.load_supernet("bignas", "attentivenas")`` gives a
supernet, ``nas.load_child("runs/.../children/<id>")`` an exported child.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.api import Run as Run
    from nas.api import run as run
    from nas.build import load_supernet as load_supernet
    from nas.children.export import load_child as load_child

__all__ = ["Run", "load_child", "load_supernet", "run"]
HOMES = {"run": "nas.api", "Run": "nas.api", "load_supernet": "nas.build", "load_child": "nas.children.export"}


def __getattr__(name: str) -> object:
    """Torch is imported when it is needed, so that ``nas --help`` is quick."""
    import importlib

    if name in HOMES:
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module 'nas' has no attribute {name!r}")
