"""Where edgecsi keeps what it can make again: channels, compiled helper programs, measured limits."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$EDGECSI_CACHE``, else ``$XDG_CACHE_HOME/edgecsi``, else ``~/.cache/edgecsi``."""
    if own := os.environ.get("EDGECSI_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgecsi"
