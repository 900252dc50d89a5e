"""What a bundle says about itself: ``manifest.json``, schema 1.

The file is *canonical JSON*: UTF-8, sorted keys, no spaces, no NaN. There is therefore exactly one spelling
of a manifest, and a changed byte shows either as another spelling or as another ``digest``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn

from edgecsi.errors import BundleError
from edgecsi.names import batch_shape, split_batch
from edgecsi.schema import (
    Count,
    Fraction,
    NonNegative,
    Sha256,
    between,
    convert,
    matching,
    one_line,
    parse_json,
    to_tree,
)
from edgecsi.verdict import Accuracy

SCHEMA = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"  # lies beside the manifest, if the bundle is signed; see signature.py
MAX_BYTES = 8 << 20

NEVER_EDIT = "build the bundle again; never edit the manifest by hand"
MOST = 8
"""Inputs, outputs, and dimensions of a tensor."""
_LEFT_OUT = frozenset({"build_number", "allowed", "nmse_db_fp32"})  # not written where they have no value
_NOT_EMBEDDED = frozenset({"check", "files", "digest", "build_number"})


Size = Annotated[int, between(1, 2**31 - 1)]
BundleName = Annotated[
    str, matching("[A-Za-z][A-Za-z0-9_-]{0,63}", "a name of letters, digits, '-' and '_', at most 64")
]
Identifier = Annotated[str, matching("[A-Za-z_][A-Za-z0-9_]{0,63}", "a C identifier, at most 64 letters")]
FileName = Annotated[
    str,
    matching(
        r"(?!.*(^|/)\.)[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+){0,3}",
        "a relative file name of letters, digits, '.', '_' and '-' that stays inside the bundle",
    ),
]
Feature = Annotated[str, matching("[a-z0-9_.]{1,32}", "a CPU feature as /proc/cpuinfo names it")]


@dataclass(frozen=True)
class Versions:
    """The versions of everything that shaped the library's bytes."""

    edgecsi: str
    torch: str
    tvm: str
    tvm_ffi: str
    llvm: str
    zig: str


@dataclass(frozen=True)
class ModelOrigin:
    """Where the network came from. ``sha256`` is the checkpoint's, ``None`` if there was no file."""

    spec: str
    family: str
    sha256: Sha256 | None
    recipe: str | None


@dataclass(frozen=True)
class TargetInfo:
    """What the library was compiled for, and what a CPU needs to run it (``features``, ``glibc``)."""

    id: str
    arch: Literal["x86_64", "aarch64"]
    triple: str
    mcpu: str
    mattr: tuple[str, ...]
    features: tuple[Feature, ...]
    glibc: Annotated[str, matching(r"[0-9]{1,3}\.[0-9]{1,3}", "a glibc version such as 2.28")]
    emulate: Annotated[str, matching("[A-Za-z0-9_.,+=-]{0,200}", "a CPU name of QEMU")]


@dataclass(frozen=True)
class Tensor:
    """An input or output of an entry: contiguous, of this type and shape, batch first. Integers and booleans of any
    width are int32, floating-point numbers float32."""

    name: Identifier
    shape: tuple[Size, ...]
    dtype: Literal["float32", "int32"] = "float32"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layer:
    """One layer of an entry: its kernel, why that one, and what it costs (bytes of weights; MACs a call)."""

    name: str
    op: str
    kernel: str
    why: str
    knobs: Mapping[str, bool | int | float | str]
    density: Fraction
    bits: Annotated[int, between(0, 64)]
    bytes: Count
    macs: Count
    predicted_us: NonNegative | None = None


