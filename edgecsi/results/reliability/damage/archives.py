"""numpy's arrays, zip archives of them and of PyTorch's, and the pickles inside."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from typing import Any

from hypothesis import strategies as st

from edgecsi.results.reliability.damage.bytes import BYTES, Draw, Way

MARK = "edgecsi-was-executed"
"""A file of this name in the working folder shows that something from a file was run."""


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
