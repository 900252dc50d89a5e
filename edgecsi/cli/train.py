"""``edgecsi train``: train a zoo model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecsi.cli.options import complete_models, json_option, model_argument, output_option
from edgecsi.cli.output import pairs, progress, report, resumable

if TYPE_CHECKING:
    from edgecsi.training.loop import Epoch


@click.command()
@model_argument
@click.option("--data", required=True, help="Channels: a .npy, .npz or .mat file, or a spec.")
@output_option("OUT.safetensors", required=True)
@click.option("--epochs", type=click.IntRange(min=1), default=100, show_default=True)
@click.option(
    "--lr",
    type=click.FloatRange(0, 1, min_open=True),
    default=1e-3,
    show_default=True,
    help="Highest learning rate.",
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=100, show_default=True, help="Samples in a batch."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--init",
    shell_complete=complete_models,
    help="Begin with these weights: a name or a file  [default: random].",
)
@click.option(
    "--freeze", multiple=True, metavar="GLOB", help="Layers whose weights do not train; may be repeated."
)
@click.option(
    "--resume/--restart", default=True, show_default=True, help="Go on where a training was interrupted."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads  [default: all].")
@json_option
def command(
    model: str,
    data: str,
    out: Path,
    epochs: int,
    lr: float,
    batch: int,
    seed: int,
    init: str | None,
    freeze: tuple[str, ...],
    resume: bool,
    threads: int | None,
    json_to: str | None,
) -> None:
    """Train the zoo network MODEL on channels; keeps the best epoch, and draws the curve beside OUT.

    A training may be interrupted at any time and goes on with the same command line.

    \b
    Example:
      edgecsi train csinet-cr16 --data umi:24000:seed=7 -o cr16.safetensors
    """
    from edgecsi.training.train import train

    with resumable("every finished epoch is kept"), progress(f"training {model}") as update:
        last = ""

        def tell(epoch: Epoch, total: int) -> None:
            nonlocal last
            last = f": {epoch.score:.4g}, best {epoch.best:.4g}"
            update(epoch.epoch, total, f"epoch {epoch.epoch}/{total}{last}")

        def tell_step(epoch: int, done: int, total: int) -> None:
            update(epoch - 1 + done / total, epochs, f"epoch {epoch}/{epochs}{last}")

        result = train(
            model,
            data,
            out,
            epochs=epochs,
            lr=lr,
            batch=batch,
            seed=seed,
            init=init,
            freeze=freeze,
            resume=resume,
            threads=threads,
            progress=tell,
            step_progress=tell_step,
            data_progress=lambda done, total: update(done, total, f"generating {data}"),
        )
    shown = {
        "weights": result.weights,
        "curve": result.curve_png or result.curve_json,
        "best": f"{result.metric} {result.best:.4g} in epoch {result.best_epoch}",
    }
    report(result, lambda: pairs(shown), json_to)
