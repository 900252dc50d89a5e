"""What verbs print with: columns of text, JSON, and progress that is silent unless someone watches."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from edgecsi import disk
from edgecsi.progress import Progress

SECONDS_A_LINE = 30.0
"""Between two lines of progress where nobody watches a bar."""
_MOST_LINES = 9
"""Of a cell: a column that is narrower than that is hard to read."""


def note(text: str, kind: str = "note") -> None:
    """A line for the user beside the result; not with ``--quiet``."""
    context = click.get_current_context(silent=True)
    if not getattr(getattr(context, "obj", None), "quiet", False):
        # a bar there makes room for what is printed, not for click.echo
        print(folded(f"{kind}: {text}", sys.stderr), file=sys.stderr)


def say(text: str) -> None:
    """Print a part of the result while work goes on: above the bar, if one is shown."""
    if _bars and sys.stdout.isatty():
        _bars[-1].console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        click.echo(text)


def report(result: Any, text: Callable[[], str], json_to: str | None) -> None:
    """Print a result for people, or write it as JSON, as ``--json`` says.

    Args:
        result: dataclasses, mappings, sequences, paths, numbers and strings.
        text: makes the text for people; not called when JSON goes to the terminal.
        json_to: value of ``--json``.
    """
    if json_to == "-":
        click.echo(as_json(result), nl=False)
        return
    say(folded(text()))
    if json_to is not None:
        disk.write(Path(json_to), as_json(result))


def as_json(value: Any) -> str:
    """Readable JSON, the same text for the same value. NaN and infinities become null."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if value - value == 0 else None
    if hasattr(value, "tolist"):  # numpy, without importing it
        return _plain(value.tolist())
    return [_plain(item) for item in value]


def columns(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows of text in aligned columns under a head; columns of numbers are aligned at the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    together = list(zip(head, *cells, strict=True))
    widths = [max(map(len, column)) for column in together]
    least = [max(len(word) for text in column for word in text.split() or [""]) for column in together]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    _narrow(widths, least)

    def fold(texts: Sequence[str]) -> list[list[str]]:
        return [_folded(text, width) for text, width in zip(texts, widths, strict=True)]

    too_wide = sum(least) + 2 * (len(least) - 1) > room()
    if too_wide or any(len(part) > _MOST_LINES for row in cells for part in fold(row)):
        return "\n".join(_block(head, row) for row in cells)

    def line(texts: Sequence[str]) -> str:
        folded = fold(texts)
        lines = []
        for parts in itertools.zip_longest(*folded, fillvalue=""):
            aligned = (
                t.rjust(w) if n else t.ljust(w) for t, w, n in zip(parts, widths, numeric, strict=True)
            )
            lines.append("  ".join(aligned).rstrip())
        return "\n".join(lines)

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, cells)])


def _narrow(widths: list[int], least: Sequence[int]) -> None:
    """Make columns narrower until the table fits the terminal, if there is one, but never than their longest word."""
    while sum(widths) + 2 * (len(widths) - 1) > room():
        spare = [width - word for width, word in zip(widths, least, strict=True)]
        if max(spare) <= 0:
            return
        widths[max(range(len(widths)), key=lambda i: (spare[i] > 0, widths[i]))] -= 1


def room(stream: TextIO | None = None) -> int:
    """Columns of the terminal that a stream, or stdout, goes to; where there is none, as many as one likes."""
    return shutil.get_terminal_size().columns if (stream or sys.stdout).isatty() else 10**6


def folded(text: str, stream: TextIO | None = None) -> str:
    """Text with lines no longer than the terminal, broken between words; commands to be copied stay whole."""
    lines = []
    for line in text.split("\n"):
        if len(line) <= room(stream) or line.startswith(("next:", "edgecsi ", "pip ")):
            lines.append(line)
            continue
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        whole = re.sub("`[^`]+`", lambda command: command[0].replace(" ", "\0"), line)
        parts = textwrap.wrap(
            whole, room(stream), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines += [part.replace("\0", " ") for part in parts]
    return "\n".join(lines)


def _block(head: Sequence[str], row: Sequence[str]) -> str:
    """A row that has no room beside its neighbours: its first cell, and below it the others with their names."""
    others = "  ".join(
        f"{name} {value}" for name, value in zip(head[1:], row[1:], strict=True) if value != "-"
    )
    below = textwrap.wrap(
        others,
        room(),
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join([row[0], *below])


def _folded(text: str, width: int) -> list[str]:
    if len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def pairs(items: Mapping[str, object]) -> str:
    """One ``name  value`` a line."""
    width = max(map(len, items), default=0)
    lines = []
    for name, value in items.items():
        first, *more = _folded(_cell(value), max(20, room() - width - 2)) or [""]
        lines.append(f"{name.ljust(width)}  {first}".rstrip())
        lines += [" " * (width + 2) + line for line in more]
    return "\n".join(lines)


def over_there(folder: str) -> str:
    """A folder on a device: in the home folder there, unless it says otherwise."""
    return folder if folder.startswith(("/", "~")) else f"~/{folder}"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress bar on stderr if that is a terminal (without colours where ``NO_COLOR`` is set); otherwise, and with
    ``TERM=dumb``, a line there now and then, so that short work is silent and a log of long work shows that it goes on.

    Args:
        title: shown until the first update names something else.

    Yields:
        the function to call with (done, total, what is being done).
    """
    context = click.get_current_context(silent=True)
    settings = context.obj if context is not None else None
    if getattr(settings, "quiet", False):
        yield lambda done, total, what: None
        return
    if getattr(settings, "verbose", False):
        yield _steps(title)
        return
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_dumb_terminal:
        yield _lines(title)
        return
    times = rich.TimeElapsedColumn(), rich.TimeRemainingColumn()
    parts = rich.TextColumn("{task.description}"), rich.BarColumn(), *times
    with rich.Progress(*parts, console=console, transient=True) as bar:
        _bars.append(bar)
        task = bar.add_task(title, total=None)

        def update(done: float, total: float, what: str) -> None:
            bar.update(task, completed=done, total=total or None, description=what or title)

        try:
            yield update
        finally:
            _bars.remove(bar)


_bars: list[Any] = []
"""The bar that is shown now, if any."""


def _lines(title: str) -> Progress:
    """Prints at most one line in `SECONDS_A_LINE`."""
    last = time.monotonic()

    def update(done: float, total: float, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_A_LINE:
            last = now
            share = f" ({done / total:.0%})" if total else ""
            print(f"{what or title}{share}", file=sys.stderr, flush=True)

    return update


@contextmanager
def resumable(what: str) -> Iterator[None]:
    """Work that can be interrupted: it is said what is left of it, and that the same command goes on."""
    try:
        yield
    except KeyboardInterrupt as error:
        options = [
            name for option in click.get_current_context().command.params for name in option.secondary_opts
        ]
        over = ", --restart starts over" if "--restart" in options else ""
        raise KeyboardInterrupt(f"{what}: the same command goes on from there{over}") from error


def _steps(title: str) -> Progress:
    """Prints a line for each thing that is done."""
    said: list[str] = []

    def update(done: float, total: float, what: str) -> None:
        text = what or title
        if said[-1:] != [text]:
            said.append(text)
            click.echo(text, err=True)

    return update
