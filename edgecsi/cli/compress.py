"""``edgecsi compress``: make a model smaller by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecsi.cli.output import can_be_written, columns, json_option, pairs, progress, report

if TYPE_CHECKING:
    from edgecsi.compress import CompressResult, Progress


@click.command()
@click.argument("model")
@click.option("--recipe", required=True, help="What to do (see `edgecsi recipes`), or a .toml.")
@click.option("--data", required=True, help="Channels to train on (see `edgecsi data`).")
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    required=True,
    callback=can_be_written,
    metavar="OUT.safetensors",
    help="Where to write the compressed model; its curve and state lie beside it.",
)
@click.option("--weights", metavar="FILE", help="Weights to begin with, instead of the model's own.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=100, show_default=True, help="Samples in a batch."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the order of the data."
)
@click.option(
    "--resume/--restart", default=True, show_default=True, help="Go on where a run was interrupted."
)
@json_option
def command(
    model: str,
    recipe: str,
    data: str,
    out: Path,
    weights: str | None,
    batch: int,
    seed: int,
    resume: bool,
    json_to: str | None,
) -> None:
    """Prune, quantise, cluster, factor or distil MODEL by a recipe, for `edgecsi build` to compile.

    A run may be interrupted at any time and goes on with the same command line.

    \b
    Example:
      edgecsi compress csinet-cr4 --recipe int8-dynamic --data cdl-ac:20000:seed=7 -o small.safetensors
      edgecsi build small.safetensors --target rpi4
    """
    from edgecsi.compress import compress

    with progress(f"compressing {model}") as update:

        def tell(now: Progress) -> None:
            done = now.step - 1 + (now.epoch / now.epochs if now.epoch else 1)
            update(done, now.steps, f"{now.kind}, epoch {now.epoch}/{now.epochs}: {now.score:.4g}")

        result = compress(
            model, recipe, data, out, weights=weights, seed=seed, batch=batch, resume=resume, progress=tell
        )
    report(result, lambda: _text(result), json_to)


def _text(result: CompressResult) -> str:
    share = result.bytes_after / result.bytes_before
    summary = {
        "model": result.path,
        result.metric: f"{result.before:.4g} before, {result.after:.4g} after, on held-out data",
        "weights": f"{result.bytes_before:,} bytes before, {result.bytes_after:,} after ({share:.1%})",
    }
    steps = columns(("step", result.metric), [(step.kind, step.score) for step in result.steps])
    layers = columns(("dense layer", "non-zero"), list(result.density.items()))
    return "\n\n".join([pairs(summary), steps, layers])
