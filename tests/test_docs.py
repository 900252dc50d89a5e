"""What the documentation tells to type exists; the cheap commands are typed. `python -m tests.documented` types all."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import click
import pytest

from edgecsi.cli import main
from edgecsi.compress import recipe
from edgecsi.errors import UsageError
from tests.documented import FILES, PAGES, ROOT, Command, commands, parse

EVERY = [command for page in PAGES for command in commands(page)]
OURS = [command for command in EVERY if command.text.startswith("edgecsi ")]
NOT_COMMANDS = ("edgecsi VERB --help", "edgecsi over RPC")  # a placeholder, and the name of an engine
CHEAP = ("models", "targets", "recipes", "help", "records list", "device list", "data info")


def test_there_are_commands_on_every_page() -> None:
    assert len(OURS) > 100
    assert {command.page for command in OURS} == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_verbs_and_options_of_a_page_exist(page: Path) -> None:
    wrong = []
    for command in OURS:
        if command.page != page or command.text in NOT_COMMANDS:
            continue
        for part in command.text.split("&&"):
            if not (text := part.strip()).startswith("edgecsi "):
                continue
            try:
                parse(text, whole=not command.inline and "…" not in text)
            except (click.ClickException, UsageError, ValueError) as error:
                wrong.append(f"{command}: {getattr(error, 'message', error)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_makes_the_bundles_that_it_uses(page: Path) -> None:
    """Whoever comes to a page from elsewhere can follow it from its top."""
    made: set[str] = set()
    lost = []
    for command in OURS:
        words = (
            shlex.split(command.text, comments=True) if command.page == page and not command.inline else []
        )
        if words[1:2] == ["build"] and "-o" in words:
            made.add(words[words.index("-o") + 1])
        elif words[1:2] and words[1] in ("run", "eval", "bench", "inspect", "package", "sign", "deploy"):
            lost += [str(command)] if words[2] not in made and not words[2].startswith("-") else []
    assert lost == []


def test_every_key_of_a_recipe_is_explained() -> None:
    page = (ROOT / "docs" / "choosing-compression.md").read_text(encoding="utf-8")
    for kind in (recipe.Prune, recipe.Quantize, recipe.Cluster, recipe.LowRank, recipe.Distill, recipe.Halve):
        names = [kind.do, *(field.name.replace("_", "-") for field in fields(kind))]
        assert [name for name in names if f"`{name}`" not in page] == []
    (written,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    assert len(recipe.parse(written, "mine").steps) == 2


def test_links_lead_from_the_readme_to_every_page() -> None:
    lost, waiting, seen = [], [ROOT / "README.md"], set()
    while waiting:
        page = waiting.pop()
        seen.add(page)
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if not target.exists():
                lost.append(f"{page.relative_to(ROOT)}: {link}")
            elif target.suffix == ".md" and target not in seen:
                waiting.append(target)
    assert lost == []
    assert set((ROOT / "docs").rglob("*.md")) - seen == set()


def test_a_wrong_option_on_a_page_is_found() -> None:
    for text in (
        "edgecsi build a --target host --no-such",
        "edgecsi bulid",
        "edgecsi build a",
        "edgecsi bench b --batch x",
    ):
        with pytest.raises((click.ClickException, UsageError)):
            parse(text)
    with pytest.raises(click.ClickException):
        parse("edgecsi build … --no-such", whole=False)


def test_cheap_commands_run_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name, text in FILES.items():
        Path(name).write_text(text)
    failed = []
    cheap = {tuple(shlex.split(c.text, comments=True)[1:]): c for c in OURS if not c.inline and _cheap(c)}
    for words, command in cheap.items():
        code = main(list(words))
        said = capsys.readouterr()
        if code or "Traceback" in said.err:
            failed.append(f"{command}: {code}: {said.err}")
    assert not failed, "\n".join(failed)


def _cheap(command: Command) -> bool:
    words = command.text.removeprefix("edgecsi ")
    return (words.startswith(CHEAP) and ".toml" not in words) or ("--dry-run" in words and ".py:" in words)
