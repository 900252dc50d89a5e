"""Ways to damage a file, by how it is built: from a flipped bit to a header that lies and a pickle that runs a program.

Each takes a good file and a source of choices, and gives a bad one (or, by chance, another good one). The choices are
drawn by hypothesis, which then finds the smallest file that still shows a fault.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Draw(Protocol):
    """Takes one value from what a strategy can make."""

    def __call__(self, strategy: st.SearchStrategy[T]) -> T: ...


Way = Callable[[bytes, Draw], bytes]

MARK = "edgecsi-was-executed"
"""A file of this name in the working folder shows that something from a file was run."""

_NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31 - 1, 2**31, -(2**31), 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 1e308, -1e308, 5e-324]
) | st.integers(-300, 300)  # fmt: skip
_TEXTS = st.sampled_from(
    [
        "",
        "\x00",
        "\x1b[2J",
        "../../../etc/passwd",
        "/dev/zero",
        "a" * 70_000,
        "é\u202e\u2028",
        "%s%n",
        "nan",
        "\n\n",
        "-",
    ]
) | st.text(max_size=20)
_SCALARS = _NUMBERS | _TEXTS | st.booleans() | st.none() | st.floats()
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=8,
)


class _Run:
    """What a hostile pickle holds: unpickling it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile_pickle(draw: Draw) -> bytes:
    """A pickle that leaves a mark if anybody loads it without care."""
    import os
    import subprocess

    command = f"touch {MARK}"
    body = draw(
        st.sampled_from(
            [
                _Run(os.system, command),
                _Run(eval, f"open({MARK!r}, 'w')"),
                _Run(subprocess.call, ["touch", MARK]),
                {"state_dict": {"0.weight": _Run(os.system, command)}},
                [_Run(getattr, _Run(__import__, "os"), "system")],
            ]
        )
    )
    return pickle.dumps(body, protocol=draw(st.integers(0, 5)))


# ---- any file ---------------------------------------------------------------------------------------------------


def truncated(good: bytes, draw: Draw) -> bytes:
    return good[: draw(st.integers(0, max(len(good) - 1, 0)))]


def flipped_bits(good: bytes, draw: Draw) -> bytes:
    bad = bytearray(good)
    for _ in range(draw(st.integers(1, 8))):
        bad[draw(st.integers(0, len(bad) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(bad)


def flipped_near_the_start(good: bytes, draw: Draw) -> bytes:
    """Headers lie at the start."""
    head = flipped_bits(good[:512], draw)
    return head + good[512:]


def extreme_words(good: bytes, draw: Draw) -> bytes:
    """Lengths, counts and offsets become the ends of their range."""
    bad, size = bytearray(good), draw(st.sampled_from([1, 2, 4, 8]))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(min(len(bad), 4096) - size, 0)))
        bad[at : at + size] = draw(st.sampled_from([b"\xff", b"\x00", b"\x7f", b"\x80"])) * size
    return bytes(bad)


def spliced(good: bytes, draw: Draw) -> bytes:
    """A part taken out, put in twice, or put elsewhere."""
    start, end = sorted((draw(st.integers(0, len(good))), draw(st.integers(0, len(good)))))
    part = good[start:end] * draw(st.integers(0, 2))
    rest = good[:start] + good[end:]
    at = draw(st.integers(0, len(rest)))
    return rest[:at] + part + rest[at:]


def zeroed(good: bytes, draw: Draw) -> bytes:
    """What a crash of the machine leaves: blocks of zeros."""
    at = draw(st.integers(0, len(good)))
    size = draw(st.sampled_from([16, 512, 4096, 1 << 20]))
    return good[:at] + bytes(min(size, len(good) - at)) + good[at + size :]


def followed_by_more(good: bytes, draw: Draw) -> bytes:
    return good + draw(st.sampled_from([b"\0", b"\n", b"\0" * 4096, b"PK\x05\x06" + bytes(18), good[:4096]]))


def noise(good: bytes, draw: Draw) -> bytes:
    return good[: draw(st.sampled_from([0, 2, 4, 8, 128]))] + draw(st.binary(max_size=600))


def another_kind_of_file(good: bytes, draw: Draw) -> bytes:
    kinds = [
        b"", b"\n", b"<!DOCTYPE html><html><body>404</body></html>", b"PK\x03\x04", b"PK\x05\x06" + bytes(18),
        b"\x89HDF\r\n\x1a\n" + bytes(64), b"\x93NUMPY\x01\x00\x10\x00{}", b"\x7fELF" + bytes(60), b"{}", b"[]", b"null",
        b"\xff\xfe\x00\x00", b"MATLAB 5.0 MAT-file".ljust(128), bytes(8) + b"{}", b"\x80\x04N.", b"#!/bin/sh\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ]  # fmt: skip
    return bytes(draw(st.sampled_from(kinds)))


BYTES: dict[str, Way] = {
    "truncated": truncated, "bits flipped": flipped_bits, "bits of the header flipped": flipped_near_the_start,
    "extreme lengths": extreme_words, "parts moved": spliced, "blocks of zeros": zeroed,
    "something behind it": followed_by_more, "noise": noise, "another kind of file": another_kind_of_file,
}  # fmt: skip


# ---- trees: JSON and what is built like it ----------------------------------------------------------------------


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in items for place in _places(value, (*path, key)))]


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _change(tree: Any, draw: Draw, change: Callable[[Any, Any], None]) -> Any:
    """Apply `change(container, key)` somewhere in the tree."""
    if places := [place for place in _places(tree) if place]:
        place = draw(st.sampled_from(places))
        change(_at(tree, place[:-1]), place[-1])
    return tree


