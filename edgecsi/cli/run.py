"""``edgecsi run``: a bundle on an input."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click

from edgecsi.cli.options import bundle_argument, can_be_written, device_option, entry_option, json_option
from edgecsi.cli.output import pairs, progress, report
from edgecsi.errors import UsageError


@click.command()
@bundle_argument
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="X.npy",
    help="Samples, [N, ...] or a single one, in a .npy, .npz or .mat; once for every input, or an .npz that "
    "names them all.",
)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    required=True,
    callback=can_be_written,
    metavar="Y.npy",
    help="Where to write the result, float32 [N, ...]; once for every output.",
)
@entry_option("encoder, decoder or full  [default: full, or the only one].")
@device_option("local, emulate (QEMU), ssh://HOST.")
@json_option
def command(
    bundle: Path,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    entry: str | None,
    device: str,
    json_to: str | None,
) -> None:
    """Run BUNDLE on samples from files and write what it returns.

    \b
    Example:
      edgecsi run csinet-host --entry encoder --input csi.npy -o codewords.npy
    """
    from edgecsi.arrays import read_samples, write_npy
    from edgecsi.bundle import read_bundle
    from edgecsi.device import open_device

    found = read_bundle(bundle)
    entry = found.chosen(entry)
    described = found.entry(entry)
    expected = len(described.outputs)
    if len(outputs) != expected:
        raise UsageError(
            f"{entry} has {expected} output(s), {len(outputs)} file(s) given",
            "every output goes into a file of its own",
            f"give -o {expected} time(s)",
        )
    if same := [path for path in outputs for x in inputs if os.path.realpath(path) == os.path.realpath(x)]:
        raise UsageError(f"{same[0]} is an input", "it would be overwritten", "give another file with -o")
    if len(inputs) == 1 < len(described.inputs) and inputs[0].endswith(".npz"):
        inputs = tuple(f"{inputs[0]}#{tensor.name}" for tensor in described.inputs)
    if len(inputs) != len(described.inputs):
        raise UsageError(
            f"{entry} has {len(described.inputs)} input(s), {len(inputs)} file(s) given",
            f"they are {', '.join(t.name for t in described.inputs)}",
            f"give -i {len(described.inputs)} time(s), or one .npz that names them",
        )
    x = [read_samples(Path(path), t.shape) for path, t in zip(inputs, described.inputs, strict=True)]
    with contextlib.closing(open_device(device)) as where, progress(f"running on {device}"):
        y = where.run(found, entry, x)
    results = y if isinstance(y, tuple) else (y,)
    for path, result in zip(outputs, results, strict=True):
        write_npy(Path(path), result)
    done = {path: list(result.shape) for path, result in zip(outputs, results, strict=True)}
    report(done, lambda: pairs(done), json_to)
