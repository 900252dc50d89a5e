"""What searching the kernels' knobs would add: ``python -m edgecsi.results.knobs``.

Every layer of a network of the kernels' table is timed alone with its default knobs and with others from its kernel's
space, and the best are summed up. A layer alone finds its weights in the nearest cache that holds them; so the sums are
lower than a network's time, and only their ratio says something. The results are kept in docs/results/knobs.json, and
docs/results.md is written again.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecsi import disk
from edgecsi.bench.environment import judge, machine, snapshot
from edgecsi.errors import EdgecsiError, UsageError
from edgecsi.results import script
from edgecsi.results.bundles import words
from edgecsi.results.files import read_all, write_json
from edgecsi.results.page import page
from edgecsi.results.scenarios import KERNELS, SCENARIOS, Scenario

FILE = "knobs.json"
REPEAT = 30
_MOST = 24  # settings tried for a layer
_CALIBRATION = 64


@dataclass(frozen=True)
class Searched:
    """A layer with its default and its best knobs; times in µs."""

    layer: str
    kernel: str
    default: dict[str, int]
    default_us: float
    best: dict[str, int]
    best_us: float


def search(scenario: Scenario) -> list[Searched]:
    """Time the layers of a scenario's entry on this machine, each with up to 24 settings.

    Raises:
        ModelError, RecipeError, DataError, ToolchainError: as a build would.
    """
    import torch

    from edgecsi import target as targets
    from edgecsi.channels.shipped import test_set
    from edgecsi.compress import apply_post_training
    from edgecsi.lower import choose
    from edgecsi.lower.graph import Node
    from edgecsi.models.entries import entries_of
    from edgecsi.models.load import load_model

    loaded = load_model(scenario.model, allow_random=True)
    module = loaded.module
    if scenario.recipe:
        data = torch.from_numpy(test_set(_CALIBRATION)) if scenario.calibration else None
        module = apply_post_training(module, loaded.example_input, scenario.recipe, data)
    entry = entries_of(loaded.name, module, loaded.example_input)[scenario.entry]
    target = targets.load(scenario.target)
    _, chosen = choose(entry.module, (entry.example_input,), scenario.entry, target)
    return [_search_layer(choice, target) for choice in chosen if not isinstance(choice, Node)]


def _search_layer(choice: Any, target: Any) -> Searched:
    from edgecsi.tune.harness import Case, run_cases
    from edgecsi.tune.measure import random_input

    kernel, op, default = choice.kernel, choice.op, dict(choice.knobs)
    space = kernel.space(op, target)
    settings = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    rng = np.random.default_rng(0)
    some = [settings[i] for i in sorted(rng.permutation(len(settings))[:_MOST].tolist())]
    inputs = [random_input(rng, layout.shape, layout.dtype) for layout in op.inputs]
    cases = [Case(kernel, op, inputs, default)]
    for knobs in some:
        if knobs == default:
            continue
        try:
            kernel.emit(op, target, knobs)
        except ValueError:  # a combination that does not fit
            continue
        cases.append(Case(kernel, op, inputs, knobs))
    times = [seconds * 1e6 for _, _, seconds in run_cases(cases, target, repeat=REPEAT)]
    best = min(range(len(cases)), key=times.__getitem__)
    found = dict(cases[best].knobs or {})
    return Searched(op.name, kernel.name, default, times[0], found, times[best])


def searched(only: str = "") -> list[Scenario]:
    """The rows of the kernels' table that are searched: those with a bar, whose name contains ``only``."""
    return [
        scenario
        for scenario in SCENARIOS
        if scenario.group == KERNELS
        and scenario.bar is not None
        and scenario.device == "local"
        and not scenario.batch
        and only in scenario.name
    ]


def search_all(folder: Path, only: str, tell: Callable[[str], None]) -> None:
    """Search every row of :func:`searched`, and keep what is found in ``folder/knobs.json`` as soon as it is there.

    Whatever fails is kept as the result of that row, and the rest goes on.

    Args:
        folder: of the raw results.
        only: part of the names of the rows to search; the others keep what was found before.
        tell: given a line for every row, when it is done.
    """
    rows: dict[str, Any] = read_all(folder).get(Path(FILE).stem, {}).get("rows", {})
    folder.mkdir(parents=True, exist_ok=True)
    for scenario in searched(only):
        before = snapshot()
        row: dict[str, Any] = {"title": scenario.title}
        try:
            layers = search(scenario)
        except EdgecsiError as error:
            row["error"] = words(error)
            tell(f"{scenario.name}: failed: {error.why or error.what}")
        else:
            after = snapshot()
            row["default_us"] = sum(layer.default_us for layer in layers)
            row["best_us"] = sum(layer.best_us for layer in layers)
            row |= {"date": after.date, "validity": asdict(judge(before, after, where=machine()))}
            row["layers"] = [asdict(layer) for layer in layers]
            tell(f"{scenario.name}: {row['default_us']:.2f} µs, {row['best_us']:.2f} with the best knobs")
        rows[scenario.name] = row
        kept = {known.name: rows[known.name] for known in searched() if known.name in rows}
        write_json(folder / FILE, {"kind": "knobs", "machine": asdict(machine()), "rows": kept})


@script.in_words
def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = script.parser("knobs", __doc__, "results.md")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name has it")
    chosen = parser.parse_args(arguments)
    folder: Path = chosen.docs / "results"
    if not searched(chosen.only):
        raise UsageError(
            f"no row has {chosen.only!r} in its name",
            f"there are {', '.join(row.name for row in searched())}",
            "choose another --only",
        )
    search_all(folder, chosen.only, script.say)
    disk.write(chosen.docs / "results.md", page(read_all(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
