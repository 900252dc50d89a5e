"""``edgecsi data``: channels to train and test on."""

from __future__ import annotations

from pathlib import Path

import click

from edgecsi.cli.options import can_be_written, json_option
from edgecsi.cli.output import note, pairs, progress, report


def _channel_file(context: click.Context, option: click.Parameter, path: Path) -> Path:
    """Refuse before the work what could not be written after it."""
    if path.suffix not in (".npz", ".npy"):
        raise click.BadParameter(f"{path} is neither .npz nor .npy")
    can_be_written(context, option, path)
    return path


_output = click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    required=True,
    callback=_channel_file,
    metavar="FILE",
    help="A .npz (compressed) or .npy.",
)


@click.group()
def command() -> None:
    """Generate, convert and describe channels.

    DATA is everywhere a .npy, .npz or .mat file (FILE#NAME for one array of several), a generator's spec such as
    cdl-ac:20000:seed=7 (profile, samples, seed), or `test` for the set that ships with edgecsi.

    \b
    Example:
      edgecsi data generate cdl-ac:20000:seed=7 -o train.npz
      edgecsi data info train.npz
    """


@command.command()
@click.argument("spec")
@_output
@json_option
def generate(spec: str, out: Path, json_to: str | None) -> None:
    """Generate the channels of SPEC, PROFILE:COUNT[:seed=N], and write them as .npz or .npy.

    Profiles: cdl-a ... cdl-e (3GPP TR 38.901 clustered delay lines), mixes such as cdl-ac, and umi (drops in
    an urban micro cell). The same spec always gives the same channels.

    \b
    Example:
      edgecsi data generate cdl-c:1000:seed=1 -o cdl-c.npz
    """
    from edgecsi.channels import files
    from edgecsi.channels.generate import generate as make
    from edgecsi.channels.generate import parse_spec

    wanted = parse_spec(spec)
    with progress(f"generating {wanted}") as update:
        samples = make(wanted, progress=lambda done, total: update(done, total, ""))
    files.write(out, samples)
    found = {"file": out, "spec": str(wanted), **vars(files.describe(samples))}
    report(found, lambda: pairs(found), json_to)


_variable = click.option(
    "--variable", metavar="NAME", help="The array to take, of a .mat or .npz file that holds several."
)


@command.command()
@click.argument("data")
@_output
@_variable
@click.option(
    "--scale",
    is_flag=True,
    help="Bring every sample into [0, 1], 0.5 meaning zero, as networks of the zoo take it; complex arrays become "
    "real and imaginary parts.",
)
@click.option(
    "--samples-last",
    is_flag=True,
    help="The last dimension counts the samples, not the first, as MATLAB programs often have it; others of 1 go.",
)
@json_option
def convert(
    data: str, out: Path, variable: str | None, scale: bool, samples_last: bool, json_to: str | None
) -> None:
    """Convert DATA to .npz or .npy, checked on the way. Samples may have any shape.

    \b
    Example:
      edgecsi data convert DATA_Htestin.mat -o test.npz
      edgecsi data convert measured.mat --variable H --scale -o channels.npz
      edgecsi data convert quadriga.mat#H --samples-last --scale -o channels.npz
    """
    import numpy as np

    from edgecsi.channels import files

    with progress(f"reading {data}") as update:
        if scale or samples_last:
            raw = files.read_raw(data, variable)
            if samples_last:
                raw = np.moveaxis(raw, -1, 0)
                raw = raw.reshape(len(raw), *(size for size in raw.shape[1:] if size > 1))
            samples = files.scaled(raw) if scale else files.as_samples(raw, data, None)
        else:
            samples = files.load(
                data, shape=None, variable=variable, progress=lambda done, total: update(done, total, "")
            )
    files.write(out, samples)
    if len(samples) == 1 and samples.ndim > 2:
        note(
            f"{data} has one sample of {list(samples.shape[1:])}: if its last dimension counts them, --samples-last"
        )
    found = {"file": out, "from": data, "shape": list(samples.shape), **vars(files.describe(samples))}
    report(found, lambda: pairs(found), json_to)


@command.command()
@click.argument("data")
@_variable
@json_option
def info(data: str, variable: str | None, json_to: str | None) -> None:
    """Check DATA and tell its size, range, and how concentrated it is.

    \b
    Example:
      edgecsi data info test
    """
    from edgecsi.channels import files

    with progress(f"reading {data}") as update:
        samples = files.load(
            data, shape=None, variable=variable, progress=lambda done, total: update(done, total, "")
        )
    found = {"data": data, "shape": list(samples.shape), **vars(files.describe(samples))}
    report(found, lambda: pairs(found), json_to)
