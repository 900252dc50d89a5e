"""What searching the kernels' knobs would add: ``python -m edgecsi.bench.knobs [--only TEXT]``.

Every layer of a network of the kernels' table is timed alone with its default knobs and with others from its kernel's
space, and the best are summed up. A layer alone finds its weights in the nearest cache that holds them; so the sums are
lower than a network's time, and only their ratio says something.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.bench.environment import judge, machine, snapshot
from edgecsi.bench.results import write_json
from edgecsi.bench.scenarios import KERNELS, SCENARIOS, Scenario
from edgecsi.errors import EdgecsiError

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
    from edgecsi.models.load import entries_of, load_model

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
    from edgecsi.kernels.harness import Case, run_cases

    kernel, op, default = choice.kernel, choice.op, dict(choice.knobs)
    space = kernel.space(op, target)
    settings = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    rng = np.random.default_rng(0)
    some = [settings[i] for i in sorted(rng.permutation(len(settings))[:_MOST].tolist())]
    inputs = [_random(rng, layout.shape, layout.dtype) for layout in op.inputs]
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


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    if dtype == "float32":
        return rng.standard_normal(shape, np.float32)
    return rng.integers(0, 256, shape).astype(dtype)


def search_all(folder: Path, only: str, tell: Callable[[str], None]) -> None:
    """Search every scenario of the kernels' table that has a bar, and keep what is found in ``folder/knobs.json``."""
    path = folder / FILE
    stored: dict[str, Any] = {"kind": "knobs", "machine": asdict(machine()), "rows": {}}
    if path.is_file():
        stored["rows"] = json.loads(path.read_text("utf-8"))["rows"]
    for scenario in SCENARIOS:
        if scenario.group != KERNELS or scenario.bar is None or scenario.device != "local" or scenario.batch:
            continue
        if only not in scenario.name:
            continue
        before = snapshot()
        try:
            layers = search(scenario)
        except EdgecsiError as error:
            tell(f"{scenario.name}: {error.what}")
            continue
        after = snapshot()
        default, best = sum(layer.default_us for layer in layers), sum(layer.best_us for layer in layers)
        stored["rows"][scenario.name] = {
            "title": scenario.title, "default_us": default, "best_us": best, "date": after.date,
            "validity": asdict(judge(before, after)), "layers": [asdict(layer) for layer in layers],
        }  # fmt: skip
        tell(f"{scenario.name}: {default:.2f} µs, {best:.2f} with the best knobs")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, stored)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m edgecsi.bench.knobs", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of results.md")
    options = parser.parse_args(arguments)
    search_all(options.docs / "results", options.only, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main(sys.argv[1:])
