"""JSON or TOML to a dataclass: strict, bounded, and with errors that name the place.

    @dataclass(frozen=True)
    class Device:
        url: Annotated[str, matching("[a-z]+://.{1,200}", "an address such as ssh://pi@raspberrypi")]
        cores: Annotated[int, between(1, 4096)] = 1
        tags: tuple[Name, ...] = ()

    device = decode_toml(read_bytes(path, error=DataError), Device, what=str(path), error=DataError)

What is refused: more than ``max_bytes``, nesting deeper than 64, a key that appears twice, NaN and infinity (also
``1e999``), text that is no Unicode, a field that the dataclass does not have, a missing field without a default, a
value of another type (``true`` is no number, ``1.0`` is no whole number, ``"1"`` is neither), and what the annotations
forbid. Whole numbers do for floats. Every refusal is an error of the given class in three lines, safe to print:
``<what>: cores is not valid``, ``expected a whole number from 1 to 4096, found 0``, and `fix`.

Fields may be ``bool``, ``int``, ``float``, ``str``, ``Literal``, ``X | None``, ``tuple[X, ...]``, ``list[X]``,
``Mapping[str, X]``, other dataclasses, and ``Annotated`` with :func:`between` or :func:`matching`. msgspec does the
converting; the rest of this file is what it does not refuse, and words.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from edgecsi.errors import EdgecsiError

T = TypeVar("T")
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
_DASHES = str.maketrans("-_", "_-")
# What msgspec calls things.
_WORDS = {
    "object": "an object", "array": "a list", "int": "a whole number", "float": "a number", "str": "text",
    "bool": "true or false", "null": "nothing",
}  # fmt: skip


def between(low: float, high: float) -> msgspec.Meta:
    """The closed range that a number must lie in."""
    return msgspec.Meta(ge=low, le=high, description=f"from {_number(low)} to {_number(high)}")


def matching(pattern: str, words: str) -> msgspec.Meta:
    """The pattern that the whole of a text must match, and what to call such a text in an error."""
    return msgspec.Meta(pattern=rf"\A(?:{pattern})\Z", description=words)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


Count = Annotated[int, between(0, 2**53)]
"""A whole number from 0 to 2^53, so that every JSON reader agrees about it."""
NonNegative = Annotated[float, between(0, 1e308)]
Fraction = Annotated[float, between(0, 1)]
Name = Annotated[
    str,
    matching("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name of letters, digits, '.', '_' and '-', at most 64"),
]
Line = Annotated[str, matching(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,200}", "one line of text, at most 200")]
Sha256 = Annotated[str, matching("[0-9a-f]{64}", "64 hexadecimal digits")]


def read_bytes(
    path: Path, *, error: type[EdgecsiError], fix: str = "check the path", max_bytes: int = MAX_BYTES
) -> bytes:
    """The contents of a file that should be small.

    Raises:
        error: it is missing, cannot be read, or has more than `max_bytes`.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as problem:
        raise error(f"{path} cannot be read", problem.strerror or str(problem), fix) from None
    if len(data) > max_bytes:
        raise error(f"{path} is too large", f"it has more than {_size(max_bytes)}", fix)
    return data


def decode_json(
    data: bytes,
    kind: type[T],
    *,
    what: str,
    error: type[EdgecsiError],
    max_bytes: int = MAX_BYTES,
) -> T:
    """JSON as a dataclass.

    Args:
        data: UTF-8, from anywhere.
        kind: the dataclass (or any of the types above).
        what: what it is or where it is from, for the error.
        error: the class to raise.
        max_bytes: the most it may have.

    Raises:
        error: for everything named at the top of this file.
    """
    tree = parse_json(data, what=what, error=error, max_bytes=max_bytes)
    return convert(tree, kind, what=what, error=error)


def decode_toml(
    data: bytes,
    kind: type[T],
    *,
    what: str,
    error: type[EdgecsiError],
    fix: str = "correct it",
    max_bytes: int = MAX_BYTES,
) -> T:
    """TOML as a dataclass, as :func:`decode_json`; `fix` is the error's last line."""
    tree = parse_toml(data, what=what, error=error, fix=fix, max_bytes=max_bytes)
    return convert(tree, kind, what=what, error=error, fix=fix)


