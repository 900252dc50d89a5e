"""``edgecsi tune``: measure which kernels and knobs are best, and keep that for the next build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecsi.cli.options import (
    can_be_written,
    device_option,
    entry_option,
    input_shape_option,
    json_option,
    model_argument,
    recipe_option,
    target_option,
)
from edgecsi.cli.output import columns, pairs, progress, report, resumable
from edgecsi.errors import UsageError
from edgecsi.names import split_batch

if TYPE_CHECKING:
    from edgecsi.tune.result import TunedLayer, TuneResult


def decibels(context: click.Context, option: click.Parameter, text: str) -> float:
    """``0.1dB`` or ``0.1``."""
    try:
        found = float(text.lower().removesuffix("db"))
    except ValueError:
        found = -1.0
    if not 0 <= found <= 100:
        raise click.BadParameter(f"{text} is no loss such as 0.1dB", context, option)
    return found


@click.command()
@model_argument
@target_option("Board or CPU to compile for.", required=True)
@device_option(
    "Where to measure; `emulate` ranks by instructions where there is no board. Several boards share the work.",
    "devices",
    multiple=True,
    default=("local",),
)
@entry_option("Search only this one  [default: encoder and decoder, or full].")
@click.option("--weights", metavar="FILE", help="As for build.")
@click.option("--random-weights", is_flag=True, help="As for build.")
@recipe_option("As for build.")
@click.option("--calib", metavar="DATA", help="As for build.")
@input_shape_option("As for build.")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(2, 4096),
    multiple=True,
    metavar="N",
    help="Also entries that take N inputs at once, as for build.",
)
@click.option(
    "--trials",
    type=click.IntRange(1, 100_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Settings to measure for a layer, at most.",
)
@click.option(
    "--minutes", type=click.FloatRange(0.01, 10_000), metavar="M", help="Stop searching after so long."
)
@click.option(
    "--recheck",
    is_flag=True,
    help="Search nothing: measure again what was chosen before, and drop what is not faster any more.",
)
@click.option(
    "--records",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=can_be_written,
    metavar="FILE",
    help="Keep the records there  [default: yours, for this target and CPU].",
)
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE",
    callback=can_be_written,
    help="Also as a page: every layer's default and best, all that was tried, what limits it now.",
)
@click.option(
    "--allow",
    callback=lambda context, option, text: tuple(text.split(",")) if text else (),
    metavar="F,...",
    help="Let layers have fewer bits: dense ones `f16`, `int8` or `int16`, convolutions `int16`. Which, and where, is "
    "decided by time and by --max-loss.",
)
@click.option(
    "--max-loss",
    callback=decibels,
    default="0.1dB",
    show_default=True,
    metavar="X",
    help="What that may cost on --data.",
)
@click.option("--data", default="test", show_default=True, metavar="DATA", help="Your data, as for eval.")
@click.option(
    "--save-recipe",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.toml",
    help="The recipe that says which layers have fewer bits, for build  [default: MODEL-TARGET.toml].",
)
@json_option
def command(
    model: str,
    target: str,
    devices: tuple[str, ...],
    entry: str | None,
    weights: str | None,
    random_weights: bool,
    recipe: str | None,
    calib: str | None,
    input_shape: tuple[int, ...] | None,
    batches: tuple[int, ...],
    trials: int,
    minutes: float | None,
    recheck: bool,
    records: Path | None,
    page: Path | None,
    allow: tuple[str, ...],
    max_loss: float,
    data: str,
    save_recipe: Path | None,
    json_to: str | None,
) -> None:
    """Measure on a device which kernels, formats and knobs are best for MODEL's layers.

    Every measurement is kept at once: Ctrl-C, a crash or a lost device cost none, and the same command goes on. The
    next `edgecsi build` for this target uses what was found; a choice that is not faster in the whole network than
    the default is not kept.

    \b
    Example:
      edgecsi tune csinet-cr4 --target host
      edgecsi tune csinet-cr4 --target rpi4 --device pi4 --minutes 10
      edgecsi tune csinet-cr4 --target rpi4 --device pi-a --device pi-b
      edgecsi tune csinet-cr4 --target host --allow f16,int8 --data mine.npz
    """
    from edgecsi.tune.network import tune
    from edgecsi.tune.precision import tune_with

    options: dict[str, Any] = {
        "device": devices, "entry": entry, "weights": weights, "recipe": recipe, "calib": calib,
        "input_shape": input_shape, "allow_random": random_weights, "trials": trials, "minutes": minutes,
        "records": records, "batches": sorted(set(batches)),
    }  # fmt: skip
    if allow and (recipe is not None or recheck):
        raise UsageError(
            f"--allow and {'--recheck' if recheck else '--recipe'} do not go together",
            "each makes another network" if not recheck else "one searches, the other does not",
            "choose one",
        )
    with resumable("every measurement is kept"), progress(f"tuning {model} for {target}") as update:
        if allow:
            del options["recipe"]
            name = save_recipe or Path(f"{Path(model.partition(':')[0]).stem}-{Path(target).stem}.toml")
            result = tune_with(
                model, target, allow=allow, max_loss_db=max_loss, data=data, recipe_to=name, progress=update, **options
            )  # fmt: skip
        else:
            result = tune(model, target, recheck=recheck, progress=update, **options)
    if page is not None:
        from edgecsi import disk
        from edgecsi.report.html import html
        from edgecsi.report.make import make_report

        disk.write(page, html(make_report([], [result])))
    report(result, lambda: _text(result), json_to)


def _text(result: TuneResult) -> str:
    unit = "µs" if result.means == "measured" else "M instr."
    rows = [
        (f"{layer.layer}{f' (x{len(layer.others) + 1})' if layer.others else ''}", layer.default_us, layer.best_us,
         layer.tried, layer.failed, _what(layer))
        for layer in result.layers
    ]  # fmt: skip
    parts = [columns(("layer", f"default {unit}", f"best {unit}", "tried", "failed", "choice"), rows)]
    if estimated := [layer for layer in result.layers if layer.default_cycles is not None]:
        head = ("hot loops, estimated by llvm-mca", "default M cycles", "best M cycles")
        parts.append(
            columns(head, [(layer.layer, layer.default_cycles, layer.best_cycles) for layer in estimated])
        )
    entries = [
        (name, e.default_us, e.tuned_us, f"{e.ratio:.3f}", f"{e.low:.3f} to {e.high:.3f}")
        for name, e in result.entries.items()
    ]
    if len({split_batch(name)[1] for name in result.entries}) > 1:
        parts.append(_batches(result))
    parts.append(columns(("in place", f"default {unit}", f"tuned {unit}", "ratio", "95 % interval"), entries))
    known = f", {result.known} more were known" if result.known else ""
    summary = {
        "device": f"{result.device} ({result.cpu}), {result.means}",
        "measured": f"{result.measured} settings in {result.seconds:.0f} s{known}",
        "records": result.records,
    }
    if (fewer := result.precision) is not None:
        for layer, what in fewer.formats.items():
            summary[layer] = what
        summary["loss"] = f"{fewer.loss_db:.3f} dB on {fewer.data}, {fewer.max_loss_db:g} allowed"
        summary["in fp32"] = f"{fewer.fp32_us:.4g} {unit} tuned, all entries"
        summary["recipe"] = fewer.recipe or "none: nothing is faster within the loss"
    if result.slowed:
        summary["slowed"] = f"{', '.join(result.slowed)}: measure again with --recheck when that is over"
    if not result.complete:
        summary["unfinished"] = "time was up; the same command goes on"
    return "\n\n".join([*parts, pairs(summary)])


def _batches(result: TuneResult) -> str:
    """What a sample takes, alone and in batches: which of them is best for throughput."""
    each = {name: entry.tuned_us / split_batch(name)[1] for name, entry in result.entries.items()}
    rows = []
    for name, us in each.items():
        best = min(us for other, us in each.items() if split_batch(other)[0] == split_batch(name)[0])
        rows.append((name, us, 1e6 / us, "best" if us == best else ""))
    return columns(("entry", "tuned µs a sample", "samples a second", ""), rows)


def _what(layer: TunedLayer) -> str:
    if not layer.kept:
        return "the default"
    if layer.best.kernel != layer.default.kernel:
        return f"{layer.best.kernel} (was {layer.default.kernel})"
    before, after = dict(layer.default.knobs), dict(layer.best.knobs)
    return " ".join(f"{k}={after[k]} (was {before.get(k)})" for k in after if after[k] != before.get(k))
