"""The script that verifies every compressed network that ships."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgecsi.cli import main
from edgecsi.errors import ToolchainError, UsageError
from edgecsi.models import registry
from edgecsi.results import run as results
from edgecsi.results import shipped
from edgecsi.results.bundles import run_edgecsi


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with two compressed networks."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("csinet-cr4+a", "fullycon+b", "fullycon"):
        (folder / f"{name}.safetensors").write_bytes(name.encode())
    monkeypatch.setattr(registry, "WEIGHTS", folder)
    return folder


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Stands for the builds and runs: remembers what was asked; rpi4 is 0.02 dB off."""
    asked: list[tuple[str, str]] = []

    def verify(model: str, target: str) -> dict[str, Any]:
        asked.append((model, target))
        return {
            "model": model,
            "target": target,
            "cpu": "native",
            "digest": shipped.digest(model, target),
            "outdated": False,
            "figure": "NMSE",
            "samples": 8,
            "edgecsi": -10.0,
            "pytorch": -10.0,
            "difference_db": 0.02 if target == "rpi4" else 0.0,
            "differences": {"encoder": 0.0, "full": 1e-7},
            "library_bytes": 123_456,
        }

    monkeypatch.setattr(shipped, "verify", verify)
    return asked


def run(docs: Path, *options: str) -> int:
    return shipped.main(["--docs", str(docs), *options])


def test_what_is_known_is_not_verified_again(
    tmp_path: Path, weights: Path, verified: list[tuple[str, str]]
) -> None:
    assert run(tmp_path, "--targets", "host,rpi5", "--only", "csinet") == 0
    assert run(tmp_path, "--targets", "host,rpi5") == 0
    assert sorted(verified) == sorted(
        (m, t) for m in ("csinet-cr4+a", "fullycon+b") for t in ("host", "rpi5")
    )
    text = (tmp_path / "results.md").read_text()
    assert "| csinet-cr4+a | host | native | 8 | -10 | -10 | 0 | encoder; 1e-07 | 123 | yes |" in text

    verified.clear()
    (weights / "csinet-cr4+a.safetensors").write_bytes(b"trained again")
    assert run(tmp_path, "--targets", "host", "--only", "fullycon") == 0
    assert not verified
    assert "| 123 | yes, before a change |" in (tmp_path / "results.md").read_text()
    assert run(tmp_path, "--targets", "host,rpi5") == 0
    assert sorted(verified) == [("csinet-cr4+a", "host"), ("csinet-cr4+a", "rpi5")]
    assert "before a change" not in (tmp_path / "results.md").read_text()

    (weights / "csinet-cr4+a.safetensors").unlink()
    assert run(tmp_path, "--targets", "host") == 0
    assert run(tmp_path, "--targets", "rpi5") == 0
    kept = results.read_all(tmp_path / "results")["shipped"]["results"]
    assert sorted(kept) == ["fullycon+b host", "fullycon+b rpi5"]


def test_a_pair_stands_while_its_library_has_the_same_bytes(
    tmp_path: Path, weights: Path, verified: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens to the sources."""
    fake = shipped.verify
    monkeypatch.setattr(shipped, "verify", lambda *pair: fake(*pair) | {"library_sha256": pair[0]})
    assert run(tmp_path, "--targets", "host") == 0
    verified.clear()
    monkeypatch.setattr(shipped, "_sources", lambda: "of tomorrow")
    monkeypatch.setattr(shipped, "library_sha256", lambda *pair: "csinet-cr4+a")
    assert run(tmp_path, "--targets", "host") == 0
    assert verified == [("fullycon+b", "host")]
    assert "before a change" not in (tmp_path / "results.md").read_text()


def test_a_failure_is_told_and_tried_again(
    tmp_path: Path, weights: Path, verified: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert run(tmp_path, "--targets", "rpi4,host", "--only", "csinet") == 1
    assert "csinet-cr4+a rpi4: failed: 0.020 dB from PyTorch" in capsys.readouterr().err
    assert [target for _, target in verified].count("rpi4") == 2
    assert [target for _, target in verified].count("host") == 1
    assert "| 0.02 | encoder; 1e-07 | 123 | no |" in (tmp_path / "results.md").read_text()


def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, weights: Path, verified: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = shipped.verify

    def interrupted(model: str, target: str) -> dict[str, Any]:
        if model == "fullycon+b":
            raise KeyboardInterrupt
        return fake(model, target)

    monkeypatch.setattr(shipped, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--targets", "host", "--jobs", "1")
    kept = results.read_all(tmp_path / "results")["shipped"]["results"]
    assert list(kept) == ["csinet-cr4+a host"]


def test_a_build_that_fails_is_a_result(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ToolchainError("edgecsi build failed", "it is wrong", "report it")

    monkeypatch.setattr(shipped, "run_edgecsi", broken)
    assert shipped.failure(shipped.verify("csinet-cr4+a", "rpi5")) == "failed: it is wrong"


def test_nothing_to_verify_is_a_mistake(tmp_path: Path, weights: Path) -> None:
    assert run(tmp_path, "--only", "no-such") == UsageError.exit_code
    assert run(tmp_path, "--targets", "toaster") == UsageError.exit_code


def test_a_shipped_detector_is_right_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(arguments: Sequence[str], folder: Path, threads: int) -> None:
        with contextlib.chdir(folder):
            assert main([*arguments]) == 0

    monkeypatch.setattr(shipped, "TRANSMISSIONS", 20)
    monkeypatch.setattr(shipped, "run_edgecsi", here)
    model = "fullycon+prune75-bsr4x1-int8-weights"
    assert model in registry.list_compressed()
    found = shipped.verify(model, "host")
    assert shipped.failure(found) == ""
    assert found["samples"] == 20
    assert found["edgecsi"] == pytest.approx(found["pytorch"], rel=2e-3)
    assert found["library_bytes"] > 10_000
    assert found["commands"][0] == f"edgecsi build {model} --target host -o bundle"


def test_a_command_is_run_in_a_process_of_its_own(tmp_path: Path) -> None:
    run_edgecsi(["targets", "--json", "targets.json"], tmp_path, threads=1)
    assert any(row["id"] == "rpi4" for row in json.loads((tmp_path / "targets.json").read_text()))
    with pytest.raises(ToolchainError, match="edgecsi targets show toaster failed") as caught:
        run_edgecsi(["targets", "show", "toaster"], tmp_path)
    assert "toaster" in caught.value.why