def field_missing(tree: Any, draw: Draw) -> Any:
    return _change(tree, draw, lambda container, key: container.pop(key))


def field_replaced(tree: Any, draw: Draw) -> Any:
    value = draw(_VALUES)
    return _change(tree, draw, lambda container, key: container.__setitem__(key, value))


def field_unknown(tree: Any, draw: Draw) -> Any:
    name, value = draw(_TEXTS), draw(_VALUES)
    maps = [place for place in _places(tree) if isinstance(_at(tree, place), dict)]
    if maps:
        _at(tree, draw(st.sampled_from(maps)))[name] = value
    return tree


def number_extreme(tree: Any, draw: Draw) -> Any:
    numbers = [p for p in _places(tree) if p and type(_at(tree, p)) in (int, float)]
    if numbers:
        place = draw(st.sampled_from(numbers))
        _at(tree, place[:-1])[place[-1]] = draw(_NUMBERS | st.floats())
    return tree


def text_hostile(tree: Any, draw: Draw) -> Any:
    texts = [p for p in _places(tree) if p and isinstance(_at(tree, p), str)]
    if texts:
        place = draw(st.sampled_from(texts))
        _at(tree, place[:-1])[place[-1]] = draw(_TEXTS)
    return tree


def list_huge(tree: Any, draw: Draw) -> Any:
    value = [draw(_SCALARS)] * draw(st.sampled_from([100, 20_000]))
    return _change(tree, draw, lambda container, key: container.__setitem__(key, value))


TREES: dict[str, Callable[[Any, Draw], Any]] = {
    "a field missing": field_missing, "a field of another type": field_replaced, "an unknown field": field_unknown,
    "a number beyond its range": number_extreme, "a hostile text": text_hostile, "a list far too long": list_huge,
}  # fmt: skip


def _json(way: Callable[[Any, Draw], Any], good: bytes, draw: Draw) -> bytes:
    """The damaged tree in the canonical spelling that our own files have, its own digest made right again."""
    from edgecsi.bundle.manifest import canonical

    tree = way(json.loads(good), draw)
    if isinstance(tree, dict) and "digest" in tree:
        import hashlib

        with suppress(ValueError):
            tree["digest"] = hashlib.sha256(
                canonical({k: v for k, v in tree.items() if k != "digest"})
            ).hexdigest()
    try:
        return canonical(tree)
    except ValueError:  # NaN and lone surrogates, which our own writer refuses
        return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _deep(good: bytes, draw: Draw) -> bytes:
    opening, closing = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}")]))
    depth = draw(st.sampled_from([50, 2_000, 200_000]))
    return bytes(opening * depth + b"1" + closing * depth)


