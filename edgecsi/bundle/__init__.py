"""The bundle: the folder that is deployed. Written in one step, verified before use, run by its C face."""

from edgecsi.bundle.golden import golden_npz, read_golden
from edgecsi.bundle.load import Loaded, load
from edgecsi.bundle.manifest import (
    Check,
    Entry,
    EntryCheck,
    FileInfo,
    Layer,
    Manifest,
    ModelInfo,
    TargetInfo,
    Tensor,
    Versions,
    embedded_json,
    parse_manifest,
)
from edgecsi.bundle.read import Bundle, read_bundle
from edgecsi.bundle.write import refuse_to_replace, what_is_in, write_bundle

__all__ = [
    "Bundle",
    "Check",
    "Entry",
    "EntryCheck",
    "FileInfo",
    "Layer",
    "Loaded",
    "Manifest",
    "ModelInfo",
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
