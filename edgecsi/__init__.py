"""edgecsi: compress, compile and deploy CSI-feedback networks.

>>> import edgecsi
>>> edgecsi.build("csinet-cr4", "host", out="csinet")
>>> reconstructed = edgecsi.load("csinet").run(csi)

Public names are those of ``__all__`` (docs/api.md); they are looked up on first use, so that ``import edgecsi`` is
cheap.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecsi import errors as errors
    from edgecsi.api import bench as bench
    from edgecsi.api import build as build
    from edgecsi.api import compress as compress
    from edgecsi.api import deploy as deploy
    from edgecsi.api import evaluate as evaluate
    from edgecsi.api import load as load
    from edgecsi.api import models as models
    from edgecsi.api import report as report
    from edgecsi.api import targets as targets
    from edgecsi.api import train as train
    from edgecsi.api import tune as tune

    __version__: str

__all__ = [
    "__version__", "bench", "build", "compress", "deploy", "evaluate", "load", "models", "report", "targets", "train",
    "tune",
]  # fmt: skip
FUNCTIONS = __all__[1:]


class _AlsoFunction(ModuleType):
    """A package whose name is that of a public function too: ``edgecsi.compress(...)`` calls it."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return getattr(import_module("edgecsi.api"), self.__name__.rpartition(".")[2])(*arguments, **named)


class _Edgecsi(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name in FUNCTIONS and type(value) is ModuleType:  # the import system binds a package here
            value.__class__ = _AlsoFunction
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Edgecsi


def __getattr__(name: str) -> Any:
    if name in FUNCTIONS:
        if find_spec(f"edgecsi.{name}") is not None:
            return import_module(f"edgecsi.{name}")
        return getattr(import_module("edgecsi.api"), name)
    if name == "errors":
        return import_module("edgecsi.errors")
    if name == "__version__":
        from importlib.metadata import version

        return version("edgecsi")
    raise AttributeError(f"module 'edgecsi' has no attribute {name!r}")
