"""matplotlib as edgecsi uses it: its caches lie in ours, and what it has to say about them is said to nobody."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from edgecsi import disk
from edgecsi.errors import EdgecsiError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with suppress(EdgecsiError):  # then it takes a temporary folder
        os.environ.setdefault("MPLCONFIGDIR", str(disk.cache("matplotlib")))
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
