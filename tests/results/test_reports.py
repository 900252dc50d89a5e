"""The scripts behind docs/reports and the measurement against itself, with measurements that are made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgecsi.bench.statistics import Interval, Ratio
from edgecsi.cli import main
from edgecsi.models import registry
from edgecsi.results import reports, self_check
from edgecsi.results.reports import Picture, take
from tests import _results, _tiny


def test_every_report_is_made_of_commands_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[Sequence[str]] = []

    def run(arguments: Sequence[str], folder: Path, threads: int | None = None) -> None:
        commands.append(arguments)
        if arguments[0] == "build":
            (folder / arguments[-1]).mkdir()
        elif arguments[0] == "bench":
            emulated = "emulate" in arguments
            found = _results.emulated() if emulated else _results.result(seed=len(commands))
            _results.written(Path(arguments[-1]).parent, Path(arguments[-1]).stem, found)
        else:
            assert main(arguments) == 0

    taken: list[str] = []
    monkeypatch.setattr(reports, "run_edgecsi", run)
    monkeypatch.setattr(reports, "browser", lambda: "chromium")
    monkeypatch.setattr(reports, "take", lambda picture, folder: taken.append(picture.page))
    assert reports.main(["--docs", str(tmp_path), "--anyway"]) == 0
    written = {path.stem for path in (tmp_path / "reports").iterdir()}
    assert (
        written
        == {page.name for page in reports.PAGES}
        >= {"csinet-cr4", "compressions", "devices", "sustained"}
    )
    assert set(taken) == written
    assert "over 2m" in (tmp_path / "reports" / "sustained.html").read_text()
    built = [command for command in commands if command[0] == "build"]
    assert len({command[-1] for command in built}) == len(built)
    for command in built:
        assert (registry.WEIGHTS / f"{command[1]}.safetensors").is_file()


@pytest.mark.parametrize(("held", "program", "code"), [(3, 10.1, 0), (2, 10.1, 1), (3, 11.0, 1)])
def test_the_self_check_fails_where_the_measurement_lies(
    held: int, program: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = _tiny.manifest()
    made = _tiny.make_bundle(tmp_path / "made", _tiny.compile_library(tmp_path / "library.so", about), about)
    (tmp_path / "results").mkdir()
    (tmp_path / "how-we-measure.md").write_text(
        "Before. <!-- self_check -->99 of 99<!-- /self_check --> After."
    )
    ratios = iter([Ratio(1.0, Interval(0.99, 1.01), 9)] * held + [Ratio(1.1, Interval(1.05, 1.2), 9)] * 9)
    monkeypatch.setattr(self_check, "run_edgecsi", lambda arguments, folder: None)
    monkeypatch.setattr(self_check, "read_bundle", lambda path: made)
    monkeypatch.setattr(self_check, "against_itself", lambda *arguments: next(ratios))
    monkeypatch.setattr(self_check, "compiled_program", lambda bundle, folder: folder)
    monkeypatch.setattr(self_check, "program_median", lambda *arguments: program)
    monkeypatch.setattr(self_check.Local, "time", lambda *arguments: [10_000.0] * 5)
    arguments = ["--docs", str(tmp_path), "--runs", "3", "--anyway"]
    assert self_check.main(arguments) == code
    found = json.loads((tmp_path / "results" / "self_check.json").read_text())
    assert found["held"] == held
    assert found["program"]["bench_us"] == 10.0
    said = (tmp_path / "how-we-measure.md").read_text()
    assert f"{held} of 3 intervals hold 1, and the two figures differ by {program / 10 - 1:.1%}" in said
    assert "99 of 99" not in said
    (row,) = [line for line in (tmp_path / "results.md").read_text().splitlines() if "own C program" in line]
    assert f"+{program / 10 - 1:.1%}" in row
    assert ("| no |" in row) == (program > 10.2)


@pytest.mark.needs("chromium")
def test_a_picture_is_as_wide_as_it_says(tmp_path: Path) -> None:
    run = _results.written(tmp_path, "run", _results.result())
    assert main(["report", str(run), "-o", str(tmp_path / "csinet-cr4.html")]) == 0
    take(Picture("phone", "csinet-cr4", 390, 800, "dark"), tmp_path)
    data = (tmp_path / "phone.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (390, 800)
    assert len(data) < 100_000
