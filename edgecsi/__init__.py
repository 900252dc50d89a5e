"""edgecsi: compress, compile and deploy CSI-feedback networks.

>>> import edgecsi
>>> reconstructed = edgecsi.load("csinet-cr4").run(csi)

Public names: ``load`` and ``__version__``, looked up on first use so that ``import edgecsi`` is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecsi.bundle.load import load as load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from edgecsi.bundle.load import load

        return load
    if name == "__version__":
        from importlib.metadata import version

        return version("edgecsi")
    raise AttributeError(f"module 'edgecsi' has no attribute {name!r}")
