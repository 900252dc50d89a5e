"""Broken and hostile bundles: a typed error in bounded time, nothing executed, nothing read elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgecsi
from edgecsi.bundle import Bundle, parse_manifest, read_bundle
from edgecsi.bundle.manifest import MAX_BYTES, canonical, to_json
from edgecsi.errors import BundleError
from tests import _tiny


def _refused(folder, words=""):
    with pytest.raises(BundleError, match=words) as caught:
        read_bundle(folder)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    return caught.value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"null", "an object"),
        (b"[]", "an object"),
        (b"{}", "schema"),
        (b'{"schema":1,"schema":1}', "twice"),
        (b'{"schema":NaN}', "NaN"),
        (b'{"schema":-Infinity}', "Infinity"),
        (b'{"schema":1e999}', "not valid JSON"),
        (b'{"schema":"\\ud800"}', "not valid JSON"),
        (b'{"schema":true}', "schema"),
        (b'{"schema":99}', "update edgecsi"),
        (b'{"schema": 1}', "canonical"),
        (b'{"schema":1}', "this field"),
        (b'{"schema":' + b"9" * 100_000 + b"}", "not valid JSON"),
        (b"[" * 1_000_000, "deep"),
        (b'{"a":' * 1_000_000, "deep"),
        (b'"' + b"a" * (100 << 20) + b'"', "too large"),
        (b'{"\x1b[31m":1,"\x1b[31m":1}', "not valid JSON"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_a_broken_manifest(data: Any, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        parse_manifest(data, "manifest.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e["inputs"][0].update(shape=[8, 4, 5]),
        lambda e: e["outputs"][0].update(shape=[4, 6]),
        lambda e: e["outputs"][0].update(dtype="int32"),
        lambda e: e["inputs"][0].update(shape=[]),
        lambda e: e["outputs"].append(e["outputs"][0] | {"name": "more"}),
        lambda e: e["inputs"].extend(e["inputs"][0] | {"name": f"more{n}"} for n in range(8)),
        lambda e: e["inputs"][0].update(shape=[2**16, 2**16]),
    ],
)
def test_a_batch_entry_takes_what_its_entry_takes(bundle: Bundle, change: Callable[[Any], None]) -> None:
    """run_many gives it a part of the caller's arrays, by the shapes of both."""

    def sealed(change: Callable[[Any], None]) -> bytes:
        tree = to_json(bundle.manifest)
        single = tree["entries"][
            next(n for n, e in tree["entries"].items() if len(e["inputs"]) == len(e["outputs"]) == 1)
        ]
        for tensor in (single["inputs"][0], single["outputs"][0]):
            tensor["shape"] = [1, *tensor["shape"][1:]]
        many = json.loads(json.dumps(single))
        for tensor in (many["inputs"][0], many["outputs"][0]):
            tensor["shape"] = [8, *tensor["shape"][1:]]
        change(many)
        tree["entries"] = {"full": single, "full_b8": many}
        tree["check"]["entries"] = {}
        tree["digest"] = hashlib.sha256(
            canonical({k: v for k, v in tree.items() if k != "digest"})
        ).hexdigest()
        return canonical(tree)

    assert set(parse_manifest(sealed(lambda e: None), "m").entries) == {"full", "full_b8"}
    with pytest.raises(BundleError, match="full_b8"):
        parse_manifest(sealed(change), "m")


def test_a_hundred_megabytes_are_not_read(bundle: Bundle) -> None:
    with (bundle.path / "manifest.json").open("r+b") as stream:
        stream.truncate(100 << 20)
    _refused(bundle.path, f"more than {MAX_BYTES >> 20} MB")


def test_every_changed_byte_of_the_manifest_is_detected(bundle: Bundle) -> None:
    data = (bundle.path / "manifest.json").read_bytes()
    for i in range(len(data)):
        for flip in (0x01, 0x20, 0x80):
            broken = bytearray(data)
            broken[i] ^= flip
            with pytest.raises(BundleError):
                parse_manifest(bytes(broken), "m")


def test_every_cut_of_the_manifest_is_detected(bundle: Bundle) -> None:
    data = (bundle.path / "manifest.json").read_bytes()
    for i in range(0, len(data), 7):
        with pytest.raises(BundleError):
            parse_manifest(data[:i], "m")


