"""The frame of the program: help, exit codes, three-line errors, interruption."""

import errno
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import click
import pytest

from edgecsi import cli
from edgecsi.cli import output
from edgecsi.errors import DataError, Notice

HEAVY = ("torch", "tvm", "numpy", "rich", "scipy")


def verb_that(monkeypatch: pytest.MonkeyPatch, action: object) -> list[str]:
    """Put a verb into the program that does one thing; returns the command line to call it."""

    @click.command()
    def command() -> None:
        if isinstance(action, BaseException):
            raise action

    monkeypatch.setitem(cli.VERBS, "try", "")
    monkeypatch.setitem(cli.cli.commands, "try", cli._with_settings(command))
    return ["try"]


def every_command() -> list[list[str]]:
    found = []
    context = click.Context(cli.cli)
    for verb in cli.VERBS:
        command = cli.cli.get_command(context, verb)
        assert command is not None
        found.append([verb])
        if isinstance(command, click.Group):
            found += [[verb, name] for name in command.commands]
    return found


@pytest.mark.parametrize("arguments", every_command(), ids=" ".join)
def test_every_verb_has_help_with_an_example(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"edgecsi {arguments[0]}" in text.partition("Example:")[2]
    assert "--debug" in text


@pytest.mark.parametrize("arguments", [[], *every_command()], ids=" ".join)
def test_help_fits_a_terminal(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 80 columns; and down to 60 no word is broken, but at its dashes."""

    def shown(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        assert cli.main([*arguments, "--help"]) == 0
        return capsys.readouterr().out

    assert [line for line in shown(80).splitlines() if len(line) > 80] == []
    narrow, wide = (set(re.split(r"[\s-]+", shown(width))) for width in (60, 100))
    assert {word for word in narrow if not word.endswith("...")} <= wide


def test_help_lists_every_verb_and_loads_none(capsys: pytest.CaptureFixture[str]) -> None:
    source = (
        "import sys; from edgecsi.cli import main; main(['--help']);"
        f"sys.exit(any(name in sys.modules for name in {HEAVY}))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"  {verb} " in done.stdout for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_no_verb_imports_anything_heavy_to_show_its_help(verb: str) -> None:
    source = (
        f"import sys; from edgecsi.cli import main; main(['{verb}', '--help']);"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [["no-such-verb"], ["targets", "--no-such-option"], ["targets", "show"], ["--no-such-option"]],
)
def test_a_wrong_command_line_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    what, why, fix = capsys.readouterr().err.splitlines()
    assert what.startswith("error: ")
    assert why.startswith(("Usage: edgecsi", "the verbs are "))
    assert "--help" in fix


def test_an_error_is_three_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = verb_that(monkeypatch, DataError("what", "why", "do this"))
    assert cli.main(arguments) == 3
    assert capsys.readouterr().err == "error: what\nwhy\ndo this\n"


@pytest.mark.parametrize("arguments", [["--debug", "try"], ["try", "--debug"]])
def test_debug_adds_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    verb_that(monkeypatch, DataError("what", "why", "do this"))
    assert cli.main(arguments) == 3
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.endswith("error: what\nwhy\ndo this\n")


def test_our_own_bug_is_called_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(verb_that(monkeypatch, ZeroDivisionError("oops"))) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert "this is a bug in edgecsi: ZeroDivisionError: oops" in error


def test_interruption_is_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(verb_that(monkeypatch, KeyboardInterrupt())) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/lib.so"), 4),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "out"), 4),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x.npy"), 3),
        (MemoryError(), 4),
    ],
)
def test_what_the_system_refuses_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    assert cli.main(verb_that(monkeypatch, error)) == code
    text = capsys.readouterr().err
    assert text.count("\n") == 3
    assert str(getattr(error, "filename", None) or "memory") in text


@pytest.mark.parametrize(
    "line", ["targets show host", "--help", "recipes --json -", "help build", "recipes --help"]
)
def test_a_reader_that_leaves_early_is_no_error(line: str) -> None:
    """As for every program whose reader has had enough: killed by SIGPIPE, says the shell."""
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "edgecsi", *line.split()], stdout=theirs, stderr=subprocess.PIPE, text=True, check=False
    )  # fmt: skip
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("edgecsi 0.")


def test_json_to_a_file_is_written_beside_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "targets.json"
    assert cli.main(["targets", "--json", str(out)]) == 0
    assert "cortex-a72" in capsys.readouterr().out
    assert {"id": "rpi4", "arch": "aarch64"}.items() <= json.loads(out.read_text())[3].items()
    assert list(tmp_path.iterdir()) == [out]


def test_json_where_nothing_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["targets", "--json", str(tmp_path / "no" / "x.json")]) == 3
    assert cli.main(["targets", "--json", str(tmp_path)]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_a_notice_is_one_line_beside_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    def warn() -> None:
        warnings.warn(Notice("it stays in fp32"), stacklevel=1)

    with pytest.MonkeyPatch.context() as patch:
        command = click.Command("try", callback=warn)
        patch.setitem(cli.VERBS, "try", "")
        patch.setitem(cli.cli.commands, "try", cli._with_settings(command))
        assert cli.main(["try"]) == 0
    assert capsys.readouterr().err == "note: it stays in fp32\n"


def test_long_work_without_a_terminal_says_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with output.progress("working") as update:
        update(1, 4, "short")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(output, "SECONDS_A_LINE", 0.0)
    with output.progress("working") as update:
        update(1, 4, "layer 1")
        update(0, 0, "")
    assert capsys.readouterr().err == "layer 1 (25%)\nworking\n"


def test_an_interruption_of_what_is_kept_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgecsi.training import train

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupted)
    assert cli.main(["train", "csinet-cr64", "--data", "cdl-c:20", "-o", "x.safetensors"]) == 130
    said = capsys.readouterr().err
    assert said.strip() == (
        "interrupted: every finished epoch is kept: the same command goes on from there, --restart starts over"
    )
    monkeypatch.setattr("edgecsi.tune.network.tune", interrupted)
    assert cli.main(["tune", "csinet-cr16", "--target", "host"]) == 130
    said = capsys.readouterr().err
    assert said.strip() == "interrupted: every measurement is kept: the same command goes on from there"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["biuld"], "build"),
        (["recipes", "show", "Int8_Dynamic"], "int8-dynamic"),
        (["targets", "show", "RPI_4"], "rpi4"),
        (["models", "show", "CSINET_CR4"], "csinet-cr4"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) in (2, 3)
    assert meant in capsys.readouterr().err


def test_help_may_stand_in_front(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "data", "convert"]) == 0
    before = capsys.readouterr().out
    assert cli.main(["data", "convert", "--help"]) == 0
    assert before.splitlines()[2:] == capsys.readouterr().out.splitlines()[2:]
    assert cli.main(["help", "convert"]) == 2


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("edgecsi build csinet-cr1", "csinet-cr16"),
        ("edgecsi build x --target rp", "rpi4"),
        ("edgecsi compress x --recipe int8-d", "int8-dynamic"),
        ("edgecsi ins", "inspect"),
    ],
)
def test_the_shell_is_offered_names(words: str, offered: str) -> None:
    settings = {
        "_EDGECSI_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-m", "edgecsi"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"plain,{offered}" in done.stdout.splitlines()


def test_a_table_without_rows_is_its_head() -> None:
    """Of an entry without layers, say."""
    assert output.columns(("name", "kernel"), []).split() == ["name", "kernel", "----", "------"]


def test_a_table_is_folded_between_words_to_fit_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("prune90-bsr16x4-int8-dynamic", 12, "the weights of every dense layer share sixteen values")]
    wide = output.columns(("recipe", "bytes", "description"), rows)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    narrow = output.columns(("recipe", "bytes", "description"), rows)
    assert max(map(len, wide.splitlines())) > 60 >= max(map(len, narrow.splitlines()))
    assert set(narrow.replace("-" * 5, " ").split()) >= set(wide.replace("-" * 5, " ").split()) - {"---"}


@pytest.mark.parametrize("line", ["--help", "targets", "targets --json -"])
def test_an_output_that_cannot_be_written_is_said_in_three_lines(line: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edgecsi", *line.split()],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.splitlines()[:2] == ["error: standard output cannot be written", "the disk is full"]
    assert len(done.stderr.splitlines()) == 3
