"""``edgecsi build``: model to bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecsi.cli.inspect import TimedLayers, plan_table, time_layers
from edgecsi.cli.options import (
    entry_option,
    folder_can_be_written,
    input_shape_option,
    json_option,
    model_argument,
    output_option,
    recipe_option,
    target_option,
)
from edgecsi.cli.output import columns, pairs, progress, report

if TYPE_CHECKING:
    from edgecsi.pipeline import BuildResult


@click.command()
@model_argument
@target_option("Board or CPU (see `edgecsi targets`), or a .toml.", required=True)
@output_option("DIR", "Folder of the bundle  [default: NAME-TARGET].", folder=True)
@entry_option("Build only this one: encoder, decoder or full  [default: all].")
@click.option(
    "--keep-output",
    "keep_outputs",
    multiple=True,
    metavar="NAME",
    help="Of entries with several outputs, build this one and no others; may be given again  [default: all].",
)
@click.option(
    "--weights", metavar="FILE", help="Take the weights from a .safetensors or .pth; ENCODER,DECODER too."
)
@click.option(
    "--random-weights", is_flag=True, help="Seeded random weights for a zoo network that ships none."
)
@recipe_option("Compression that needs no training, such as int8-dynamic or int8-wide.")
@click.option(
    "--calib",
    metavar="DATA",
    help="Channels like those to come, to fit int8 layers to: int8-static and int8-wide need them, int8-dynamic is "
    "more accurate with them.",
)
@input_shape_option("Where the factory gives no example.")
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(2, 1024),
    metavar="N",
    help="Also build entries that take N inputs at once: --batch 8 --batch 64.",
)
@click.option(
    "--name",
    help="Name of the bundle and prefix of its C functions  [default: the model's and the recipe's].",
)
@click.option(
    "--explain", is_flag=True, help="Show the plan: every layer's kernel and why, knobs, bytes, MACs."
)
@click.option(
    "--measure",
    is_flag=True,
    help="With --explain: also time every layer on this machine, and say how near it is to what is possible.",
)
@click.option(
    "--sign", type=click.Path(path_type=Path), metavar="KEY", help="Sign the bundle with this SSH key."
)
@click.option(
    "--build-number",
    type=click.IntRange(0, 2**53),
    metavar="N",
    help="Count your product's builds: a device that has N refuses lower ones.",
)
@click.option(
    "--records",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Use these tuning records too, beside those that ship and your own.",
)
@click.option("--no-records", is_flag=True, help="Use no tuning records: every choice is the predicted one.")
@click.option("--dry-run", is_flag=True, help="Plan only: nothing is compiled or written.")
@click.option(
    "--dump-ir",
    type=click.Path(path_type=Path),
    callback=folder_can_be_written,
    metavar="DIR",
    help="Write the IR after every pass.",
)
@json_option
def command(
    model: str,
    target: str,
    out: Path | None,
    entry: str | None,
    keep_outputs: tuple[str, ...],
    weights: str | None,
    random_weights: bool,
    recipe: str | None,
    calib: str | None,
    input_shape: tuple[int, ...] | None,
    batches: tuple[int, ...],
    name: str | None,
    explain: bool,
    measure: bool,
    sign: Path | None,
    build_number: int | None,
    records: tuple[Path, ...],
    no_records: bool,
    dry_run: bool,
    dump_ir: Path | None,
    json_to: str | None,
) -> None:
    """Compile MODEL for a target, check the library against PyTorch, and write the bundle.

    MODEL is a name of the zoo (see `edgecsi models`), package.module:factory, path/file.py:factory, or a
    .safetensors file that `train` or `compress` wrote. A factory takes no arguments and returns a
    torch.nn.Module, or (module, example_input).

    \b
    Example:
      edgecsi build csinet-cr4 --target rpi4 -o csinet-pi
      edgecsi build my_net.py:make --input-shape 1,2,32,32 --target host --explain
    """
    if measure and (dry_run or not explain):
        raise click.UsageError("--measure needs --explain, and a library: leave --dry-run away")
    if records and no_records:
        raise click.UsageError("--records and --no-records contradict each other")
    from edgecsi.bundle.manifest import to_json
    from edgecsi.pipeline import BuildOptions, build

    options = BuildOptions(
        model=model,
        target=target,
        out=out,
        entry=entry,
        outputs=keep_outputs,
        weights=weights,
        recipe=recipe,
        calib=calib,
        input_shape=input_shape,
        dump_ir=dump_ir,
        name=name,
        batches=tuple(sorted(set(batches))),
        dry_run=dry_run,
        allow_random=random_weights,
        sign=sign,
        build_number=build_number,
        records=None if no_records else records,
    )
    with progress(f"building {model} for {target}") as update:
        result = build(options, update)
    measured = time_layers(result.bundle) if measure and result.bundle is not None else None
    tree = to_json(result.manifest) | ({"measured": measured.layers} if measured else {})
    report(tree, lambda: _text(result, explain, measured), json_to)


def _text(result: BuildResult, explain: bool, measured: TimedLayers | None) -> str:
    manifest, bundle = result.manifest, result.bundle
    parts = []
    if explain:
        parts += [f"{name}\n{plan_table(entry)}" for name, entry in sorted(manifest.entries.items())]
    if measured is not None:
        parts.append(measured.text())
    rows = []
    for name, entry in sorted(manifest.entries.items()):
        checked = manifest.check.entries.get(name)
        times = [layer.predicted_us for layer in entry.layers]
        estimate = sum(time for time in times if time is not None) if None not in times else None
        difference = checked.max_rel_diff if checked else None
        rows.append(
            (name, len(entry.layers), entry.macs, entry.weight_bytes, entry.workspace, estimate, difference)
        )
    head = ("entry", "layers", "MACs", "weights B", "workspace B", "estimated µs", "difference to PyTorch")
    parts.append(columns(head, rows))
    if bundle is None:
        parts.append(f"{manifest.name} for {manifest.target.id}: a dry run, nothing was written")
        return "\n\n".join(parts)
    check = manifest.check
    verdict = f"{check.status} on {check.samples} samples of {check.data}" if check.samples else check.reason
    summary: dict[str, object] = {
        "bundle": bundle.path,
        "target": f"{manifest.target.id} ({manifest.target.mcpu})",
        "file": f"{manifest.library}, {manifest.files[manifest.library].bytes:,} bytes",
        "check": verdict if check.status == "passed" else f"not run: {verdict}",
    }
    summary |= manifest.accuracy.named()
    return "\n\n".join([*parts, pairs(summary)])
