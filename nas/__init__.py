"""raynas: train one supernet, cut many networks out of it.

``nas.load_supernet("bignas", "attentivenas")`` gives a supernet, ``nas.load_child("runs/.../children/<id>")`` an exported child.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.build import load_supernet as load_supernet
    from nas.children.export import load_child as load_child

__all__ = ["load_child", "load_supernet"]


def __getattr__(name: str) -> Any:
    """Torch is imported when it is needed, so that ``nas --help`` is quick."""
    import importlib

    homes = {"load_supernet": "nas.build", "load_child": "nas.children.export"}
    if name in homes:
        return getattr(importlib.import_module(homes[name]), name)
    raise AttributeError(f"module 'nas' has no attribute {name!r}")
