"""``nas init``: an experiment to begin with, for the images in a folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sysconfig
from pathlib import Path
from typing import Annotated

import typer

from nas.cli import starter
from nas.cli.progress import plain

console = plain()
UNNAMEABLE = re.compile(r"[^A-Za-z0-9._-]+")  # in the name of an experiment
OWN = ("own_space.py", "own_space_child.py")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Has train/ and test/ (or val/) with your images.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="[default: <name of DIR>.yaml]")] = None,
    own_space: Annotated[bool, typer.Option("--own-space", help="Also write a search space to start from.")] = False,
) -> None:
    """Write an experiment for your own images, with comments: classes in folders, or photographs for
    super-resolution.

    Example: nas init pictures
    """
    found = starter.look(folder)
    console.print(f"{folder}: {found}")
    target = out or Path(f"{_nameable(folder.absolute().name)}.yaml")
    files = [target, *(Path(name) for name in OWN if own_space)]
    if there := [str(file) for file in files if file.exists()]:
        raise ValueError(f"{', '.join(there)} is there already: remove it, or name another file by --out")
    path = os.path.relpath(found.base.absolute(), target.absolute().parent)
    text = starter.write(found, _nameable(target.stem), path)
    if own_space:
        for name in OWN:
            shutil.copy(examples() / name, name)
        space = text[text.index("space: {name:") :].partition("\n")[0]
        text = text.replace(space, 'space: {name: "own_space:resnet", size: tiny}')
        console.print(f"{', '.join(OWN)}: a space to change; then: nas check own_space:resnet")
    target.write_text(text)
    console.print(
        f"next: nas run {shlex.quote(str(target))}    (--minutes 10 trains for ten minutes, whatever the file says)"
    )


def _nameable(text: str) -> str:
    """The name of an experiment that comes nearest to it."""
    return UNNAMEABLE.sub("-", text).strip(".-") or "mine"


def examples() -> Path:
    """Where the examples lie: beside the package, or where the wheel puts them."""
    beside = Path(__file__).parent.parent.parent / "examples"
    return beside if beside.is_dir() else Path(sysconfig.get_path("data"), "share", "raynas", "examples")
