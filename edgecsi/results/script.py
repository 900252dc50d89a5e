"""What the scripts of this folder share: how they are called, and how they end."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from edgecsi.errors import EdgecsiError

P = ParamSpec("P")


def parser(name: str, about: str | None, docs: str = "", *, times: bool = False) -> argparse.ArgumentParser:
    """Of ``python -m edgecsi.results.<name>``.

    Args:
        about: the file's docstring. docs: what the folder ``--docs`` holds; without it there is no such option.
        times: it measures times, and so refuses a busy machine without ``--anyway``.
    """
    made = argparse.ArgumentParser(prog=f"python -m edgecsi.results.{name}", description=about)
    if docs:
        made.add_argument("--docs", type=Path, default=Path("docs"), help=f"folder that holds {docs}")
    if times:
        made.add_argument(
            "--anyway", action="store_true", help="measure on a busy machine; results are suspect"
        )
    return made


def in_words(main: Callable[P, int]) -> Callable[P, int]:
    """A script whose errors are said in words, with their exit code."""

    @functools.wraps(main)
    def script(*arguments: P.args, **named: P.kwargs) -> int:
        try:
            return main(*arguments, **named)
        except EdgecsiError as error:
            say(f"error: {error}")
            return error.exit_code

    return script


def say(text: str) -> None:
    """A line about the work, or why it ended."""
    sys.stderr.write(f"{text}\n")
