"""``edgecsi bench``: how fast a bundle is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecsi import disk
from edgecsi.cli.output import can_be_written, json_option, progress, report

if TYPE_CHECKING:
    from torch import nn

    from edgecsi.bundle import Manifest


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--entry", default="full", show_default=True, help="encoder, decoder or full.")
@click.option(
    "--device",
    default="local",
    show_default=True,
    help="local, ssh://HOST, or emulate (counts instructions).",
)
@click.option("--against", default="", metavar="ENGINES", help="onnxruntime,openvino,litert,executorch,torch")
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Measure samples a second instead, every thread taking N at once.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="T",
    help="Threads for --batch.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 3600),
    metavar="S",
    help="Measure every engine for S seconds  [default: 10, or 0.5 with --quick].",
)
@click.option("--quick", is_flag=True, help="Measure less; the report says so.")
@click.option("--model", help="PyTorch model for the other engines, where the bundle's is none of the zoo.")
@click.option("--weights", metavar="FILE", help="Weights of the model, if the bundle was built with others.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="PNG",
    callback=can_be_written,
    help="Draw the distributions.",
)
@click.option(
    "--limits", is_flag=True, help="Measure no bundle, but what this machine's core can do at best."
)
@json_option
def command(
    bundle: Path | None,
    entry: str,
    device: str,
    against: str,
    batch: int | None,
    threads: int,
    seconds: float | None,
    quick: bool,
    model: str | None,
    weights: str | None,
    plot: Path | None,
    limits: bool,
    json_to: str | None,
) -> None:
    """Measure the latency of BUNDLE: one thread, one call a sample, percentiles with confidence intervals.
    With --batch, measure its throughput.

    With --against, other engines run the same weights on the same input in turns with it. On `emulate` there
    are no latencies, but the exact number of instructions.

    \b
    Example:
      edgecsi bench csinet-host --against onnxruntime --json bench.json
      edgecsi bench csinet-host --entry decoder --batch 64 --threads 2 --against onnxruntime
      edgecsi bench --limits
    """
    if threads > 1 and batch is None:
        raise click.UsageError("--threads needs --batch: a single inference runs on one thread")
    if batch is not None and device != "local":
        raise click.UsageError("--batch is measured on --device local only")
    if limits is (bundle is not None):
        raise click.UsageError("give either a BUNDLE or --limits")
    if bundle is None:
        _limits(json_to)
        return
    from edgecsi.bench.api import run_bench
    from edgecsi.bench.result import to_json
    from edgecsi.report.text import table

    def load_module(manifest: Manifest) -> nn.Module:
        return _fp32_model(manifest, model, weights)

    engines = [name.strip() for name in against.split(",") if name.strip()]
    with progress("measuring") as update:
        result = run_bench(
            bundle,
            entry=entry,
            device=device,
            quick=quick,
            seconds=seconds,
            batch=batch,
            threads=threads,
            against=engines,
            load_module=load_module,
            progress=update,
        )
    if json_to == "-":
        click.echo(to_json(result), nl=False)
    else:
        click.echo(table(result))
        if json_to is not None:
            disk.write(Path(json_to), to_json(result))
    if plot is not None:
        from edgecsi.report.plot import plot as draw

        draw(result, plot)


def _fp32_model(manifest: Manifest, model: str | None, weights: str | None) -> nn.Module:
    """What the other engines run: the bundle's model, or where that has layers of edgecsi's own (int8,
    clustered), the uncompressed network, which costs the same with any weights."""
    import json

    from edgecsi.evaluate import reference_model
    from edgecsi.models import registry
    from edgecsi.models.compressed.layers import CompressedLayer

    loaded = reference_model(manifest, model, weights)
    if any(isinstance(part, CompressedLayer) for part in loaded.module.modules()):
        return registry.create(loaded.name, **json.loads(loaded.metadata.get("config", "{}")))
    return loaded.module


def _limits(json_to: str | None) -> None:
    from edgecsi.bench.limits import measure_limits
    from edgecsi.report.text import limits_table

    found = measure_limits()
    report(found, lambda: limits_table(found), json_to)
