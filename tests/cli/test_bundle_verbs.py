"""``run`` and ``inspect`` on a small hand-made bundle."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgecsi.bundle import read_bundle
from edgecsi.cli import main
from tests import _tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    about = _tiny.manifest()
    library = _tiny.compile_library(folder / "tiny.so", about)
    return _tiny.make_bundle(folder / "tiny-net", library, about).path


def test_run_writes_what_the_entry_returns(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(1).standard_normal((5, 8), np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = ["run", str(bundle), "--input", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]
    assert main([*arguments, "--entry", "encoder", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == {str(tmp_path / "y.npy"): [5, 4]}
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), _tiny.encoder(x), rtol=1e-6)


def test_run_takes_several_inputs_and_outputs(bundle: Path, tmp_path: Path) -> None:
    paths = {name: str(tmp_path / f"{name}.npy") for name in "abcd"}
    a, b = np.random.default_rng(1).standard_normal((2, 4, 3), np.float32)
    np.save(paths["a"], a)
    np.save(paths["b"], b)
    options = ["-i", paths["a"], "-i", paths["b"], "-o", paths["c"], "-o", paths["d"]]
    assert main(["run", str(bundle), "--entry", "pair", *options]) == 0
    np.testing.assert_array_equal(np.load(paths["c"]), a + b)
    np.testing.assert_array_equal(np.load(paths["d"]), a * b)
    names = [tensor.name for tensor in read_bundle(bundle).entry("pair").inputs]
    np.savez(tmp_path / "named.npz", **{names[1]: a, names[0]: b})  # by name, in any order
    options = ["-i", str(tmp_path / "named.npz"), "-o", paths["c"], "-o", paths["a"]]
    assert main(["run", str(bundle), "--entry", "pair", *options]) == 0
    np.testing.assert_array_equal(np.load(paths["c"]), a + b)


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--entry", "middle"], 3, "encoder"),
        (["--device", "toaster"], 2, "toaster"),
        (["--entry", "pair"], 2, "pair"),
        (["--device", "local"], 3, "shape"),
    ],
)
def test_run_refuses_what_makes_no_sense(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    named: str,
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 7), np.float32))
    arguments = ["run", str(bundle), "-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy"), *options]
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert not (tmp_path / "y.npy").exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"hello", None])
def test_run_refuses_a_damaged_or_missing_input(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    x = tmp_path / "x.npy"
    if content is not None:
        x.write_bytes(content)
    assert main(["run", str(bundle), "-i", str(x), "-o", str(tmp_path / "y.npy")]) == 3
    assert "x.npy" in capsys.readouterr().err


def test_run_never_unpickles(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert main(["run", str(bundle), "-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]) == 3
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "it holds Python objects, not plain numbers" in said
    assert "allow_pickle" not in said


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_run_refuses_what_is_not_finite(bundle: Path, tmp_path: Path, bad: float) -> None:
    np.save(tmp_path / "x.npy", np.full((1, 8), bad, np.float32))
    assert main(["run", str(bundle), "-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]) == 3


def test_inspect_shows_entries_and_layers(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle), "--layers"]) == 0
    output = capsys.readouterr().out
    assert "csi[1,8]" in output
    assert "f32_dense" in output
    assert "not run: there is no PyTorch model" in output


def test_inspect_as_json_is_the_manifest(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((bundle / "manifest.json").read_text())


def test_inspect_finds_a_changed_byte(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    library = copy / "libtiny-net.so"
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)
    assert main(["inspect", str(copy)]) == 3
    assert "libtiny-net.so" in capsys.readouterr().err


def test_run_never_overwrites_its_input(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = tmp_path / "x.npy"
    np.save(x, np.ones((2, 8), np.float32))
    before = x.read_bytes()
    assert main(["run", str(bundle), "-i", str(x), "-o", f"{tmp_path}/./x.npy"]) == 2
    assert "is an input" in capsys.readouterr().err
    assert x.read_bytes() == before


def test_run_takes_a_single_sample(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(8, np.float32))
    assert main(["run", str(bundle), "-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]) == 0
    assert np.load(tmp_path / "y.npy").shape == (1, 8)


def test_the_only_entry_is_the_default(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(bundle, alone)

    def only_encoder(tree: dict) -> None:
        tree["entries"] = {"encoder": tree["entries"]["encoder"]}
        tree["check"]["entries"] = {}

    _tiny.reseal(alone, only_encoder)
    np.save(tmp_path / "x.npy", np.ones((3, 8), np.float32))
    arguments = ["run", str(alone), "-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]
    assert main(arguments) == 0
    assert np.load(tmp_path / "y.npy").shape == (3, 4)
    assert main([*arguments, "--entry", "Encoder"]) == 3
    assert "did you mean encoder?" in capsys.readouterr().err
