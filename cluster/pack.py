"""What of a run is taken away, as a stream: sent to the cluster's head as a script, it writes a tar to its standard
output.

It needs the standard library alone. The first member says what the others must be.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

MARK = b"RAYNAS-PACK\n"
SUMS = "sha256.json"
FILES = ("experiment.yaml", "report.html")
CHILDREN = "children"


def wanted(run: Path) -> Iterator[str]:
    """The files of a run that are taken away, relative to it: the report, the experiment, and every whole child.
    Links are left."""
    yield from (name for name in FILES if (run / name).is_file())
    for child in sorted((run / CHILDREN).glob("*/manifest.json")):
        if not child.parent.name.startswith("."):  # one that is being written
            yield from (
                str(path.relative_to(run))
                for path in sorted(child.parent.rglob("*"))
                if path.is_file() and not path.is_symlink()
            )


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(run: Path) -> None:
    """Write the tar, or one line that says why there is none."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a warning in the stream would break it
    if not (run / "experiment.yaml").is_file():
        out.write(f"{run} holds no run\n".encode())
        out.close()
        sys.exit(1)
    names = list(wanted(run))
    sums = json.dumps({name: digest(run / name) for name in names}).encode()
    out.write(MARK)
    with tarfile.open(fileobj=out, mode="w|") as tar:
        first = tarfile.TarInfo(SUMS)
        first.size = len(sums)
        tar.addfile(first, io.BytesIO(sums))
        for name in names:
            tar.add(run / name, name, recursive=False)
    out.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
