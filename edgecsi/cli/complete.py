"""What the shell offers for a half-written word: models, targets, recipes, bundles and their entries.

Nothing here may fail or be slow: it runs at every press of the Tab key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import CompletionItem

_FILES = CompletionItem("", type="file")
_FOLDERS = CompletionItem("", type="dir")


def models(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Names of the zoo, and files."""
    from edgecsi.models import registry

    names = [*(info.name for info in registry.list_models()), *registry.list_compressed()]
    return _matching(word, names, _FILES)


def targets(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Names of targets, and files."""
    from edgecsi.target import list_targets

    return _matching(word, list_targets(), _FILES)


def recipes(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Names of recipes, and files."""
    from edgecsi.compress.recipe import list_recipes

    return _matching(word, list_recipes(), _FILES)


def bundles(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Folders with a manifest, else folders on the way to one."""
    found = []
    with suppress(OSError):
        here = Path(word) if word.endswith("/") else Path(word).parent
        found = [str(path.parent) for path in sorted(here.glob("*/manifest.json"))[:200]]
    return _matching(word, found, _FOLDERS)


def entries(context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """The entries of the bundle that was written before, else those that most networks have."""
    names = ["encoder", "decoder", "full"]
    with suppress(OSError, ValueError, AttributeError, TypeError, KeyError):
        manifest = Path(str(context.params["bundle"])) / "manifest.json"
        if manifest.stat().st_size < 8 << 20:
            names = list(json.loads(manifest.read_text(encoding="utf-8"))["entries"])
    return _matching(word, names)


def devices(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Where a bundle can run: names of the user's own, and what is always there."""
    from edgecsi.device import names

    own: list[str] = []
    with suppress(Exception):  # a broken devices.toml is not told of at the Tab key
        own = [named.name for named in names.listed()]
    return _matching(word, [*own, "local", "emulate", "ssh://"])


def engines(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
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