def parse_json(
    data: bytes, *, what: str, error: type[EdgecsiError], fix: str = "correct it", max_bytes: int = MAX_BYTES
) -> Any:
    """JSON as lists and dictionaries, with every bound but those of a type; for :func:`convert`."""

    def parse(text: str) -> Any:
        return json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_float=_finite,
            parse_constant=_finite,
            parse_int=_short,
        )

    return _parse(parse, "JSON", data, what, error, fix, max_bytes)


def parse_toml(
    data: bytes, *, what: str, error: type[EdgecsiError], fix: str = "correct it", max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """TOML as lists and dictionaries, with every bound but those of a type; for :func:`convert`."""

    def parse(text: str) -> Any:
        return tomllib.loads(text, parse_float=_finite)

    tree: dict[str, Any] = _parse(parse, "TOML", data, what, error, fix, max_bytes)
    return tree


def convert(
    tree: Any,
    kind: type[T],
    *,
    what: str,
    error: type[EdgecsiError],
    fix: str = "correct it",
    may_lack: Collection[str] | None = None,
    dashes: bool = False,
) -> T:
    """What :func:`parse_json` or :func:`parse_toml` gave, as a dataclass.

    Args:
        may_lack: names of the fields that may be left out; without it, those that have a default.
        dashes: keys are written with ``-`` for the ``_`` of the fields. The other arguments are those of
            :func:`decode_json`.

    Raises:
        error: for everything named at the top of this file that is about types.
    """
    if dashes:
        tree = {key.translate(_DASHES): item for key, item in tree.items()}
    try:
        value = msgspec.convert(tree, kind, strict=True)
    except msgspec.ValidationError as problem:
        path, message = _taken_apart(str(problem))
        where, expected = _explain(kind, tree, path, message)
    else:
        found = _other_fields(tree, to_tree(value), may_lack, ())
        if found is None:
            return value
        where, expected = found
    place = _dotted(where)
    if dashes:
        place, expected = place.translate(_DASHES), re.sub(r"(?<=mean )\w+", _swapped, expected)
    raise error(one_line(f"{what}: {place} is not valid"), one_line(f"expected {expected}"), fix)


def _swapped(name: re.Match[str]) -> str:
    return name[0].translate(_DASHES)


def one_line(text: object) -> str:
    """A stranger's text made safe to print: one line, bounded, no control characters."""
    line = "".join(c if c.isprintable() else "?" for c in str(text)[:201])
    return line if len(line) <= 200 else line[:200] + "…"


def _parse(
    parse: Any, form: str, data: bytes, what: str, error: type[EdgecsiError], fix: str, max_bytes: int
) -> Any:
    if len(data) > max_bytes:
        raise error(f"{what} is too large", f"it has more than {_size(max_bytes)}", fix)
    try:
        tree = parse(data.decode("utf-8"))
        _check_tree(tree)
        return tree
    except RecursionError:
        raise error(f"{what} is not valid {form}", "it is nested too deeply", fix) from None
    except ValueError as problem:  # json's, tomllib's and Unicode's errors are such
        raise error(f"{what} is not valid {form}", one_line(problem), fix) from None


def _size(count: int) -> str:
    return (
        f"{count >> 20} MB"
        if count >= 1 << 20
        else f"{count >> 10} KiB"
        if count >= 1 << 10
        else f"{count} bytes"
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} appears twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def _short(text: str) -> int:
    if len(text) > 400:
        raise ValueError("a whole number has more than 400 digits")
    return int(text)


def _check_tree(tree: Any) -> None:
    """Depth, and text that UTF-8 cannot express (lone surrogates)."""
    level, depth = [tree], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        below: list[Any] = []
        for item in level:
            inner = (
                [*item, *item.values()] if isinstance(item, dict) else item if isinstance(item, list) else ()
            )
            below += [x for x in inner if isinstance(x, dict | list)]
            "".join(x for x in inner if isinstance(x, str)).encode("utf-8")
        level = below


def _other_fields(
    tree: Any, built: Any, may_lack: Collection[str] | None, path: tuple[str, ...]
) -> tuple[tuple[str, ...], str] | None:
    """The first key of `tree` that the value `built` from it does not have, or the other way round: its path, and what
    was expected there."""
    if isinstance(tree, dict) and isinstance(built, dict):
        if (unknown := next((key for key in tree if key not in built), None)) is not None:
            close = difflib.get_close_matches(unknown, list(built), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            return (*path, unknown), f"no such field{hint}"
        if may_lack is not None and (missing := sorted(built.keys() - tree.keys() - set(may_lack))):
            return (*path, missing[0]), "this field, found nothing"
        pairs = [(key, item, built[key]) for key, item in tree.items()]
    elif isinstance(tree, list) and isinstance(built, list | tuple):
        pairs = [(f"[{i}]", item, built[i]) for i, item in enumerate(tree) if isinstance(item, dict | list)]
    else:
        return None
    for key, item, other in pairs:
        if found := _other_fields(item, other, may_lack, (*path, key)):
            return found
    return None


def _taken_apart(message: str) -> tuple[tuple[str, ...], str]:
    """The path that msgspec's message names, ``$.layers[3].bits`` as ``("layers", "[3]", "bits")``, and the rest of it.
    ``[...]`` is some key of a mapping, or the value behind it."""
    text, _, place = message.rpartition(" - at ")
    if not text:
        return (), message
    path = re.findall(r"`([^`]*)`", place)[-1]
    key = ["[...]"] if place.startswith("`key`") else []
    return (*re.findall(r"\[[^\]]*\]|[^.\[\]$]+", path), *key), text


def _explain(kind: Any, tree: Any, path: tuple[str, ...], message: str) -> tuple[tuple[str, ...], str]:
    """Where msgspec's refusal is, and what was expected there: walks down `path` beside the types, which know better
    words."""
    where: list[str] = []
    kind, words = _plain(kind)
    for part in path:
        inner = typing.get_args(kind)
        if part == "[...]":  # msgspec does not say which key it was
            key = next(k for k in tree if not (_converts(k, inner[0]) and _converts(tree[k], inner[1])))
            where.append(key)
            kind, tree = (inner[1], tree[key]) if _converts(key, inner[0]) else (inner[0], key)
        elif part.startswith("["):
            where.append(part)
            kind, tree = inner[0], tree[int(part[1:-1])]
        else:
            where.append(part)
            kind, tree = typing.get_type_hints(kind, include_extras=True)[part], tree[part]
        kind, words = _plain(kind)
    if missing := re.search(r"missing required field `([^`]+)`", message):
        return (*where, missing[1]), "this field, found nothing"
    shown = tree if isinstance(tree, str) else repr(tree)
    return tuple(where), f"{_expected(kind, message, words)}, found {shown}"


def _plain(kind: Any) -> tuple[Any, str]:
    """A type without ``Annotated`` and ``| None``, and the words that :func:`between` or :func:`matching` gave it."""
    words = ""
    while True:
        if typing.get_origin(kind) is Annotated:
            notes = [note for note in kind.__metadata__ if isinstance(note, msgspec.Meta)]
            words = next((note.description for note in notes if note.description), words)
            kind = typing.get_args(kind)[0]
            continue
        members = [a for a in typing.get_args(kind) if a is not type(None)]
        if typing.get_origin(kind) not in (types.UnionType, typing.Union) or len(members) != 1:
            return kind, words
        kind = members[0]


def _converts(tree: Any, kind: Any) -> bool:
    try:
        msgspec.convert(tree, kind, strict=True)
    except msgspec.ValidationError:
        return False
    return True


def _expected(kind: Any, message: str, words: str) -> str:
    """What was expected, for people."""
    if typing.get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(kind))
    if words:
        return f"{_WORDS[kind.__name__]} {words}" if kind in (int, float) else words
    names = re.findall(r"`([^`]+)`", message)
    return " or ".join(_WORDS.get(name, name) for name in names[0].split(" | ")) if names else message


def _dotted(path: Iterable[str]) -> str:
    text = "".join(part if part.startswith("[") else f".{part}" for part in path)
    return text.lstrip(".") or "the top level"


def to_tree(value: Any) -> Any:
    """A dataclass as plain JSON values: the way back."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_tree(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_tree(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_tree(item) for item in value]
    return value