def _twice(good: bytes, draw: Draw) -> bytes:
    """One key twice in one object."""
    return good.replace(b"{", b'{"schema":%d,"schema":1,' % draw(st.integers(-2, 99)), 1)


JSON: dict[str, Way] = {
    **{name: partial(_json, way) for name, way in TREES.items()},
    "nested too deeply": _deep, "a key twice": _twice,
}  # fmt: skip


def _jsonl(way: Callable[[Any, Draw], Any], good: bytes, draw: Draw) -> bytes:
    from edgecsi.kernels.records import checksum

    lines = [json.loads(line) for line in good.splitlines()]
    number = draw(st.integers(0, len(lines) - 1))
    lines[number] = way(lines[number], draw)
    if isinstance(lines[number], dict) and draw(st.booleans()):
        lines[number].pop("sum", None)
        with suppress(ValueError):
            lines[number]["sum"] = checksum(lines[number])
    return "".join(json.dumps(line) + "\n" for line in lines).encode("utf-8", "surrogatepass")


JSONL: dict[str, Way] = {name: partial(_jsonl, way) for name, way in TREES.items()}


# ---- TOML -------------------------------------------------------------------------------------------------------


def _toml_lines(good: bytes, draw: Draw) -> tuple[list[str], int]:
    lines = good.decode().splitlines()
    return lines, draw(st.sampled_from([i for i, line in enumerate(lines) if "=" in line]))


def _toml_missing(good: bytes, draw: Draw) -> bytes:
    lines, at = _toml_lines(good, draw)
    del lines[at]
    return "\n".join(lines).encode()


def _toml_value(good: bytes, draw: Draw) -> bytes:
    lines, at = _toml_lines(good, draw)
    value = draw(
        st.sampled_from(
            ["-1", "0", "1.5", "nan", "inf", "9223372036854775808", "1e400", "true", "[]", "{}", '"x"', '""', "[[1]]",
             '"../../etc/passwd"', '"\\u001b[2J"', '["\\n"]', "1979-05-27", '"' + "a" * 5000 + '"', '["a", 1]', '"rpi9"']
        )
        | st.integers(-(2**63), 2**63 - 1).map(str)
        | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12).map(json.dumps)
    )  # fmt: skip
    lines[at] = lines[at].split("=")[0] + f"= {value}"
    return "\n".join(lines).encode()


def _toml_unknown(good: bytes, draw: Draw) -> bytes:
    lines, at = _toml_lines(good, draw)
    key = draw(
        st.sampled_from(
            ["x", "sparsity", "extends", "alias", "detect", "cpu", "do", "steps", '"a b"', "a.b.c", '""']
        )
    )
    value = draw(st.sampled_from(["1", "[]", "{a = 1}", '"target.toml"']))
    lines.insert(at, f"{key} = {value}")
    return "\n".join(lines).encode()


def _toml_twice(good: bytes, draw: Draw) -> bytes:
    lines, at = _toml_lines(good, draw)
    return "\n".join([*lines[: at + 1], lines[at], *lines[at + 1 :]]).encode()


def _toml_many_tables(good: bytes, draw: Draw) -> bytes:
    table = draw(st.sampled_from(['[[steps]]\ndo = "prune"\n', "[[a]]\n", "[a.b.c]\n", "[steps]\n"]))
    return good + (table * draw(st.sampled_from([1, 2, 300, 5000]))).encode()


def _toml_deep(good: bytes, draw: Draw) -> bytes:
    depth = draw(st.sampled_from([50, 2_000, 20_000]))
    return good + b"x = " + b"[" * depth + b"]" * depth


TOML: dict[str, Way] = {
    "a key missing": _toml_missing, "a value out of place": _toml_value, "an unknown key": _toml_unknown,
    "a key twice": _toml_twice, "far too many tables": _toml_many_tables, "nested too deeply": _toml_deep,
}  # fmt: skip


