"""``edgecsi run``: a bundle on an input."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from edgecsi.cli.output import json_option, pairs, progress, report
from edgecsi.errors import UsageError


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="X.npy",
    help="Samples, float32 [N, ...]; once for every input of the entry.",
)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    required=True,
    metavar="Y.npy",
    help="Where to write the result, float32 [N, ...]; once for every output.",
)
@click.option("--entry", default="full", show_default=True, help="encoder, decoder or full.")
@click.option("--device", default="local", show_default=True, help="local, emulate (QEMU), ssh://HOST.")
@json_option
def command(
    bundle: Path,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    entry: str,
    device: str,
    json_to: str | None,
) -> None:
    """Run BUNDLE on samples from .npy files and write what it returns.

    \b
    Example:
      edgecsi run csinet-host --entry encoder --input csi.npy -o codewords.npy
    """
    from edgecsi.bundle import read_bundle
    from edgecsi.cli.arrays import read_npy, write_npy
    from edgecsi.device import open_device

    found = read_bundle(bundle)
    expected = len(found.entry(entry).outputs)
    if len(outputs) != expected:
        raise UsageError(
            f"{entry} has {expected} output(s), {len(outputs)} file(s) given",
            "every output goes into a file of its own",
            f"give -o {expected} time(s)",
        )
    with contextlib.closing(open_device(device)) as where, progress(f"running on {device}"):
        y = where.run(found, entry, [read_npy(Path(path)) for path in inputs])
    results = y if isinstance(y, tuple) else (y,)
    for path, result in zip(outputs, results, strict=True):
        write_npy(Path(path), result)
    done = {path: list(result.shape) for path, result in zip(outputs, results, strict=True)}
    report(done, lambda: pairs(done), json_to)
