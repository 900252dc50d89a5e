"""``edgecsi compare``: did it become faster or slower?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecsi.cli.options import json_option
from edgecsi.cli.output import report, room
from edgecsi.errors import CheckFailed, DataError

if TYPE_CHECKING:
    from edgecsi.report.compare import BeforeAfter
    from edgecsi.report.read import Shown


def _share(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """``5%`` or ``0.05`` as 0.05."""
    if value is None:
        return None
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", value.strip())):
        raise click.BadParameter(f"{value!r} is no share; give one such as 5%")
    return float(found[1]) / (100 if found[2] else 1)


@click.command()
@click.argument(
    "results", nargs=-1, required=True, metavar="BEFORE AFTER...", type=click.Path(path_type=Path)
)
@click.option(
    "--fail-above", metavar="SHARE", callback=_share, help="Exit with 6 if it became slower by more, 5% say."
)
@click.option(
    "--metric",
    type=click.Choice(["median", "p90", "p95", "p99"]),
    default="median",
    show_default=True,
    help="Of the calls of a run.",
)
@json_option
def command(results: tuple[Path, ...], fail_above: float | None, metric: str, json_to: str | None) -> None:
    """Hold a result of `edgecsi bench --json` against an earlier one: better, worse, same, or cannot tell.

    Two folders (of `bench --save`) are compared entry by entry, the latest result of each. Results of different
    machines, protocols or kinds are refused. With one folder, or more than two results, the latencies are listed by
    date and steps are found.

    \b
    Example:
      edgecsi compare before.json after.json --fail-above 5%
      edgecsi compare before/ after/
      edgecsi compare history/
    """
    from edgecsi.report.compare import compare, pairs, text
    from edgecsi.report.read import read_shown

    if len(results) == 2 and all(path.is_dir() for path in results):
        both, notes = pairs(*(read_shown([path]) for path in results))
        entries = [compare(*pair, metric) for pair in both]
        words = "\n\n".join([*(text(one, room()) for one in entries), *(f"NOTE: {note}" for note in notes)])
        report({"entries": entries, "notes": notes}, lambda: words, json_to)
    else:
        found = read_shown(results)
        if len(found) != 2:
            _trend(found, fail_above, json_to)
            return
        entries = [compare(found[0], found[1], metric)]
        report(entries[0], lambda: text(entries[0], room()), json_to)
    if fail_above is not None:
        _gate(entries, fail_above)


def _gate(entries: Sequence[BeforeAfter], fail_above: float) -> None:
    """Exit code 6 for what is certainly slower by more."""
    from edgecsi.report.compare import certain

    if worse := [(one, found) for one in entries if (found := one.worse_than(fail_above))]:
        raise CheckFailed(
            f"{', '.join(one.after for one, _ in worse)} is slower than before by more than {100 * fail_above:g}%",
            "; ".join(f"{c.what}: {c.before} -> {c.after}" for _, found in worse for c in found),
            "look at the layers above, or at both with edgecsi report",
        )
    if not all(certain(one.changes) for one in entries):
        click.echo("not certain, so it does not fail: measure longer, or on a quieter machine", err=True)


def _trend(found: Sequence[Shown], fail_above: float | None, json_to: str | None) -> None:
    from edgecsi.cli.output import columns
    from edgecsi.report.trend import HEAD, histories, rows

    lines = histories(found)
    if not lines:
        raise DataError(
            f"{len(found)} results make no history",
            "it takes two results to compare, or three of one bundle and entry on one machine at different times",
            "give two results, or look at them with edgecsi report",
        )
    tree = [
        {"what": h.what, "steps": h.steps, "runs": [dict(zip(HEAD, r, strict=True)) for r in rows(h)]}
        for h in lines
    ]
    report(tree, lambda: "\n\n".join(f"{h.what}\n{columns(HEAD, rows(h))}" for h in lines), json_to)
    for history in lines:
        last = history.last_step
        if fail_above is not None and last is not None and last.change > fail_above:
            raise CheckFailed(
                f"{history.what} became slower by {last.change:.1%}",
                f"since {history.results[last.index].name}",
                "look at it with edgecsi report",
            )
