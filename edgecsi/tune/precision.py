"""Fewer bits for some layers, where that is allowed: the fastest mixture that loses no more on data than it may.

    tune in fp32 ─▶ tune with every allowed format ─▶ what each costs on the data ─▶ choose ─▶ tune the mixture

What comes of it is a recipe, for it changes the network's answers: only a build that names it is any different.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecsi import disk
from edgecsi import target as targets
from edgecsi.errors import DataError, Notice, UsageError
from edgecsi.kernels.records import read_records
from edgecsi.lower.select_kernels import Choice
from edgecsi.names import suggestion
from edgecsi.progress import Progress
from edgecsi.tune.network import tune
from edgecsi.tune.result import Precision, TuneResult
from edgecsi.tune.work import lowered_entries

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Format:
    """The step of a recipe that does it to some layers, and which kind of layers that is: ``dense``, or ``""`` for
    convolutions too."""

    step: str
    kind: str = "dense"


Formats = Mapping[str, Format]
FORMATS: Mapping[str, Formats] = {
    "int16": {"int16": Format('do = "halve"\narithmetic = "int16"\nlayers = {layers}', "")},
    "f16": {"f16 weights": Format('do = "halve"\nlayers = {layers}')},
    "int8": {
        "int8 weights": Format('do = "quantize"\nmode = "weights"\nkeep-fp32 = {others}'),
        "int8, dynamic": Format('do = "quantize"\nmode = "dynamic"\nkeep-fp32 = {others}'),
    },
}
"""What may be allowed, in the order in which steps may follow each other."""
SAMPLES = 512


@dataclass(frozen=True)
class Option:
    """A format for a layer: what it takes, and what it alone loses."""

    layer: str
    format: str
    us: float
    saves_us: float
    loss_db: float


def tune_with(
    model: str,
    target: str,
    *,
    allow: Sequence[str],
    max_loss_db: float,
    data: str,
    recipe_to: Path,
    minutes: float | None = None,
    records: Path | None = None,
    progress: Progress = lambda done, total, what: None,
    **options: Any,
) -> TuneResult:
    """Tune a network whose layers may have fewer bits, and write the recipe that says which.

    Args:
        allow: names of `FORMATS`. max_loss_db: what all together may lose on the data: dB of NMSE, or of the answers'
            difference from those in fp32, as :func:`edgecsi.compress.loss.loss_of`.
        data: inputs, as for :func:`edgecsi.channels.files.load`. recipe_to: the file to write; none is written if nothing
            is gained.
        minutes: for all searches together. options: as for :func:`edgecsi.tune.network.tune`.

    Returns:
        The result for the mixture, with its `precision`; that of fp32 if no mixture is faster.

    Raises:
        UsageError: no such format. DataError: what is lost cannot be told from this data.
        Otherwise as :func:`edgecsi.tune.network.tune`.
    """
    for word in allow:
        if word not in FORMATS:
            raise UsageError(
                f"there is no format {word!r}",
                suggestion(word, FORMATS, f"there are {', '.join(FORMATS)}"),
                "correct --allow",
            )
    if "int16" in allow and targets.load(target).arch != "x86_64":
        raise UsageError(f"{target} does not compute in int16", "kernels for it are for x86", "leave it out")
    network = _Network(model, data, options)
    formats = {
        name: one
        for word in FORMATS
        if word in allow
        for name, one in FORMATS[word].items()
        if network.of(one.kind)
    }
    if not formats:
        raise UsageError(
            f"{model} has no layer in fp32 that --allow is about",
            "all are for dense layers, int16 is for convolutions too",
            "leave --allow out",
        )
    deadline = time.monotonic() + 60 * minutes if minutes else None
    left = len(formats) + 2

    def search(**more: Any) -> TuneResult:
        """One search, with its share of the time."""
        nonlocal left
        share = None if deadline is None else max((deadline - time.monotonic()) / 60 / left, 0.1)
        left -= 1
        return tune(model, target, records=records, progress=progress, minutes=share, **more, **options)

    base = search()
    before = _times(network, target, base, None)
    found: list[Option] = []
    with disk.scratch() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # what a trial loses is no news: it is judged here
        for name, one in formats.items():
            recipe = folder / "all.toml"
            recipe.write_text(_recipe(dict.fromkeys(network.of(one.kind), name), network, formats), "utf-8")
            made = search(settled=True, recipe=str(recipe))
            for layer, us in _times(network, target, made, recipe).items():
                if layer in network.of(one.kind) and us < before.get(layer, 0.0):
                    loss = network.loss({layer: name}, {name: one})
                    found.append(Option(layer, name, us, before[layer] - us, loss))
    chosen = choose(found, max_loss_db, lambda mixture: network.loss(mixture, formats))
    if not chosen:
        return replace(base, precision=Precision("", data, max_loss_db, 0.0, {}, _total(base)))
    disk.write(recipe_to, _recipe(chosen, network, formats))
    made = search(settled=True, recipe=str(recipe_to))
    loss = network.loss(chosen, formats)
    if _total(made) >= _total(base):
        recipe_to.unlink()
        return replace(base, precision=Precision("", data, max_loss_db, 0.0, {}, _total(base)))
    return replace(made, precision=Precision(str(recipe_to), data, max_loss_db, loss, chosen, _total(base)))


def choose(
    options: Sequence[Option], most_db: float, loss: Callable[[dict[str, str]], float]
) -> dict[str, str]:
    """A format for some layers: what saves most for what it loses first, while losses add up to what is allowed; and then
    less again until the mixture itself loses no more."""
    chosen: dict[str, Option] = {}
    for option in sorted(options, key=lambda o: -o.saves_us / (max(o.loss_db, 0.0) + 0.01 * most_db + 1e-9)):
        had = chosen.get(option.layer)
        others = sum(max(o.loss_db, 0.0) for layer, o in chosen.items() if layer != option.layer)
        if (had is None or had.us > option.us) and others + max(option.loss_db, 0.0) <= most_db:
            chosen[option.layer] = option
    while chosen and loss({layer: option.format for layer, option in chosen.items()}) > most_db:
        del chosen[max(chosen, key=lambda layer: chosen[layer].loss_db)]
    return {layer: option.format for layer, option in sorted(chosen.items())}


class _Network:
    """The network in PyTorch: its dense layers and convolutions, and what a mixture loses on the data."""

    def __init__(self, model: str, data: str, options: Mapping[str, Any]) -> None:
        import torch

        from edgecsi.models.load import load_model
        from edgecsi.models.rows import in_rows

        self.model, self.options = model, options
        self.loaded, read = in_rows(
            load_model(
                model,
                options.get("weights"),
                options.get("input_shape"),
                allow_random=options.get("allow_random", False),
            )
        )
        self.module: torch.nn.Module = self.loaded.module
        self.x = torch.from_numpy(read(data, None)[:SAMPLES])
        self.layers = {
            name: "dense" if isinstance(part, torch.nn.Linear) else "conv"
            for name, part in self.module.named_modules()
            if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)
        }

    def of(self, kind: str) -> list[str]:
        """The layers of a kind, by name."""
        return [name for name, its in self.layers.items() if kind in ("", its)]

    def loss(self, mixture: Mapping[str, str], formats: Formats) -> float:
        """What a mixture of formats loses, in dB."""
        from edgecsi.compress import apply_post_training
        from edgecsi.compress.loss import loss_of
        from edgecsi.compress.recipe import parse

        recipe = parse(_recipe(mixture, self, formats), "mixture")
        mixed = apply_post_training(self.module, self.loaded.example_input, recipe, self.x)
        lost = loss_of(self.module.eval(), mixed, self.x)
        if lost is None:
            raise DataError(
                f"what {self.model} loses cannot be told", "it answers nothing on this data that could get worse",
                "give data that the network was trained for",
            )  # fmt: skip
        return lost[0]


def _recipe(mixture: Mapping[str, str], network: _Network, formats: Formats) -> str:
    """The TOML of a mixture: a step for each format that is used."""
    parts = ['description = "Chosen by edgecsi tune, layer by layer, by time and by loss on data."']
    for name, one in formats.items():
        layers = network.of(one.kind)
        used = [layer for layer in layers if mixture.get(layer) == name]
        others = [layer for layer in layers if mixture.get(layer) != name]
        if used:
            parts.append("[[steps]]\n" + one.step.format(layers=_list(used), others=_list(others)))
    return "\n\n".join(parts) + "\n"


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _times(network: _Network, target: str, result: TuneResult, recipe: Path | None) -> dict[str, float]:
    """What each layer takes, by its name in the whole network: measured, as the records say."""
    board = targets.load(target)
    records = read_records([Path(result.records)])
    o = network.options
    entries = lowered_entries(
        network.model, board, o.get("entry"), o.get("weights"), None if recipe is None else str(recipe), o.get("calib"),
        o.get("input_shape"), o.get("allow_random", False),
    )  # fmt: skip
    found: dict[str, float] = {}
    for entry, lowered in entries.items():
        for choice in lowered.chosen:
            if isinstance(choice, Choice):
                name = next(
                    (n for n in (f"{entry}.{choice.op.name}", choice.op.name) if n in network.layers), None
                )
                if name is not None and (known := records.choice(choice.op, board)) is not None:
                    found[name] = found.get(name, 0.0) + known[2].us
    return found


def _total(result: TuneResult) -> float:
    """Of all entries, in µs (or millions of instructions)."""
    return sum(entry.tuned_us for entry in result.entries.values())
