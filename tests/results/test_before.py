"""Today's code against an earlier commit's: which code builds what, and what is kept of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgecsi.errors import ToolchainError, UsageError
from edgecsi.results import before, bundles, run
from edgecsi.results.scenarios import CHANGES
from edgecsi.results.workloads import csinet_convolutions
from tests import _tiny


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of which the last commit but one has other files than today."""
    place = tmp_path / "checkout"
    place.mkdir()

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", place, *who, *arguments], check=True, capture_output=True)

    git("init")
    for text in ("then", "now"):
        (place / "edgecsi").write_text(text)
        git("add", "edgecsi")
        git("commit", "-m", text)
    monkeypatch.setattr(before, "CODE", place)
    return place


@pytest.mark.needs("git")
def test_the_code_of_a_commit_is_taken_from_the_checkout(checkout: Path, tmp_path: Path) -> None:
    name = before.check_out("HEAD~1", tmp_path / "code")
    assert len(name) == 40
    assert (tmp_path / "code" / "edgecsi").read_text() == "then"
    assert (checkout / "edgecsi").read_text() == "now"
    for commit in ("nothing", "--help", "HEAD~9"):
        with pytest.raises(UsageError, match=r"the code of .* cannot be had"):
            before.check_out(commit, tmp_path / "other")


@pytest.mark.needs("git")
def test_rows_are_measured_kept_and_shown(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, str]] = []
    library = _tiny.compile_library(tmp_path / "library.so", _tiny.manifest())

    def build(
        arguments: Sequence[str], folder: Path, threads: int | None = None, code: Path = bundles.CODE
    ) -> None:
        built.append((" ".join(arguments), "now" if code == bundles.CODE else (code / "edgecsi").read_text()))
        if "transformer" in arguments[1] and code != bundles.CODE:
            raise ToolchainError("edgecsi build failed", "it knew no transformers", "wait")
        _tiny.make_bundle(folder / arguments[arguments.index("-o") + 1], library, _tiny.manifest())

    monkeypatch.setattr(bundles, "run_edgecsi", build)
    said: list[str] = []
    monkeypatch.setattr(before.script, "say", said.append)
    docs = tmp_path / "docs"
    asked = ["HEAD~1", "--docs", str(docs), "--anyway", "--seconds", "0.01"]
    assert before.main([*asked, "--only", "transformer"]) == 0
    assert before.main([*asked, "--only", "joint"]) == 0
    stored = json.loads((docs / "results" / "before.json").read_text())
    assert list(stored["rows"]) == ["joint-int16", "transformer-int16", "joint", "joint-encoder"]
    assert stored["rows"]["transformer-int16"]["error"][1] == "it knew no transformers"
    joint = [command for command, _ in built if "prune90" in command]
    assert len(joint) == 3, "rows share their bundles"
    assert {(command.split()[1], code) for command, code in built if "prune90" in command} == {
        ("csinet-cr4+prune90-bsr16x4-int8-dynamic", "then"),
        ("csinet-cr4+prune90-bsr16x4-int8-dynamic", "now"),
        ("csinet-cr4+prune90-bsr16x4-int8-dynamic+int16", "now"),
    }
    assert (
        "build workloads.py:transformer_codec --target host -o now-transformer-codec-int16 --recipe int16",
        "now",
    ) in built
    row = stored["rows"]["joint-encoder"]
    assert row["ratio"]["interval"]["low"] <= row["ratio"]["ratio"] <= row["ratio"]["interval"]["high"]
    text = (docs / "results.md").read_text()
    assert f"| CsiNet CR 1/4, encoder, joint | {row['commit'][:7]} |" in text
    assert "failed: it knew no transformers" in text
    assert before.main([*asked, "--only", "nothing"]) == UsageError.exit_code
    monkeypatch.setattr(run, "other_load", lambda *_: 0.8)
    assert before.main(["HEAD"]) != 0


def test_every_row_has_a_name_of_its_own_and_the_convolutions_are_alone() -> None:
    assert len({change.name for change in CHANGES}) == len(CHANGES)
    module, x = csinet_convolutions()
    assert module(x).shape == x.shape
    kinds = {type(part).__name__ for part in module.modules()}
    assert "Linear" not in kinds
    assert sum(type(part).__name__ == "Conv2d" for part in module.modules()) == 6
