"""What cannot be written is noticed before the work, with one exit code in every verb; and the Tab key knows names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edgecsi import cli
from edgecsi.cli import options

WRITTEN = {
    "out",
    "outputs",
    "output",
    "json_to",
    "plot",
    "save",
    "markdown",
    "csv",
    "dump_ir",
    "write_target",
}
CALLBACKS = (options.can_be_written, options.folder_can_be_written)
FORBIDDEN = "/sys/edgecsi"
"""Where nobody may write, root included."""


def commands(
    group: click.Group = cli.cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every verb and what is below it."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


OUTPUTS = [
    (words, option) for words, command in commands() for option in command.params if option.name in WRITTEN
]


def test_verbs_have_outputs() -> None:
    assert len({words for words, _ in OUTPUTS}) > 30


@pytest.mark.parametrize(
    ("words", "option"), OUTPUTS, ids=lambda value: getattr(value, "name", None) or " ".join(value)
)
def test_an_output_is_tried_before_the_work(
    words: tuple[str, ...], option: click.Parameter, tmp_path: Path
) -> None:
    """What the option's own callback says to a value, whatever verb it belongs to."""
    (tmp_path / "file").write_text("")
    folder = option.callback is options.folder_can_be_written
    end = ".npz" if words[0] == "data" and option.name == "out" else ""
    many = getattr(option, "multiple", False)
    codes = {}
    for kind, path in {
        "read-only": f"{FORBIDDEN}{end}",
        "below a file": f"{tmp_path}/file/x{end}",
        "missing folder": f"{tmp_path}/no/x{end}",
        "good": f"{tmp_path}/x{end}",
    }.items():
        value: object = Path(path)
        try:
            assert option.callback is not None
            option.callback(click.Context(cli.cli), option, (value,) if many else value)
            codes[kind] = 0
        except cli.EdgecsiError as error:
            codes[kind] = error.exit_code
    missing = 0 if folder else 3  # a folder is made, a file's folder may be mistyped
    assert codes == {"read-only": 4, "below a file": 3, "missing folder": missing, "good": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "line",
    [
        "build csinet-cr16 --target host -o {}",
        "run bundle -i x.npy -o {}",
        "eval bundle --data test --json {}",
        "bench bundle --json {}",
        "bench bundle --save {}",
        "compress csinet-cr16 --recipe int8-dynamic --data test -o {}",
        "train csinet-cr16 --data test -o {}",
        "data generate cdl-c:100000 -o {}.npz",
        "report result.json -o {}",
        "compare a.json b.json --json {}",
        "tune csinet-cr16 --target host --records {}",
        "records export -o {}",
        "package bundle -o {}",
        "targets calibrate rpi4 -o {}",
        "experiments run erak -o {}",
        "demo -o {}",
        "device probe ssh://nobody@127.0.0.1:1 --write-target {}",
    ],
)
def test_it_is_said_before_anything_else(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word.format(FORBIDDEN) for word in line.split()]) == 4
    assert f"{FORBIDDEN}" in capsys.readouterr().err.splitlines()[0]


def test_a_disk_without_room_is_noticed(tmp_path: Path, small_files: None) -> None:
    with pytest.raises(cli.EdgecsiError) as caught:
        options.can_be_written(click.Context(cli.cli), click.Option(["--json"]), tmp_path / "x")
    assert caught.value.exit_code == 4


COMPLETED = {
    "model": options.complete_models,
    "target": options.complete_targets,
    "recipe": options.complete_recipes,
    "entry": options.complete_entries,
    "bundle": options.complete_bundles,
    "device": options.complete_devices,
    "devices": options.complete_devices,
    "against": options.complete_engines,
}


def test_names_complete_in_every_verb() -> None:
    lacking = []
    for words, command in commands():
        for option in command.params:
            wanted = COMPLETED.get(option.name or "")
            if words == ("device", "rollback") and option.name == "bundle":
                continue  # a name on the device, not a folder here
            if (words[0], option.name) in {("eval", "model"), ("bench", "model")}:
                continue  # a file of the user's own: the shell completes it
            if wanted is not None and option._custom_shell_complete is not wanted:
                lacking.append((*words, option.name))
    assert lacking == []


def test_a_cache_that_cannot_be_written_is_the_same_fault_in_every_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The environment's, whatever the system says of the path."""
    (tmp_path / "file").write_text("")
    for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for place in (f"{tmp_path}/file/cache", FORBIDDEN):
        monkeypatch.setenv("EDGECSI_CACHE", place)
        for line in ("data generate cdl-c:10 -o {}/x.npz", "build fullycon --target host -o {}/b"):
            assert cli.main(line.format(tmp_path).split()) == 4, (place, line)
            said = capsys.readouterr().err
            assert place in said.splitlines()[0]
            assert "EDGECSI_CACHE" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
