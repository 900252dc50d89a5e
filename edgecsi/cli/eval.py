"""``edgecsi eval``: how well a bundle reconstructs channels."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecsi.cli.options import bundle_argument, device_option, json_option
from edgecsi.cli.output import columns, pairs, progress, report

if TYPE_CHECKING:
    from edgecsi.evaluate import Evaluation


@click.command()
@bundle_argument
@click.option(
    "--data", required=True, help="Channels (see `edgecsi data`), or a .npy of what the network takes."
)
@click.option("--samples", type=click.IntRange(min=1), help="Take only the first so many.")
@device_option("local, emulate (QEMU), ssh://HOST.")
@click.option("--model", help="PyTorch model to compare with, where the bundle's is none of the zoo.")
@click.option("--weights", metavar="FILE", help="Weights of the model, if the bundle was built with others.")
@click.option(
    "--calib", metavar="DATA", help="What the build was given as --calib, to make its network again."
)
@json_option
def command(
    bundle: Path,
    data: str,
    samples: int | None,
    device: str,
    model: str | None,
    weights: str | None,
    calib: str | None,
    json_to: str | None,
) -> None:
    """Run BUNDLE on channels: NMSE, rho and SGCS of what it reconstructs, and its difference to PyTorch.

    A detector takes mimo:COUNT[:seed=N] as data, random transmissions, and gives bit error rates.

    The exit code is 6 if the library differs from PyTorch by more than rounding can explain.

    \b
    Example:
      edgecsi eval csinet-pi --data test --device emulate
    """
    from edgecsi.bundle import read_bundle
    from edgecsi.device import open_device
    from edgecsi.evaluate import evaluate_data, judge

    found = read_bundle(bundle)
    with closing(open_device(device)) as runner, progress(f"reading {data}") as update:
        result, note = evaluate_data(found, data, runner, samples, model, weights, update, calib)
    report(result, lambda: _text(result, found.manifest.model.recipe, note), json_to)

    judge(found, result)


def _text(result: Evaluation, recipe: str | None, note: str) -> str:
    from edgecsi.verdict import Accuracy

    accuracy = Accuracy.of(recipe, result.nmse_db_fp32, result.nmse_db_pytorch, result.nmse_db)
    head = {
        "bundle": f"{result.bundle}, for {result.target}, on {result.device}",
        "data": f"{result.data}, {result.samples} samples",
        **accuracy.named(),
        "rho": f"{result.rho:.4f} (cosine similarity by subcarrier; 1 is best)"
        if result.rho is not None
        else None,
        "SGCS": f"{result.sgcs:.4f} (its square, as in 3GPP TR 38.843)" if result.sgcs is not None else None,
    }
    parts = [pairs({name: value for name, value in head.items() if value is not None})]
    # Without the network, only the answers that the build kept of it are there.
    reference = "golden values" if note else "PyTorch"
    if result.differences:
        rows = [(name, d.max_abs_diff, d.max_rel_diff) for name, d in result.differences.items()]
        parts.append(columns(("entry", f"max difference to {reference}", "of the largest output"), rows))
    for name, calls in result.left_to_rounding.items():
        parts.append(
            f"without {calls} of {result.samples} answers of {name}: there a value lies on an edge (argmax, sort, round, "
            "x > 0), and rounding alone decides"
        )
    if rates := result.bit_error_rates:
        parts.append("bit error rates\n" + columns([*rates], list(zip(*rates.values(), strict=True))))
    return "\n\n".join([*parts, note] if note else parts)
