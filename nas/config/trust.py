"""Whose code a run directory may name. Imports nothing but the standard library.

An experiment can name modules of the user's own, which are imported. Who gives an experiment file, or calls raynas from
Python, means them. A run directory may have come from anybody: its modules are imported only where the user has said so
before, by having begun the run here or by ``--trust``. That is noted outside of the run directory, by the run's id.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any


class Untrusted(ValueError):
    """A run directory names modules that nobody here has trusted."""


def modules_of(tree: Any) -> set[str]:
    """The modules that an experiment's plain values name, each by its first name: ``{"my_module"}``."""
    return {name.partition(":")[0].partition(".")[0] for name in _plug_ins(tree) if ":" in name}


def _plug_ins(tree: Any) -> Iterator[str]:
    """Every name of a plug-in."""
    search = _in(tree, "search")
    costs = _in(search, "costs")
    sections = [_in(tree, key) for key in ("space", "data", "recipe")]
    sections += [_in(_in(tree, key), "recipe") for key in ("finetune", "fidelity", "search")]
    sections += costs if isinstance(costs, list | tuple) else ()
    for name in (_in(search, "algorithm"), *(_in(section, "name") for section in sections)):
        if isinstance(name, str):
            yield name


def _in(tree: Any, key: str) -> Any:
    return tree.get(key) if isinstance(tree, dict) else None


def check(run: str, modules: Collection[str], place: Path) -> None:
    """Let the modules pass that a run's experiment names, where they are trusted.

    Args:
        run: its id.
        place: where it is, for the message.

    Raises:
        Untrusted: one is not.
    """
    if strange := sorted(set(modules) - _noted().get(run, set())):
        words = " ".join(f"--trust {module}" for module in strange)
        raise Untrusted(
            f"the run in {place} names code that does not come with raynas: {', '.join(strange)}. It would be imported "
            f"here and run with your rights.\nIf you know it and trust it: {words}, which is remembered for this run"
        )


def remember(run: str, modules: Collection[str]) -> None:
    """Note that a run's modules are trusted; where no note can be left, the next command asks again."""
    known = _noted()
    if not set(modules) - known.get(run, set()):
        return
    known[run] = known.get(run, set()) | set(modules)
    path = _place()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        beside.write_text(json.dumps({each: sorted(names) for each, names in known.items()}, indent=1))
        beside.replace(path)
    except OSError:
        return


def _noted() -> dict[str, set[str]]:
    try:
        return {run: set(names) for run, names in json.loads(_place().read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _place() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "raynas" / "trusted.json"
