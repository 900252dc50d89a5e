"""Reading results to be looked at: files of ``edgecsi bench``, folders of them, and the files of docs/results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.bench.result import Result, decode_result, read_tree
from edgecsi.errors import DataError
from edgecsi.report.distribution import Distribution, of_samples, of_summary
from edgecsi.tune.result import TuneResult, decode_tuned

MOST = 500
"""Results that are looked at together."""
LONGEST = 10_000
"""Names, reasons, commands: no text of a result is longer, but the program."""


@dataclass(frozen=True)
class Shown:
    """A result and what a page needs of its samples, which are not kept in it.

    Attributes:
        name: what to call it: its file's name.
        result: without samples.
        samples: ns of every warm call in order, by engine; empty where the file keeps a histogram only.
        rounds: calls in each round, by engine.
        distributions: warm calls, by engine.
        commands: that measure it again.
        weights: ``trained`` or ``random``; empty if not known.
    """

    name: str
    result: Result
    samples: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    rounds: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    distributions: dict[str, Distribution] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    weights: str = ""

    @property
    def label(self) -> str:
        """The name and, unless it is ``full`` or in the name, the entry."""
        entry = self.result.entry
        return self.name if entry == "full" or entry in self.name else f"{self.name} {entry}"


def read_shown(paths: Sequence[Path]) -> list[Shown]:
    """Results in the order given; of a folder, every result in it, by date.

    Files of a folder that are no results are passed over, broken results are not.

    Raises:
        DataError: no result among them, a broken one, or too many.
    """
    found, _ = read(paths, tuned=False)
    return found


def read(paths: Sequence[Path], *, tuned: bool = True) -> tuple[list[Shown], list[TuneResult]]:
    """As :func:`read_shown`; with ``tuned``, also what `edgecsi tune --json` wrote, which may be all there is."""
    found: list[Shown] = []
    searches: list[TuneResult] = []
    for path in paths:
        folder = path.is_dir()
        files = sorted(path.glob("*.json")) if folder else [path]
        if len(files) > MOST:
            raise DataError(f"{path} has {len(files)} files", f"{MOST} can be shown", "name fewer")
        inside = []
        for file in files:
            tree = read_tree(file)
            if tuned and isinstance(tree, dict) and tree.get("kind") == "edgecsi tune":
                searches.append(_decode_tuned(tree, file))
            elif (shown := _decode(tree, file)) is not None:
                inside.append(shown)
            elif not folder:
                raise DataError(
                    f"{path} is not a result of edgecsi bench",
                    "it has no kind 'edgecsi bench' or 'scenario'",
                    "write one with edgecsi bench --json FILE",
                )
        found += sorted(inside, key=lambda shown: shown.result.after.date) if folder else inside
    if not found and not searches:
        raise DataError(
            "there is no result of edgecsi bench to show",
            f"{', '.join(map(str, paths)) or 'nothing'} has none",
            "write one with edgecsi bench --json FILE or --save FOLDER",
        )
    if len(found) > MOST:
        raise DataError(f"{len(found)} results were given", f"{MOST} can be shown", "name fewer")
    return _unique(found), searches


def _decode_tuned(tree: Any, path: Path) -> TuneResult:
    try:
        _check_texts(tree)
    except ValueError as error:
        raise DataError(f"{path} is not a result of edgecsi tune", str(error), "tune again") from None
    return decode_tuned(tree, path)


def _decode(tree: Any, path: Path) -> Shown | None:
    if not isinstance(tree, dict) or tree.get("kind") not in ("edgecsi bench", "scenario"):
        return None
    try:
        commands: tuple[str, ...] = ()
        weights = ""
        inner = tree
        if tree["kind"] == "scenario":
            if "result" not in tree:
                return None  # it failed: there is nothing to show
            inner, weights = tree["result"], str(tree.get("weights", ""))
            commands = tuple(str(command) for command in tree.get("commands", ()))
        samples, rounds, distributions = _take_samples(inner)
        _check_texts({k: v for k, v in inner.items() if k != "program"})
        result = decode_result(inner, path)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path} is not a result of edgecsi bench", str(error)[:200], "measure it again"
        ) from None
    return Shown(path.stem, result, samples, rounds, distributions, commands or result.commands, weights[:20])


def _take_samples(
    tree: dict[str, Any],
) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]], dict[str, Distribution]]:
    """Takes the samples out of a result's JSON, so that no object is made of each."""
    samples: dict[str, NDArray[np.int64]] = {}
    rounds: dict[str, NDArray[np.int64]] = {}
    distributions: dict[str, Distribution] = {}
    for engine in tree.get("engines", ()):
        name = str(engine["name"])[:100]
        if isinstance(engine["samples"], list):
            samples[name] = _whole_numbers(engine["samples"])
            rounds[name] = _whole_numbers(engine["rounds"])
            if samples[name].size == 0 or rounds[name].sum() != samples[name].size:
                raise ValueError(f"the rounds of {name} do not hold its samples")
            distributions[name] = of_samples(samples[name])
        else:
            distributions[name] = of_summary(engine["samples"])
        engine |= {"samples": [], "cold_samples": [], "rounds": []}
    return samples, rounds, distributions


def _whole_numbers(values: Any) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype != np.int64) or (array < 0).any():
        raise ValueError("samples are whole numbers of nanoseconds")
    return array.astype(np.int64)


def _check_texts(tree: Any) -> None:
    level = [tree]
    while level:
        item = level.pop()
        if isinstance(item, str) and len(item) > LONGEST:
            raise ValueError(f"a text has more than {LONGEST:,} characters")
        level += [*item, *item.values()] if isinstance(item, dict) else item if isinstance(item, list) else []


def _unique(found: list[Shown]) -> list[Shown]:
    """Files of different folders may have one name: number them."""
    seen: dict[str, int] = {}
    unique = []
    for shown in found:
        seen[shown.name] = seen.get(shown.name, 0) + 1
        unique.append(
            shown if seen[shown.name] == 1 else replace(shown, name=f"{shown.name} ({seen[shown.name]})")
        )
    return unique
