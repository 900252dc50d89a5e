"""Counting fault points, for ``docs/reliability.md``."""

from __future__ import annotations

import os
from pathlib import Path


def count(kind: str) -> None:
    """Note that one fault of this kind was struck and survived."""
    if path := os.environ.get("EDGECSI_FAULT_COUNTS"):
        with Path(path).open(
            "a", encoding="utf-8"
        ) as stream:  # one write a line, so that processes may share it
            stream.write(f"{kind}\n")