# ---- safetensors ------------------------------------------------------------------------------------------------


def _with_header(good: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    (size,) = struct.unpack("<Q", good[:8])
    header = change(json.loads(good[8 : 8 + size]))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + good[8 + size :]


def _header(way: Callable[[Any, Draw], Any], good: bytes, draw: Draw) -> bytes:
    return _with_header(good, lambda header: way(header, draw))


def _tensor_lies(good: bytes, draw: Draw) -> bytes:
    """A tensor's shape, type or place is not what it is."""

    def change(header: dict[str, Any]) -> dict[str, Any]:
        name = draw(st.sampled_from([key for key in header if key != "__metadata__"]))
        what = draw(st.sampled_from(["shape", "dtype", "data_offsets"]))
        header[name][what] = draw(
            {
                "shape": st.lists(_NUMBERS, max_size=4),
                "dtype": st.sampled_from(
                    ["F64", "F16", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "C64", "X", ""]
                ),
                "data_offsets": st.lists(_NUMBERS, min_size=2, max_size=2),
            }[what]
        )
        return header

    return _with_header(good, change)


def _tensor_renamed(good: bytes, draw: Draw) -> bytes:
    def change(header: dict[str, Any]) -> dict[str, Any]:
        name = draw(st.sampled_from([key for key in header if key != "__metadata__"]))
        new = draw(
            _TEXTS
            | st.sampled_from(["__metadata__", "module.weight", "0.weight", "a.b.c.d", "__class__.__init__"])
        )
        return {new if key == name else key: value for key, value in header.items()}

    return _with_header(good, change)


def _metadata(good: bytes, draw: Draw) -> bytes:
    """What we write into the metadata ourselves (the configuration, the recipe, the packed matrices), damaged inside."""

    def change(header: dict[str, Any]) -> dict[str, Any]:
        known = header.get("__metadata__", {})
        key = draw(st.sampled_from([*known, "config", "sparse", "compression", "model", "structure"]))
        try:
            tree = json.loads(known.get(key, "{}"))
        except ValueError:
            tree = known.get(key)
        if isinstance(tree, dict | list) and tree and draw(st.booleans()):
            tree = draw(st.sampled_from(list(TREES.values())))(tree, draw)
        else:
            tree = draw(
                _VALUES
                | st.dictionaries(st.sampled_from(["cr", "codeword", "inputs", "self"]), _VALUES, max_size=3)
            )
        known[key] = json.dumps(tree) if draw(st.booleans()) else str(tree)
        return header | {"__metadata__": known}

    return _with_header(good, change)


def _header_length(good: bytes, draw: Draw) -> bytes:
    return (
        struct.pack("<Q", draw(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**32, 2**63]))) + good[8:]
    )


