"""Arguments and options that several verbs have, each defined once, and what the Tab key completes in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from edgecsi import disk

Decorator = Callable[[Any], Any]


def can_be_written(_context: click.Context, _option: click.Parameter, value: Any) -> Any:
    """Click callback for files to be written: refuse before the work what could not be written after it."""
    for path in value if isinstance(value, tuple) else (value,):
        if path is not None and path != "-":
            disk.check_file(Path(path))
    return value


def folder_can_be_written(
    _context: click.Context, _option: click.Parameter, value: Path | None
) -> Path | None:
    """Click callback for a folder to be written, which is made if need be."""
    if value is not None:
        disk.check_folder(value)
    return value


json_option = click.option(
    "--json",
    "json_to",
    metavar="FILE",
    callback=can_be_written,
    help="Also write the result as JSON to FILE; `-` prints only the JSON.",
)


def output_option(
    metavar: str, help: str | None = None, *, folder: bool = False, **settings: Any
) -> Decorator:
    """``-o``, the argument `out`: what cannot be written is refused before the work."""
    callback = folder_can_be_written if folder else can_be_written
    where = click.Path(path_type=Path)
    return click.option(
        "-o", "--output", "out", type=where, callback=callback, metavar=metavar, help=help, **settings
    )


# What the shell offers for a half-written word. Nothing here may fail or be slow: it runs at every press of the Tab key.
_FILES = CompletionItem("", type="file")
_FOLDERS = CompletionItem("", type="dir")


def complete_models(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Names of the zoo, and files."""
    from edgecsi.models import registry

    names = [*(info.name for info in registry.list_models()), *registry.list_compressed()]
    return _matching(word, names, _FILES)


def complete_targets(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Names of targets, and files."""
    from edgecsi.target import list_targets

    return _matching(word, list_targets(), _FILES)


def complete_recipes(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Names of recipes, and files."""
    from edgecsi.compress.recipe import list_recipes

    return _matching(word, list_recipes(), _FILES)


def complete_bundles(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Folders with a manifest, else folders on the way to one."""
    found = []
    with suppress(OSError):
        here = Path(word) if word.endswith("/") else Path(word).parent
        found = [str(path.parent) for path in sorted(here.glob("*/manifest.json"))[:200]]
    return _matching(word, found, _FOLDERS)


def complete_entries(context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """The entries of the bundle that was written before, else those that most networks have."""
    names = ["encoder", "decoder", "full"]
    with suppress(OSError, ValueError, AttributeError, TypeError, KeyError):
        manifest = Path(str(context.params["bundle"])) / "manifest.json"
        if manifest.stat().st_size < 8 << 20:
            names = list(json.loads(manifest.read_text(encoding="utf-8"))["entries"])
    return _matching(word, names)


def complete_devices(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Where a bundle can run: names of the user's own, and what is always there."""
    from edgecsi.device import names

    own: list[str] = []
    with suppress(Exception):  # a broken devices.toml is not told of at the Tab key
        own = [named.name for named in names.listed()]
    return _matching(word, [*own, "local", "emulate", "ssh://"])


def complete_engines(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Other engines; several stand with commas between them."""
    from edgecsi.bench.peers import all_peers

    before, comma, last = word.rpartition(",")
    found = _matching(last, [peer.name for peer in all_peers()])
    return [CompletionItem(f"{before}{comma}{item.value}") for item in found]


def _matching(
    word: str, names: Iterable[str], otherwise: CompletionItem | None = None
) -> list[CompletionItem]:
    found = [CompletionItem(name) for name in names if name.startswith(word)]
    return found or ([otherwise] if otherwise else [])


bundle_argument = click.argument("bundle", type=click.Path(path_type=Path), shell_complete=complete_bundles)
model_argument = click.argument("model", shell_complete=complete_models)
device_argument = click.argument("device", shell_complete=complete_devices)


def device_option(help: str, *names: str, **settings: Any) -> Decorator:
    """``--device``, this machine by default."""
    settings = {"default": "local"} | settings
    return click.option(
        "--device", *names, show_default=True, shell_complete=complete_devices, help=help, **settings
    )


def entry_option(help: str) -> Decorator:
    """``--entry``."""
    return click.option("--entry", shell_complete=complete_entries, help=help)


def target_option(help: str, **settings: Any) -> Decorator:
    """``--target``."""
    return click.option("--target", metavar="TARGET", shell_complete=complete_targets, help=help, **settings)


def recipe_option(help: str, **settings: Any) -> Decorator:
    """``--recipe``."""
    return click.option("--recipe", shell_complete=complete_recipes, help=help, **settings)


def input_shape_option(help: str) -> Decorator:
    """``--input-shape``."""
    return click.option("--input-shape", callback=_shape, metavar="1,2,32,32", help=help)


def _shape(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Click callback for a shape such as ``1,2,32,32``."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no shape; write for instance 1,2,32,32") from None
