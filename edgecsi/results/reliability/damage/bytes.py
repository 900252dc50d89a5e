"""Any file, whatever is in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Draw(Protocol):
    """Takes one value from what a strategy can make."""

    def __call__(self, strategy: st.SearchStrategy[T]) -> T: ...


Way = Callable[[bytes, Draw], bytes]


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
