"""Modules of the user's own: those that an experiment names, and what these import from the folder that they lie in.
Imports nothing but the standard library.

They lie where the user stands, which may be full of other things: no process may take a ``deepspeed.py`` there for the
package. So the folder is not on Python's path; these modules alone are found in it, and after all others.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from traceback import walk_tb
from types import ModuleType

VARIABLE = "RAYNAS_OWN"  # the environment variable that tells workers


class Finder(MetaPathFinder):
    """Finds modules of the user's own.

    Attributes:
        folders: of each module that it may find.
    """

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder = self.folders.get(fullname)  # a module within a package is found by the package's own path
        return PathFinder.find_spec(fullname, [folder]) if folder and path is None else None


FINDER = Finder()


def allow(module: str, folder: Path) -> None:
    """Let a module be found in a folder, with those beside it that it imports; nothing where it is not there."""
    FINDER.folders |= dict.fromkeys(files(module, folder), str(folder.absolute()))
    if FINDER not in sys.meta_path:
        sys.meta_path.append(FINDER)


def files(module: str, folder: Path) -> dict[str, Path]:
    """What a module is made of in a folder: its file or package, and those beside it that it imports, by name."""
    found: dict[str, Path] = {}
    wanted = [module.partition(".")[0]]
    while wanted:
        name = wanted.pop()
        if name not in found and (path := _there(folder, name)) is not None:
            found[name] = path
            wanted += sorted(_imported(path))
    return found


def for_workers() -> dict[str, str]:
    """The environment in which `in_worker` finds the same modules."""
    return {VARIABLE: json.dumps(FINDER.folders)} if FINDER.folders else {}


def in_worker() -> None:
    """Make a worker find what its driver finds; Ray calls it as each begins."""
    FINDER.folders |= json.loads(os.environ.get(VARIABLE, "{}"))
    if FINDER not in sys.meta_path:
        sys.meta_path.append(FINDER)


def place(error: BaseException, module: str) -> str:
    """Where in a module, or in those of the user's own, an error came about: ``"/there/my_module.py:12"``; empty where
    in none of them."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    mine = {module.partition(".")[0], *FINDER.folders}
    found = ""
    for frame, line in walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] in mine:
            found = f"{frame.f_code.co_filename}:{line}"
    return found


def _there(folder: Path, name: str) -> Path | None:
    package, file = folder / name, folder / f"{name}.py"
    return package if (package / "__init__.py").is_file() else file if file.is_file() else None


def _imported(path: Path) -> set[str]:
    """The first names of all that a file, or the files of a package, import."""
    found: set[str] = set()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        with suppress(OSError):  # told better when it is imported
            there = file.stat()
            found |= _names(file, there.st_mtime_ns, there.st_size)
    return found


@cache
def _names(file: Path, *state: int) -> frozenset[str]:
    """The first names of all that a file imports, in a state of it: to read a large package takes a second."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # told better when it is imported
        return frozenset()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return frozenset(found)
