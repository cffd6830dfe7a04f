"""Names that come from outside: what they may look like, and that they stay in their directory."""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
SUBMISSION = re.compile(r"(.+)-([1-9][0-9]{0,5})")


class Refused(ValueError):
    """Something that cannot be done as asked: the message says what was given, what is allowed and what to do."""


def safe(name: str, what: str) -> str:
    """`name` itself, if it can stand alone as a file's name or as a part of an address.

    Raises:
        Refused: it cannot.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise Refused(
            f"{what} {name[:120]!r} is not a name; allowed: up to 100 letters, digits, . _ - with no leading . and no "
            ".."
        )
    return name


def inside(base: Path, path: str) -> Path:
    """The place of a relative path below `base`; every part must be a safe name, and no link may lead out.

    Raises:
        Refused: it would lie elsewhere.
    """
    parts = path.split("/")
    place = base.joinpath(*(safe(part, "the path") for part in parts))
    if not place.resolve().is_relative_to(base.resolve()):
        raise Refused(f"{path!r} would lie outside {base}")
    return place


def submission_id(run: str, attempt: int) -> str:
    """``bignas-digits-1``: the first attempt at the run bignas-digits."""
    return f"{safe(run, 'the run')}-{attempt}"


def split_id(submission: str) -> tuple[str, int] | None:
    """The run and the attempt of a submission id; None where it is none of ours."""
    match = SUBMISSION.fullmatch(submission)
    return (match[1], int(match[2])) if match and NAME.fullmatch(match[1]) else None
