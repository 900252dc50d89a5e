"""What a bundle says about itself: ``manifest.json``, schema 1.

The file is *canonical JSON*: UTF-8, sorted keys, no spaces, no NaN. There is therefore exactly one spelling
of a manifest, and a changed byte shows either as another spelling or as another ``digest``.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from edgecsi.errors import BundleError

SCHEMA = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"  # lies beside the manifest, if the bundle is signed; see signature.py
MAX_BYTES = 8 << 20

_LEFT_OUT = frozenset({"build_number"})  # has one spelling too: it is not written where it has no value
_NOT_EMBEDDED = frozenset({"check", "files", "digest", "build_number"})

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
T = TypeVar("T")


@dataclass(frozen=True)
class Between:
    """The closed range a number must lie in."""

    low: float
    high: float

    def explain(self, value: Any) -> str:
        return "" if self.low <= value <= self.high else f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Matching:
    """The pattern a string must match, and how to say so."""

    pattern: str
    words: str

    def explain(self, value: Any) -> str:
        return "" if re.fullmatch(self.pattern, value) else self.words


Count = Annotated[int, Between(0, 2**53)]
Size = Annotated[int, Between(1, 2**31 - 1)]
NonNegative = Annotated[float, Between(0, 1e308)]
Fraction = Annotated[float, Between(0, 1)]
Sha256 = Annotated[str, Matching("[0-9a-f]{64}", "64 hexadecimal digits")]
BundleName = Annotated[
    str, Matching("[A-Za-z][A-Za-z0-9_-]{0,63}", "a name of letters, digits, '-' and '_', at most 64")
]
Identifier = Annotated[str, Matching("[A-Za-z_][A-Za-z0-9_]{0,63}", "a C identifier, at most 64 letters")]
FileName = Annotated[
    str,
    Matching(
        r"(?!.*(^|/)\.)[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+){0,3}",
        "a relative file name of letters, digits, '.', '_' and '-' that stays inside the bundle",
    ),
]
Feature = Annotated[str, Matching("[a-z0-9_.]{1,32}", "a CPU feature as /proc/cpuinfo names it")]


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
class ModelInfo:
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
    glibc: Annotated[str, Matching(r"[0-9]{1,3}\.[0-9]{1,3}", "a glibc version such as 2.28")]
    emulate: Annotated[str, Matching("[A-Za-z0-9_.,+=-]{0,200}", "a CPU name of QEMU")]


@dataclass(frozen=True)
class Tensor:
    """An input or output of an entry: contiguous float32 of this shape, batch first."""

    name: Identifier
    shape: tuple[Size, ...]
    dtype: Literal["float32"] = "float32"

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
    bits: Annotated[int, Between(0, 64)]
    bytes: Count
    macs: Count
    predicted_us: NonNegative | None = None


@dataclass(frozen=True)
class Entry:
    """A function of the library. ``workspace`` and ``weight_bytes`` are in bytes, ``macs`` is a call's."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    workspace: Annotated[int, Between(0, 2**31 - 1)]
    macs: Count
    weight_bytes: Count
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class EntryCheck:
    """Library against PyTorch: largest difference, absolute and relative to the largest output; NMSE in dB of
    both against the true channel (``None`` where that has no meaning)."""

    max_abs_diff: NonNegative
    max_rel_diff: NonNegative
    nmse_db: float | None = None
    nmse_db_pytorch: float | None = None


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
    model: ModelInfo
    target: TargetInfo
    entries: Mapping[Identifier, Entry]
    check: Check
    files: Mapping[FileName, FileInfo] = dataclasses.field(default_factory=dict)
    digest: str = ""
    schema: int = SCHEMA
    build_number: Count | None = None

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
    if dataclasses.is_dataclass(value):
        tree = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {key: item for key, item in tree.items() if key not in _LEFT_OUT or item is not None}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


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
            "update edgecsi: pip install --upgrade edgecsi",
        )
    if type(schema) is not int or schema != SCHEMA:
        _refuse(source, "schema", f"the number {SCHEMA}", schema)
    manifest = _decode_fields(Manifest, tree, "", source)
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
    if len(data) > MAX_BYTES:
        raise BundleError(
            f"{source} is too large",
            f"more than {MAX_BYTES >> 20} MB is no manifest",
            "build the bundle again",
        )
    try:
        tree = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        same = canonical(tree) == data
    except RecursionError:
        raise BundleError(
            f"{source} is no manifest", "it is nested too deeply", "build the bundle again"
        ) from None
    except ValueError as error:
        raise BundleError(f"{source} is no manifest", _one_line(error), "build the bundle again") from None
    if not isinstance(tree, dict):
        _refuse(source, "", "an object", tree)
    if not same:
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
        require(1 <= len(entry.inputs) <= 8, f"{path}.inputs", "1 to 8 tensors", len(entry.inputs))
        require(1 <= len(entry.outputs) <= 8, f"{path}.outputs", "1 to 8 tensors", len(entry.outputs))
        require(
            len({tensor.name for tensor in tensors}) == len(tensors),
            path,
            "distinct tensor names",
            "one twice",
        )
        for tensor in tensors:
            require(
                len(tensor.shape) <= 8,
                f"{path}.{tensor.name}.shape",
                "at most 8 dimensions",
                len(tensor.shape),
            )
            require(
                tensor.size < 2**31, f"{path}.{tensor.name}.shape", "fewer than 2^31 elements", tensor.size
            )
    for name in manifest.check.entries:
        require(name in manifest.entries, f"check.entries.{name}", "an entry of the bundle", name)
    for name in (manifest.library, manifest.header):
        require(name in manifest.files, "files", f"a list with {name}", sorted(manifest.files))
    for name in (MANIFEST, SIGNATURE):
        require(name not in manifest.files, "files", f"a list without {name}", name)


