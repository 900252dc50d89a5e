"""``edgecsi compress``: make a model smaller by a recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecsi.cli.options import json_option, model_argument, output_option, recipe_option
from edgecsi.cli.output import columns, note, pairs, progress, report, resumable

if TYPE_CHECKING:
    from edgecsi.compress import CompressProgress, CompressResult, LayerCosts


@click.command()
@model_argument
@recipe_option("What to do (see `edgecsi recipes`), or a .toml.", required=True)
@click.option(
    "--data", metavar="DATA", help="Inputs to learn from (see `edgecsi data`); a few recipes need none."
)
@output_option(
    "OUT.safetensors", "Where to write the compressed model; its state lies beside it while it runs."
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
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Write the result even if it lost more than 3 dB (NMSE, or bit errors).",
)
@click.option(
    "--sensitivity",
    is_flag=True,
    help="Write no model; say what the recipe costs in each layer alone, and which to keep in fp32.",
)
@json_option
def command(
    model: str,
    recipe: str,
    data: str | None,
    out: Path | None,
    weights: str | None,
    batch: int,
    seed: int,
    resume: bool,
    accept_loss: bool,
    sensitivity: bool,
    json_to: str | None,
) -> None:
    """Prune, quantise, cluster, factor or distil MODEL by a recipe, for `edgecsi build` to compile.

    A run may be interrupted at any time and goes on with the same command line.

    \b
    Example:
      edgecsi compress csinet-cr4 --recipe int8-weights -o small.safetensors
      edgecsi build small.safetensors --target rpi4
      edgecsi compress csinet-cr4 --recipe prune90 --data x.npz -o few.safetensors
      edgecsi compress csinet-cr4 --recipe int8-static --data x.npz --sensitivity
    """
    from edgecsi.compress import compress, layer_costs
    from edgecsi.compress.recipe import load

    if sensitivity is (out is not None):
        raise click.UsageError("give either -o OUT.safetensors or --sensitivity")
    if out is None:
        if data is None:
            raise click.UsageError("--sensitivity needs --data: what a layer costs is measured on it")
        with progress(f"measuring {model}") as update:
            costs = layer_costs(model, recipe, data, weights=weights, seed=seed, progress=update)
        report(costs, lambda: _costs_text(costs), json_to)
        return
    if data is None and not load(recipe).needs_data:
        note(
            "without --data nothing is fitted, and the loss is that on channels that ship, or on random numbers"
        )
    with resumable("what is finished is kept"), progress(f"compressing {model}") as update:

        def tell(now: CompressProgress) -> None:
            if now.phase:
                share = now.done / now.total if now.total else 0.0
                part = share / (now.epochs + 1)
                update(now.step - 1 + part, now.steps, f"{now.kind}: {now.phase}")
                return
            done = now.step - 1 + (now.epoch / now.epochs if now.epoch else 1)
            update(done, now.steps, f"{now.kind}, epoch {now.epoch}/{now.epochs}: {now.score:.4g}")

        result = compress(
            model,
            recipe,
            data,
            out,
            weights=weights,
            seed=seed,
            batch=batch,
            resume=resume,
            accept_loss=accept_loss,
            progress=tell,
            data_progress=lambda done, total: update(done, total, f"generating {data}"),
        )
    report(result, lambda: _text(result, model, data, load(recipe).example_target), json_to)


def _text(result: CompressResult, model: str, data: str | None, target: str) -> str:
    share = result.bytes_after / result.bytes_before
    summary = {
        "model": result.path,
        **_accuracy(result, "held-out data" if data else "what stands in for data"),
        "weights": f"{result.bytes_before:,} bytes before, {result.bytes_after:,} after ({share:.1%})",
    }
    steps = columns(("step", result.metric), [(step.kind, step.score) for step in result.steps])
    layers = columns(("dense layer", "non-zero"), list(result.density.items()))
    # a network of the user's own is code, which runs only if it is named
    given = f"{shlex.quote(model)} --weights {shlex.quote(str(result.path))}" if ":" in model else result.path
    build = f"next: edgecsi build {given} --target {target}"
    return "\n\n".join([pairs(summary), steps, layers, build])


def _accuracy(result: CompressResult, where: str) -> dict[str, str]:
    from edgecsi.compress.loss import loss_db
    from edgecsi.verdict import Accuracy

    if result.metric == "nmse_db":
        lines = Accuracy(result.before, result.after, None).named()
        lines["loss"] = Accuracy(result.before, None, result.after).named()["loss"]
    else:
        lines = {
            "fp32 network": f"{result.metric} {result.before:.4g}",
            "compressed network in PyTorch": f"{result.metric} {result.after:.4g}",
            "loss": f"{round(loss_db(result.metric, result.before, result.after), 2) + 0.0:.2f} dB",
        }
    return lines | {"fp32 network": f"{lines['fp32 network']} on {where}"}


def _costs_text(costs: LayerCosts) -> str:
    unit = "dB" if costs.metric == "nmse_db" else costs.metric
    rows = [(cost.step, cost.layer, f"{cost.score:.4g}", f"{cost.cost:+.3g}") for cost in costs.layers]
    lines = [
        f"{costs.metric} {costs.before:.4g} on held-out data; with one layer changed, without training:",
        columns(("step", "layer", costs.metric, f"cost ({unit})"), rows),
    ]
    if any(cost.step == "quantize" for cost in costs.layers):
        kept = ", ".join(f'"{name}"' for name in costs.keep_fp32)
        lines.append(
            f"keep-fp32 = [{kept}]\n"
            f"the other int8 layers then cost no more than {costs.budget:.3g} {unit}, if costs add up"
        )
    return "\n\n".join(lines)
