"""Writing: all or nothing, whatever happens on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecsi.bundle import Bundle, read_bundle, refuse_to_replace, write_bundle
from edgecsi.bundle import write as writing
from edgecsi.errors import BundleError, EdgecsiError
from tests import _tiny


def _rebuilt(library):
    """A second version of the bundle, to tell from the first."""
    about = dataclasses.replace(
        _tiny.manifest(), model=dataclasses.replace(_tiny.manifest().model, family="second")
    )
    return about, _tiny.files(library, about)


def _family(path):
    return read_bundle(path).manifest.model.family


def test_what_was_written_can_be_read(bundle: Bundle) -> None:
    again = read_bundle(bundle.path)
    assert again.manifest == bundle.manifest
    assert set(again.manifest.files) == {"libtiny-net.so", "tiny-net.h", "golden.npz"}


def test_two_builds_are_byte_identical(libraries: Callable[..., Path], tmp_path: Path) -> None:
    first, second = (_tiny.make_bundle(tmp_path / name, libraries(), _tiny.manifest()) for name in "ab")
    for name in ("manifest.json", *first.manifest.files):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()


def test_an_older_bundle_is_replaced_and_nothing_is_left_beside_it(
    bundle: Bundle, libraries: Callable[..., Path]
) -> None:
    write_bundle(bundle.path, *_rebuilt(libraries()))
    assert _family(bundle.path) == "second"
    assert [path.name for path in bundle.path.parent.iterdir()] == [bundle.path.name]


def test_an_empty_folder_and_missing_parents_are_fine(libraries: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a" / "b" / "with 'odd; name"):
        _tiny.make_bundle(out, libraries(), _tiny.manifest())
        assert _family(out) == "tiny"


@pytest.mark.parametrize("what", ["a file", "foreign files", "foreign file in a bundle", "a link"])
def test_nobody_elses_files_are_replaced(
    bundle: Bundle, libraries: Callable[..., Path], tmp_path: Path, what: str
) -> None:
    out = tmp_path / "out"
    precious = out
    if what == "a file":
        out.write_text("precious")
    elif what == "a link":
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "thesis.tex").write_text("precious")
        precious = tmp_path / "elsewhere" / "thesis.tex"
    else:
        if what == "foreign files":
            out.mkdir()
        else:
            os.rename(bundle.path, out)
        precious = out / "thesis.tex"
        precious.write_text("precious")
    with pytest.raises(BundleError, match="-o"):
        write_bundle(out, *_rebuilt(libraries()))
    assert precious.read_text() == "precious"


def test_a_built_example_does_not_stand_in_the_way(bundle: Bundle, libraries: Callable[..., Path]) -> None:
    (bundle.path / "example" / "build").mkdir(parents=True)
    (bundle.path / "example" / "build" / "main").write_bytes(b"\x7fELF")
    (bundle.path / "example" / "main").write_bytes(b"\x7fELF")
    refuse_to_replace(bundle.path)
    write_bundle(bundle.path, *_rebuilt(libraries()))
    assert _family(bundle.path) == "second"


def test_a_damaged_bundle_can_be_rebuilt(bundle: Bundle, libraries: Callable[..., Path]) -> None:
    bundle.library.write_bytes(b"rubbish")
    write_bundle(bundle.path, *_rebuilt(libraries()))
    assert _family(bundle.path) == "second"


def _steps():
    """Every call by which writing touches the disk."""
    return [(os, "fsync"), (writing, "_write"), (writing, "_sync"), (writing, "_rename"), (writing, "seal")]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken")]
)
@pytest.mark.parametrize(("module", "name"), _steps())
def test_an_interruption_at_any_step_leaves_the_previous_bundle_whole(
    bundle: Bundle,
    libraries: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    error: str,
) -> None:
    """The n-th call of each step fails, for every n there is."""
    original = getattr(module, name)
    for fatal in range(1, 50):
        calls = 0

        def fail(*args, original=original, fatal=fatal):
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise error
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with contextlib.suppress(KeyboardInterrupt, EdgecsiError):
                write_bundle(bundle.path, *_rebuilt(libraries()))
            # After the swap (an fsync may fail then) it is the new bundle, and whole as well.
            assert _family(bundle.path) in ("tiny", "second")
            assert [path.name for path in bundle.path.parent.iterdir()] == [bundle.path.name]
        if calls < fatal:
            assert fatal > 1, f"{name} is never called"
            return
    pytest.fail(f"{name} was called without end")


def test_a_full_disk_is_called_that(
    libraries: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "_write", full)
    with pytest.raises(EdgecsiError, match="disk is full"):
        _tiny.make_bundle(tmp_path / "out", libraries(), _tiny.manifest())
    assert list(tmp_path.iterdir()) == []


def test_a_name_no_file_system_takes_is_an_error(libraries: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(EdgecsiError, match="too long"):
        _tiny.make_bundle(tmp_path / ("n" * 300), libraries(), _tiny.manifest())
    _tiny.make_bundle(tmp_path / ("n" * 250), libraries(), _tiny.manifest())


def test_a_missing_source_file_is_an_error_before_anything_is_replaced(
    bundle: Bundle, tmp_path: Path
) -> None:
    files = _tiny.files(tmp_path / "no such library", _tiny.manifest())
    with pytest.raises(EdgecsiError):
        write_bundle(bundle.path, _tiny.manifest(), files)
    assert _family(bundle.path) == "tiny"


def test_file_systems_without_exchange_work_too(
    bundle: Bundle, libraries: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_):
        raise OSError(errno.EINVAL, "no exchange here")

    monkeypatch.setattr(writing, "_rename", unsupported)
    write_bundle(bundle.path, *_rebuilt(libraries()))
    assert _family(bundle.path) == "second"
    assert [path.name for path in bundle.path.parent.iterdir()] == [bundle.path.name]


def test_without_exchange_a_failed_rename_puts_the_old_bundle_back(
    bundle: Bundle, libraries: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_):
        raise OSError(errno.EINVAL, "no exchange here")

    rename = os.rename

    def second_fails(source, target):
        if Path(source).suffix == ".tmp":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(writing, "_rename", unsupported)
    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(bundle.path, *_rebuilt(libraries()))
    assert _family(bundle.path) == "tiny"


def _write_many(out, library, family):
    about = dataclasses.replace(
        _tiny.manifest(), model=dataclasses.replace(_tiny.manifest().model, family=family)
    )
    for _ in range(20):
        write_bundle(out, about, _tiny.files(library, about))


def test_two_builds_into_one_folder_end_with_one_whole_bundle(
    libraries: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    context = multiprocessing.get_context("spawn")
    builds = [context.Process(target=_write_many, args=(out, libraries(), name)) for name in ("one", "two")]
    for build in builds:
        build.start()
    while any(build.is_alive() for build in builds):
        if (out / "manifest.json").exists():
            assert _family(out) in ("one", "two")
    for build in builds:
        build.join()
        assert build.exitcode == 0
    assert _family(out) in ("one", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_threads_may_write_at_once(libraries: Callable[..., Path], tmp_path: Path) -> None:
    out, library = tmp_path / "out", libraries()
    threads = [threading.Thread(target=_write_many, args=(out, library, str(i))) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _family(out) in ("0", "1")
