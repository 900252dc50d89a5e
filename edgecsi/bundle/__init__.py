"""The bundle: the folder that is deployed. Written in one step, verified before use, run by its C face."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgecsi.bundle.manifest import (
    Check,
    Entry,
    EntryCheck,
    FileInfo,
    Layer,
    Manifest,
    ModelOrigin,
    TargetInfo,
    Tensor,
    Versions,
    embedded_json,
    parse_manifest,
)
from edgecsi.bundle.read import Bundle, read_bundle
from edgecsi.bundle.write import refuse_to_replace, what_is_in, write_bundle

if TYPE_CHECKING:
    from edgecsi.bundle.golden import golden_npz, read_golden
    from edgecsi.bundle.loaded import Loaded, load

__all__ = [
    "Bundle",
    "Check",
    "Entry",
    "EntryCheck",
    "FileInfo",
    "Layer",
    "Loaded",
    "Manifest",
    "ModelOrigin",
    "TargetInfo",
    "Tensor",
    "Versions",
    "embedded_json",
    "golden_npz",
    "load",
    "parse_manifest",
    "read_bundle",
    "read_golden",
    "refuse_to_replace",
    "what_is_in",
    "write_bundle",
]

# Looked up when they are used: they need numpy, and commands that only move bundles about start faster without.
_WITH_NUMPY = {"golden_npz": "golden", "read_golden": "golden", "Loaded": "loaded", "load": "loaded"}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _WITH_NUMPY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_WITH_NUMPY[name]}"), name)
