"""What a person is told where the machine fails. Imports nothing but the standard library."""

from __future__ import annotations

import errno
import os

FAILURES = {
    errno.ENOSPC: "there is no space left: make room",
    errno.EDQUOT: "the quota is used up: make room",
    errno.EROFS: "the file system is read-only: make it writable, or choose another --run-dir",
    errno.EACCES: "this user may not do that: change its permissions, or choose another --run-dir",
    errno.EPERM: "this user may not do that: change its permissions, or choose another --run-dir",
    errno.EISDIR: "a directory stands where a file belongs: move it away",
    errno.ENOTDIR: "a file stands where a directory belongs: move it away",
    errno.EEXIST: "a file stands where a directory belongs: move it away",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ENOENT: "it is not there: put it back",
    errno.EIO: "the disk fails: look at it",
    errno.ESTALE: "the network file system has lost it: mount it again",
}


def told(error: OSError) -> str:
    """What a person is told of a file that could not be read or written: the path, what is wrong, what to do."""
    if error.errno is None or error.filename is None:
        return str(error)
    path = error.filename2 or error.filename
    why = FAILURES.get(error.errno, (error.strerror or "cannot be used").lower())
    return f"{os.fsdecode(path)}: {why}; then the same command continues"
