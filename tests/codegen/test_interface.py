"""The header and the examples of a bundle build and run as they are."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecsi import verdict
from edgecsi.bundle import Bundle, EntryCheck, Tensor, write_bundle
from edgecsi.codegen.interface import render_example, render_header
from tests import _tiny
from tests._tiny import libraries as libraries


@pytest.fixture
def complete(libraries: Callable[..., Path], tmp_path: Path) -> Bundle:
    """A bundle with everything in it."""
    about = _tiny.manifest()
    files = _tiny.files(libraries(), about) | render_example(about) | {about.header: render_header(about)}
    return write_bundle(tmp_path / "tiny-net", about, files)


def _run(*command, cwd=None, env=None):
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def compiled(complete: Bundle, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-O2"]
    program = tmp_path / "main"
    done = _run(
        "cc", *flags, "main.c", "-L..", "-ltiny-net", "-lm", "-o", program, cwd=complete.path / "example"
    )
    assert done.returncode == 0, done.stderr

    def run(golden="golden.npz"):
        return _run(program, complete.path / golden, env={"LD_LIBRARY_PATH": str(complete.path)})

    return run


@pytest.mark.needs("cc")
def test_the_c_example_reproduces_the_golden_values(
    compiled: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = compiled()
    assert done.returncode == 0, done.stderr
    for what in ("full.reconstruction", "encoder.codeword", "pair.product"):
        assert f"{what:32} ok" in done.stdout


@pytest.mark.needs("cc")
@pytest.mark.parametrize("value", [1.0, np.nan])
def test_the_c_example_notices_a_wrong_answer(
    complete: Bundle, compiled: Callable[..., subprocess.CompletedProcess[str]], value: Any
) -> None:
    with np.load(complete.path / "golden.npz") as golden:
        values = dict(golden)
    values["full.reconstruction"][1, 0, 5] += value
    np.savez(complete.path / "wrong.npz", **values)
    done = compiled("wrong.npz")
    assert done.returncode == 1
    assert f"{'full.reconstruction':32} WRONG" in done.stdout


@pytest.mark.needs("cc")
def test_the_examples_take_infinity_and_not_a_number_for_right_where_pytorch_answers_them(
    complete: Bundle, compiled: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with np.load(complete.path / "golden.npz") as golden:
        values = dict(golden)
    for at, value in enumerate((np.inf, -np.inf, np.nan)):
        values["encoder.csi"][0, 0, 2 * at : 2 * at + 2] = value
        values["encoder.codeword"][0, 0, at] = value
    for right in (True, False):
        if not right:
            values["encoder.codeword"][0, 0, 0] = -np.inf
        np.savez(complete.path / "golden.npz", **values)
        word = "ok" if right else "WRONG"
        assert f"{'encoder.codeword':32} {word}" in compiled().stdout
        assert (
            f"encoder.codeword: {word}" in _run(sys.executable, complete.path / "example" / "run.py").stdout
        )


def test_the_examples_accept_what_the_check_of_the_build_did_and_no_more(tmp_path: Path) -> None:
    """Of a library of eight bits, roundings apart are allowed, for each entry what its network makes of them."""
    about = _tiny.manifest()
    checked = {
        "full": EntryCheck(0, 0, None, None, 1e-3),
        "encoder": EntryCheck(0, 0, None, None, verdict.FP32),
    }
    about = dataclasses.replace(about, check=dataclasses.replace(about.check, entries=checked))
    source, script = (render_example(about)[f"example/{name}"].decode() for name in ("main.c", "run.py"))
    for entry, allowed in (("full", "0.01"), ("encoder", "0.0001"), ("decoder", "0.0001")):
        assert f'"{entry}": {allowed},' in script
        assert re.search(rf'"{entry}\.[^;]*\s{re.escape(allowed)}\);', source)


@pytest.mark.needs("cc")
def test_the_c_example_survives_broken_archives(
    complete: Bundle, compiled: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    data = (complete.path / "golden.npz").read_bytes()
    for broken in (b"", data[:100], data[: len(data) // 2], data[:-30], b"\xff" * 500, data[500:]):
        (complete.path / "broken.npz").write_bytes(broken)
        done = compiled("broken.npz")
        assert done.returncode == 1
        assert done.stderr


@pytest.mark.needs("cc", "cmake")
def test_the_cmake_project_builds_and_passes(complete: Bundle, tmp_path: Path) -> None:
    for command in (
        ["cmake", "-S", complete.path / "example", "-B", tmp_path / "build"],
        ["cmake", "--build", tmp_path / "build"],
        ["ctest", "--test-dir", tmp_path / "build"],
    ):
        done = _run(*command)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_python_example_reproduces_the_golden_values(complete: Bundle) -> None:
    done = _run(sys.executable, complete.path / "example" / "run.py")
    assert done.returncode == 0, done.stderr
    assert "full.reconstruction: ok" in done.stdout


def test_the_python_example_refuses_a_cpu_without_a_feature(complete: Bundle) -> None:
    _tiny.reseal(complete.path, lambda tree: tree["target"].update(features=["avx9000"]))
    done = _run(sys.executable, complete.path / "example" / "run.py")
    assert done.returncode == 1
    assert "needs avx9000" in done.stderr


@pytest.mark.needs("cc")
def test_any_tensor_and_model_name_gives_a_valid_header(tmp_path: Path) -> None:
    about = _tiny.manifest()
    entry = dataclasses.replace(
        about.entries["full"],
        inputs=(Tensor("float", (1, 8)), Tensor("workspace", (1, 8))),
        outputs=(Tensor("class", (1, 8)),),
    )
    model = dataclasses.replace(about.model, spec="evil */ int x = ; /* \n#error")
    about = dataclasses.replace(about, entries={"full": entry}, model=model)
    header = tmp_path / "tiny-net.h"
    header.write_bytes(render_header(about))
    (tmp_path / "use.c").write_text('#include "tiny-net.h"\nint main(void) { return TINY_NET_OK; }\n')
    for language in ("c", "c++"):
        done = _run(
            "cc", "-x", language, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "use.c", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr


def test_the_header_says_what_a_caller_must_keep_to() -> None:
    text = render_header(_tiny.manifest()).decode().replace("\n *", "")
    assert "an output must not overlap an input, another output or the workspace" in text
    assert "each with its own outputs and workspace" in text
    assert "No call takes more than 32 KB of stack" in text


def test_the_same_manifest_gives_the_same_bytes() -> None:
    about = _tiny.manifest()
    reordered = dataclasses.replace(about, entries=dict(reversed(about.entries.items())))
    assert render_header(about) == render_header(reordered)
    assert render_example(about) == render_example(reordered)