@pytest.mark.parametrize("name", ["libtiny-net.so", "tiny-net.h", "golden.npz"])
def test_a_changed_byte_of_a_file_is_detected(bundle: Bundle, name: str) -> None:
    data = (bundle.path / name).read_bytes()
    for i in {0, len(data) // 2, len(data) - 1}:
        (bundle.path / name).write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        assert name in _refused(bundle.path, "was changed").what
    (bundle.path / name).write_bytes(data + b"\0")
    _refused(bundle.path, "was changed")
    (bundle.path / name).unlink()
    _refused(bundle.path, "No such file")


def test_no_bundle_at_all(tmp_path: Path) -> None:
    _refused(tmp_path, "no bundle")
    _refused(tmp_path / "missing", "no bundle")
    (tmp_path / "file").write_text("")
    _refused(tmp_path / "file", "no bundle")


@pytest.mark.parametrize("name", ["manifest.json", "libtiny-net.so"])
def test_symbolic_links_and_pipes_are_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(bundle.path / name, elsewhere)
    (bundle.path / name).symlink_to(elsewhere)
    _refused(bundle.path, "symbolic link")
    (bundle.path / name).unlink()
    os.mkfifo(bundle.path / name)
    _refused(bundle.path, "not a regular file")


def test_a_linked_folder_inside_the_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "main.c").write_bytes(b"")
    (bundle.path / "example").symlink_to(tmp_path / "outside")
    _tiny.reseal(
        bundle.path, lambda tree: tree["files"].update({"example/main.c": {"bytes": 0, "sha256": "0" * 64}})
    )
    _refused(bundle.path, "symbolic link")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "a//b", "./a", ".hidden", "a\\b", "a\n"]
)
def test_names_that_lead_outside_are_refused(bundle: Bundle, name: str) -> None:
    _tiny.reseal(bundle.path, lambda tree: tree["files"].update({name: {"bytes": 0, "sha256": "0" * 64}}))
    _refused(bundle.path, "stays inside")


def test_a_library_for_another_processor(bundle: Bundle, libraries: Callable[..., Path]) -> None:
    other = "aarch64" if _tiny.HOST == "x86_64" else "x86_64"
    shutil.copy(libraries(other), bundle.library)
    _tiny.reseal(bundle.path, lambda tree: None)
    _refused(bundle.path, "another processor")


def test_a_truncated_library(bundle: Bundle) -> None:
    data = bundle.library.read_bytes()
    for size in (0, 3, 16, 63, 64, 200, len(data) // 2):
        bundle.library.write_bytes(data[:size])
        _tiny.reseal(bundle.path, lambda tree: None)
        _refused(bundle.path, r"libtiny-net\.so")


def test_a_library_that_needs_more_than_libc_and_libm(bundle: Bundle, tmp_path: Path) -> None:
    about = _tiny.manifest()
    evil = _tiny.compile_library(tmp_path / "libevil.so", about, "-Wl,-soname,libevil.so")
    _tiny.compile_library(bundle.library, about, f"-L{tmp_path}", "-Wl,--no-as-needed", "-levil")
    bundle.library.with_suffix(".c").unlink()
    assert evil.exists()
    _tiny.reseal(bundle.path, lambda tree: None)
    _refused(bundle.path, r"needs libevil\.so")


def test_a_library_with_a_search_path_of_its_own(bundle: Bundle) -> None:
    _tiny.compile_library(bundle.library, _tiny.manifest(), "-Wl,-rpath,/tmp/evil")
    _tiny.reseal(bundle.path, lambda tree: None)
    _refused(bundle.path, "search path")


def test_a_library_without_a_promised_entry(bundle: Bundle) -> None:
    def promise(tree):
        tree["entries"]["more"] = tree["entries"]["full"]

    _tiny.reseal(bundle.path, promise)
    _refused(bundle.path, "lacks tiny_net_more, tiny_net_more_ws, tiny_net_more_profile")


def test_damaged_elf_headers_never_give_a_traceback(bundle: Bundle) -> None:
    """Whoever makes the digest match can put any bytes into the library; checking must survive them all."""
    whole, numbers = bundle.library.read_bytes(), random.Random(0)
    segments = struct.unpack_from("<H", whole, 56)[0]
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(numbers.randint(1, 4)):
            # The ELF header, the program headers, and the dynamic section and symbols behind them.
            at = numbers.randrange(4, 64 + 56 * segments + 1200)
            data[at] = numbers.choice([0, 1, 0x7F, 0x80, 0xFF, numbers.randrange(256)])
        bundle.library.write_bytes(data)
        _tiny.reseal(bundle.path, lambda tree: None)
        try:
            read_bundle(bundle.path)
        except BundleError:
            refused += 1
    assert refused > 20


def test_inspecting_executes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    """A library whose constructor leaves a trace, in a bundle that is otherwise in order."""
    trace = tmp_path / "trace"
    source = _tiny.SOURCE + (
        "#include <stdio.h>\n__attribute__((constructor)) static void evil(void)"
        f'{{ FILE *f = fopen("{trace}", "w"); if (f) fclose(f); }}'
    )
    _tiny.compile_library(bundle.library, _tiny.manifest(), source=source)
    _tiny.reseal(bundle.path, lambda tree: None)
    assert to_json(read_bundle(bundle.path).manifest)["name"] == "tiny-net"
    assert not trace.exists()
    edgecsi.load(bundle.path)
    assert trace.exists()


def test_a_terminal_is_safe_from_names_in_a_manifest(bundle: Bundle) -> None:
    def colour(tree):
        tree["\x1b[31mred\nline"] = 1

    _tiny.reseal(bundle.path, colour)
    assert json.loads((bundle.path / "manifest.json").read_bytes())
    _refused(bundle.path, "no such field")