@dataclass(frozen=True)
class Entry:
    """A function of the library. ``workspace`` and ``weight_bytes`` are in bytes, ``macs`` is a call's."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    workspace: Annotated[int, between(0, 2**31 - 1)]
    macs: Count
    weight_bytes: Count
    layers: tuple[Layer, ...]

    @property
    def maps_samples(self) -> bool:
        """Whether it maps one array of samples to another with as many."""
        tensors = (*self.inputs, *self.outputs)
        return len(tensors) == 2 and tensors[0].shape[:1] == tensors[1].shape[:1] != ()

    @property
    def quantised(self) -> bool:
        """Whether weights are narrower than fp32."""
        return any(layer.bits < 32 for layer in self.layers)


@dataclass(frozen=True)
class EntryCheck:
    """Library against PyTorch: largest difference, absolute and relative to the largest output; NMSE in dB of
    both against the true channel (``None`` where that has no meaning); the relative difference that was allowed; and
    the NMSE of the network before it was compressed, if it was and that is known."""

    max_abs_diff: NonNegative
    max_rel_diff: NonNegative
    nmse_db: float | None = None
    nmse_db_pytorch: float | None = None
    allowed: NonNegative | None = None
    nmse_db_fp32: float | None = None


@dataclass(frozen=True)
class Check:
    """The build's own check; ``reason`` says why it was not run."""

    status: Literal["passed", "not run"]
    reason: str = ""
    data: str = ""
    samples: Count = 0
    entries: Mapping[str, EntryCheck] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class FileInfo:
    """What a file of the bundle must be."""

    sha256: Sha256
    bytes: Count


@dataclass(frozen=True)
class Manifest:
    """The whole manifest. ``files`` and ``digest`` are filled in by :func:`edgecsi.bundle.write_bundle`.

    ``build_number`` counts a product's builds, so that a device can refuse an older one. It is the one field
    that may be missing, and is where it has no value."""

    name: BundleName
    library: FileName
    header: FileName
    created_with: Versions
    model: ModelOrigin
    target: TargetInfo
    entries: Mapping[Identifier, Entry]
    check: Check
    files: Mapping[FileName, FileInfo] = dataclasses.field(default_factory=dict)
    digest: str = ""
    schema: int = SCHEMA
    build_number: Count | None = None

    @property
    def accuracy(self) -> Accuracy:
        """The NMSE of ``full`` on the data of the check."""
        full = self.check.entries.get("full", EntryCheck(0.0, 0.0))
        return Accuracy.of(self.model.recipe, full.nmse_db_fp32, full.nmse_db_pytorch, full.nmse_db)

    @property
    def cname(self) -> str:
        """The bundle's name as a C identifier, the prefix of every symbol."""
        return self.name.replace("-", "_")


def canonical(value: object) -> bytes:
    """The one spelling of a JSON value: UTF-8, sorted keys, no spaces.

    Raises:
        ValueError: a NaN, an infinity or a lone surrogate, which JSON or UTF-8 cannot express.
    """
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


def to_json(value: Any) -> Any:
    """A dataclass of this module as plain JSON values."""
    return _without_empty(to_tree(value))


def _without_empty(tree: Any) -> Any:
    if isinstance(tree, dict):
        kept = {key: item for key, item in tree.items() if key not in _LEFT_OUT or item is not None}
        return {key: _without_empty(item) for key, item in kept.items()}
    return [_without_empty(item) for item in tree] if isinstance(tree, list) else tree


def embedded_json(manifest: Manifest) -> bytes:
    """The part that is compiled into the library and returned by ``<name>_manifest()``: everything but
    ``check``, ``files`` and ``digest``, which exist only after the library does, and ``build_number``, which
    two builds of the same library do not share."""
    tree = to_json(manifest)
    return canonical({key: tree[key] for key in tree if key not in _NOT_EMBEDDED})


def seal(manifest: Manifest, files: Mapping[str, FileInfo]) -> tuple[Manifest, bytes]:
    """Fill in ``files`` and ``digest``; returns the manifest and the bytes of ``manifest.json``.

    Raises:
        BundleError: the manifest breaks a rule of the schema, so no reader would accept it.
    """
    tree = to_json(dataclasses.replace(manifest, files=dict(files)))
    try:
        tree["digest"] = _digest(tree)
        data = canonical(tree)
    except ValueError as error:
        raise BundleError(
            f"the manifest of {manifest.name} cannot be written",
            str(error),
            "give finite numbers and UTF-8 text",
        ) from error
    return parse_manifest(data, MANIFEST), data