def _values_odd(good: bytes, draw: Draw) -> bytes:
    """NaN, infinities and subnormals among the weights."""
    (size,) = struct.unpack("<Q", good[:8])
    bad, start = bytearray(good), 8 + size
    value = draw(
        st.sampled_from(
            [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\x01\x00\x00\x00", bytes(4)]
        )
    )
    count = draw(st.sampled_from([1, 16, (len(good) - start) // 4]))
    at = start + 4 * draw(st.integers(0, max((len(good) - start) // 4 - count, 0)))
    bad[at : at + 4 * count] = value * count
    return bytes(bad[: len(good)])


SAFETENSORS: dict[str, Way] = {
    **{f"{name}, in the header": partial(_header, way) for name, way in TREES.items()},
    "a tensor that lies": _tensor_lies, "a tensor renamed": _tensor_renamed, "metadata that lies": _metadata,
    "a header's length that lies": _header_length, "odd values": _values_odd,
}  # fmt: skip


# ---- zip archives: .npz and .pth --------------------------------------------------------------------------------


def _members(good: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zip(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    import warnings

    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        with zipfile.ZipFile(made, "w", compression) as archive:
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name), content, compression)
    return made.getvalue()


def _member_damaged(good: bytes, draw: Draw) -> bytes:
    """A member's own bytes, under a checksum that is right again."""
    members = _members(good)
    name = draw(st.sampled_from([n for n, content in members.items() if content]))
    members[name] = draw(st.sampled_from(list(BYTES.values())))(members[name], draw)
    return _zip(list(members.items()))


def _member_renamed(good: bytes, draw: Draw) -> bytes:
    members = list(_members(good).items())
    at = draw(st.integers(0, len(members) - 1))
    name = draw(
        st.sampled_from(
            [
                "",
                "/etc/x.npy",
                "../x.npy",
                "a/../../x",
                "x" * 300,
                "data.pkl",
                "archive/data.pkl",
                "H",
                "HT.npy",
            ]
        )
    )
    members[at] = name, members[at][1]
    return _zip(members)


def _members_twice_or_gone(good: bytes, draw: Draw) -> bytes:
    members = list(_members(good).items())
    return _zip(draw(st.lists(st.sampled_from(members), max_size=6)))


def _bomb(good: bytes, draw: Draw) -> bytes:
    """A member that unpacks to far more than the file holds."""
    members = _members(good)
    name = draw(st.sampled_from(list(members)))
    members[name] = members[name] + bytes(draw(st.sampled_from([1 << 20, 1 << 25])))
    return _zip(list(members.items()), zipfile.ZIP_DEFLATED)


def _pickled(good: bytes, draw: Draw) -> bytes:
    members = _members(good)
    name = draw(st.sampled_from(list(members)))
    members[name] = hostile_pickle(draw)
    return draw(st.sampled_from([_zip(list(members.items())), members[name]]))


def _directory_lies(good: bytes, draw: Draw) -> bytes:
    """Sizes, offsets and flags of the archive's own directory."""
    bad = bytearray(good)
    start = max(good.rfind(b"PK\x01\x02"), 0)
    for _ in range(draw(st.integers(1, 4))):
        bad[draw(st.integers(start, len(bad) - 1))] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    return bytes(bad)


ZIP: dict[str, Way] = {
    "a member damaged": _member_damaged, "a member renamed": _member_renamed,
    "members twice or gone": _members_twice_or_gone,
    "a bomb": _bomb, "a pickle that runs a program": _pickled, "a directory that lies": _directory_lies,
}  # fmt: skip


# ---- .npy -------------------------------------------------------------------------------------------------------


def _npy_header(good: bytes, draw: Draw) -> bytes:
    (size,) = struct.unpack("<H", good[8:10])
    shapes = [
        "()",
        "(0,)",
        "(3, -2, 32, 32)",
        f"({2**62}, 4)",
        f"({2**31}, {2**31}, 2)",
        "(3, 2, 32, 33)",
        "(1e3,)",
        "(True,)",
        "3",
    ]
    types = [
        "<f4",
        ">f4",
        "<f8",
        "<f2",
        "|O",
        "<c8",
        "<U4",
        "|V4",
        "<M8[s]",
        "f99",
        "",
        "|b1",
        "<i8",
        "[('a', '<f4')]",
    ]
    shape, kind = draw(st.sampled_from(shapes)), draw(st.sampled_from(types))
    order = draw(st.sampled_from(["False", "True", "None", "__import__('os')"]))
    text = f"{{'descr': {kind if kind.startswith('[') else repr(kind)}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text = text.ljust(size - 1) + "\n"
    version = draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"]))
    return (
        good[:6]
        + version
        + struct.pack("<H" if version[0] == 1 else "<I", len(text))
        + text.encode()
        + good[10 + size :]
    )


def _npy_pickle(good: bytes, draw: Draw) -> bytes:
    text = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + hostile_pickle(draw)


NPY: dict[str, Way] = {"a header that lies": _npy_header, "a pickle that runs a program": _npy_pickle}


def ways(form: str) -> dict[str, Way]:
    """Every way to damage a file that is built so, by its name."""
    own = {
        "json": JSON,
        "jsonl": JSONL,
        "toml": TOML,
        "safetensors": SAFETENSORS,
        "zip": ZIP,
        "npy": NPY,
        "bytes": {},
    }
    return BYTES | own[form]
