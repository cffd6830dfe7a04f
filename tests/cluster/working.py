"""What tests of the cluster share."""

from __future__ import annotations

from typing import Any

from cluster.jobs import Work


def work(**more: Any) -> Work:
    return Work(**{"run": "digits", "experiment": "name: digits\n", "storage": "/mnt/a b", **more})