def parse_manifest(data: bytes, source: str) -> Manifest:
    """Read a manifest that may be broken or hostile.

    Args:
        data: the bytes of ``manifest.json``.
        source: the file's name, for messages.

    Raises:
        BundleError: anything but a well-formed, canonical, self-consistent manifest of this schema.
    """
    tree = parse_tree(data, source)
    schema = tree.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise BundleError(
            f"{source} has schema {schema}",
            f"this edgecsi reads schema {SCHEMA}",
            "update edgecsi: `git pull` in its clone, then `pip install -e .`",
        )
    if type(schema) is not int or schema != SCHEMA:
        _refuse(source, "schema", f"the number {SCHEMA}", schema)
    manifest = convert(tree, Manifest, what=source, error=BundleError, fix=NEVER_EDIT, may_lack=_LEFT_OUT)
    if to_json(manifest).keys() != tree.keys() or _without_empty(tree) != tree:
        _refuse(source, "build_number", "a number, or no such field", None)
    if _digest(tree) != manifest.digest:
        raise BundleError(
            f"{source} was changed after it was written",
            "its digest does not match its contents",
            "build or copy the bundle again",
        )
    _cross_check(manifest, source)
    return manifest


def parse_tree(data: bytes, source: str) -> dict[str, Any]:
    """Canonical JSON to a dictionary; see :func:`parse_manifest` for what is refused."""
    tree = parse_json(data, what=source, error=BundleError, fix="build the bundle again", max_bytes=MAX_BYTES)
    if not isinstance(tree, dict):
        _refuse(source, "", "an object", tree)
    if canonical(tree) != data:
        raise BundleError(
            f"{source} was changed after it was written",
            "it is not in canonical form (sorted keys, no spaces)",
            "build or copy the bundle again; never edit the manifest by hand",
        )
    return tree


def _digest(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({key: tree[key] for key in tree if key != "digest"})).hexdigest()


def _cross_check(manifest: Manifest, source: str) -> None:
    """Rules that tie fields to each other."""

    def require(holds: bool, path: str, rule: str, value: object) -> None:
        if not holds:
            _refuse(source, path, rule, value)

    require(manifest.library == f"lib{manifest.name}.so", "library", "lib<name>.so", manifest.library)
    require(manifest.header == f"{manifest.name}.h", "header", "<name>.h", manifest.header)
    require(bool(manifest.entries), "entries", "at least one entry", {})
    for name, entry in manifest.entries.items():
        path = f"entries.{name}"
        tensors = [*entry.inputs, *entry.outputs]
        for side, count in (("inputs", len(entry.inputs)), ("outputs", len(entry.outputs))):
            require(1 <= count <= MOST, f"{path}.{side}", f"1 to {MOST} tensors", count)
        require(
            len({tensor.name for tensor in tensors}) == len(tensors),
            path,
            "distinct tensor names",
            "one twice",
        )
        for tensor in tensors:
            require(
                len(tensor.shape) <= MOST,
                f"{path}.{tensor.name}.shape",
                f"at most {MOST} dimensions",
                len(tensor.shape),
            )
            require(
                tensor.size < 2**31, f"{path}.{tensor.name}.shape", "fewer than 2^31 elements", tensor.size
            )
        one, batch = split_batch(name)
        if batch > 1 and one in manifest.entries:
            alike = _takes_more(entry, manifest.entries[one], batch)
            require(alike, path, f"the tensors of {one}, of {batch} times the samples", "others")
    for name in manifest.check.entries:
        require(name in manifest.entries, f"check.entries.{name}", "an entry of the bundle", name)
    for name in (manifest.library, manifest.header):
        require(name in manifest.files, "files", f"a list with {name}", sorted(manifest.files))
    for name in (MANIFEST, SIGNATURE):
        require(name not in manifest.files, "files", f"a list without {name}", name)


def _takes_more(entry: Entry, single: Entry, batch: int) -> bool:
    """Whether an entry maps as `single` does, but `batch` calls at once: callers rely on it for their arrays."""
    sides = ((entry.inputs, single.inputs), (entry.outputs, single.outputs))
    if any(len(many) != len(one) for many, one in sides):
        return False
    pairs = [pair for many, one in sides for pair in zip(many, one, strict=True)]
    return all((m.dtype, m.shape) == (o.dtype, batch_shape(o.shape, batch)) for m, o in pairs)


def _refuse(source: str, path: str, expected: str, found: object) -> NoReturn:
    shown = found if isinstance(found, str) else repr(found)
    raise BundleError(
        one_line(f"{source}: {path or 'the top level'} is not valid"),
        one_line(f"expected {expected}, found {shown}"),
        NEVER_EDIT,
    )
