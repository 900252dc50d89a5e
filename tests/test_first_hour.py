"""The cheap part of the first hour, without a terminal and on one; `python -m tests.first_hour` replays all of it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from edgecsi import cli
from tests.first_hour import LIGHT, MEDIUM, Step, on_terminal, prepare, shown, typed, words_of, wrong


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("hour")
    return folder, prepare(folder)


@pytest.mark.parametrize("step", [*LIGHT, *MEDIUM], ids=lambda step: step.line)
@pytest.mark.filterwarnings("default")
def test_it_ends_as_it_should(
    step: Step,
    place: tuple[Path, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place[0])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place[0] / "config"))
    monkeypatch.syspath_prepend(str(place[0]))
    code = cli.main(words_of(step)[1:])
    said = capsys.readouterr()
    found = list(wrong(step, code, said.out + said.err))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("width", [60])
@pytest.mark.parametrize(
    "line",
    ["models", "recipes", "targets", "targets show rpi5", "recipes show int8-static", "device list", "bulid",
     "data generate cdl-c:100000 -o out.txt", "data info page.npy", "targets show RPI_4"],
)  # fmt: skip
def test_tables_and_errors_fit_the_terminal(
    line: str, width: int, place: tuple[Path, dict[str, str]]
) -> None:
    codes = {
        "bulid": 2,
        "data generate cdl-c:100000 -o out.txt": 2,
        "data info page.npy": 3,
        "targets show RPI_4": 3,
    }
    step = Step(f"edgecsi {line}", codes.get(line, 0))
    found = list(on_terminal(step, *place, width=width))
    assert not found, "\n".join(found)


WORKING = """
import time
import click
from edgecsi.cli import Settings, output

@click.command()
def go():
    with output.progress("working") as update:
        update(1, 3, "working")
        time.sleep(0.3)
        output.note("something to know")
        output.say("a line of the result")

go(obj=Settings())
"""


def test_a_bar_does_not_glue_itself_to_text(place: tuple[Path, dict[str, str]]) -> None:
    (place[0] / "go.py").write_text(WORKING)
    code, said = typed([sys.executable, "go.py"], *place)
    assert code == 0
    assert "\x1b[?25l" in said  # there was one
    assert {"note: something to know", "a line of the result"} <= set(shown(said).splitlines())


def test_no_color_takes_the_colours_away_and_a_dumb_terminal_the_bar(
    place: tuple[Path, dict[str, str]],
) -> None:
    folder, environment = place
    (folder / "go.py").write_text(WORKING)
    go = [sys.executable, "go.py"]
    colours = r"\x1b\[(?:\d+;)*(?:3|4|9|10)\d"
    assert re.search(colours, typed(go, folder, environment)[1])
    _, said = typed(go, folder, environment | {"NO_COLOR": "1"})
    assert "\x1b[?25l" in said
    assert not re.search(colours, said)
    _, said = typed(go, folder, environment | {"TERM": "dumb"})
    assert said.splitlines() == ["note: something to know", "a line of the result"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("build csin", "csinet-cr4"), ("build x --target rp", "rpi4"), ("build x --recipe int8-d", "int8-dynamic"),
        ("build x --entry de", "decoder"), ("bench b --against onnxruntime,op", "onnxruntime,openvino"),
        ("eval b --device em", "emulate"), ("help da", "data"), ("tune csin", "csinet-cr4"), ("targets show ho", "host"),
    ],
)  # fmt: skip
def test_the_tab_key(
    words: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As bash asks, by way of the environment."""
    from click.shell_completion import BashComplete

    typed = ["edgecsi", *shlex.split(words)]
    monkeypatch.setitem(os.environ, "COMP_WORDS", " ".join(typed))
    monkeypatch.setitem(os.environ, "COMP_CWORD", str(len(typed) - 1))
    offered = BashComplete(cli.cli, {"obj": cli.Settings()}, "edgecsi", "_EDGECSI_COMPLETE").complete()
    assert name in [line.partition(",")[2] for line in offered.splitlines()]