def _decode(kind: Any, value: Any, path: str, source: str) -> Any:
    """Turn JSON ``value`` into the annotated type ``kind``, or refuse it by its path."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        decoded = _decode(arguments[0], value, path, source)
        if expected := arguments[1].explain(decoded):
            _refuse(source, path, expected, value)
        return decoded
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        members = [member for member in arguments if member is not type(None)]
        if len(members) == 1:
            return _decode(members[0], value, path, source)
        if type(value) not in members:
            _refuse(source, path, " or ".join(member.__name__ for member in members), value)
        return value
    if origin is Literal:
        if value not in arguments:
            _refuse(source, path, " or ".join(repr(choice) for choice in arguments), value)
        return value
    if origin is tuple:
        if not isinstance(value, list):
            _refuse(source, path, "a list", value)
        return tuple(_decode(arguments[0], item, f"{path}[{i}]", source) for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            _refuse(source, path, "an object", value)
        return {
            _decode(arguments[0], key, _join(path, key), source): _decode(
                arguments[1], item, _join(path, key), source
            )
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(kind):
        return _decode_fields(typing.cast("type[Any]", kind), value, path, source)
    if kind is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    if type(value) is not kind:
        _refuse(source, path, {int: "a whole number", float: "a number", str: "a string"}[kind], value)
    return value


def _decode_fields(kind: type[T], value: Any, path: str, source: str) -> T:
    if not isinstance(value, dict):
        _refuse(source, path, "an object", value)
    hints = _hints(typing.cast(Any, kind))
    if missing := sorted(hints.keys() - value.keys() - _LEFT_OUT):
        _refuse(source, _join(path, missing[0]), "this field", "nothing")
    if empty := sorted(name for name in _LEFT_OUT & value.keys() if value[name] is None):
        _refuse(source, _join(path, empty[0]), "a number, or no such field", None)
    if unknown := sorted(value.keys() - hints.keys()):
        _refuse(source, _join(path, unknown[0]), f"no such field in schema {SCHEMA}", value[unknown[0]])
    present = [name for name in hints if name in value]
    return kind(**{name: _decode(hints[name], value[name], _join(path, name), source) for name in present})


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _refuse(source: str, path: str, expected: str, found: object) -> NoReturn:
    shown = found if isinstance(found, str) else repr(found)
    raise BundleError(
        _one_line(f"{source}: {path or 'the top level'} is not valid"),
        _one_line(f"expected {expected}, found {shown}"),
        "build the bundle again; never edit the manifest by hand",
    )


def _one_line(text: object, limit: int = 200) -> str:
    """A stranger's text made safe to print: one line, bounded, no control characters."""
    line = "".join(c if c.isprintable() else "?" for c in str(text)[: limit + 1])
    return line if len(line) <= limit else line[:limit] + "…"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key {name!r} appears twice")
        result[name] = value
    return result


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
