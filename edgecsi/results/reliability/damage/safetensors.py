"""safetensors, and the metadata that we write into them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import strategies as st

from edgecsi.results.reliability.damage.bytes import Draw, Way
from edgecsi.results.reliability.damage.trees import NUMBERS, TEXTS, TREES, VALUES


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
                "shape": st.lists(NUMBERS, max_size=4),
                "dtype": st.sampled_from(
                    ["F64", "F16", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "C64", "X", ""]
                ),
                "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
            }[what]
        )
        return header

    return _with_header(good, change)


def _tensor_renamed(good: bytes, draw: Draw) -> bytes:
    def change(header: dict[str, Any]) -> dict[str, Any]:
        name = draw(st.sampled_from([key for key in header if key != "__metadata__"]))
        new = draw(
            TEXTS
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
                VALUES
                | st.dictionaries(st.sampled_from(["cr", "codeword", "inputs", "self"]), VALUES, max_size=3)
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
