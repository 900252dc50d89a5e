"""``edgecsi inspect``: what is in a bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecsi.cli.options import bundle_argument, device_option, json_option
from edgecsi.cli.output import columns, pairs, report

if TYPE_CHECKING:
    from edgecsi.bench.result import LayerTime
    from edgecsi.bundle import Bundle, Entry, Tensor


@click.command()
@bundle_argument
@click.option("--layers", is_flag=True, help="List the layers of every entry, with kernel and reason.")
@click.option("--measure", is_flag=True, help="Time the layers of every entry, where BUNDLE runs.")
@device_option("Where to --measure: local, ssh://HOST.")
@click.option(
    "--allowed-signers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Who may have signed it; fails if none of them did  [default: allowed_signers in "
    "~/.config/edgecsi, if there is one and the bundle is signed].",
)
@json_option
def command(
    bundle: Path,
    layers: bool,
    measure: bool,
    device: str,
    allowed_signers: Path | None,
    json_to: str | None,
) -> None:
    """Verify every file of BUNDLE and its signature, and show what it is. Without --measure the library is not
    loaded, so any machine will do.

    \b
    Example:
      edgecsi inspect csinet-pi --layers
      edgecsi inspect csinet-pi --measure --device ssh://pi@raspberrypi
    """
    from edgecsi.bundle import read_bundle
    from edgecsi.bundle.manifest import to_json

    found = read_bundle(bundle)
    signer = _signer(found, allowed_signers)
    measured = time_layers(found, device) if measure else None
    tree = to_json(found.manifest) | ({"signature": signer} if signer else {})
    tree |= {"measured": measured.layers} if measured else {}
    report(tree, lambda: _text(found, layers, measured, signer), json_to)


def _signer(bundle: Bundle, allowed_signers: Path | None) -> str:
    """Whose signature the bundle has, in words; empty if it has none."""
    from edgecsi.bundle import signature

    known = allowed_signers or signature.default_allowed_signers()
    signed = signature.read_signature(bundle) is not None
    if allowed_signers is None and not (signed and known.is_file()):
        return "not checked: there is no allowed-signers file" if signed else ""
    return f"by {signature.verify(bundle, known)}, listed in {known}"


def _text(bundle: Bundle, layers: bool, measured: TimedLayers | None, signer: str) -> str:
    manifest = bundle.manifest
    target, model, check = manifest.target, manifest.model, manifest.check
    head: dict[str, object] = {
        "bundle": f"{manifest.name} in {bundle.path}",
        "model": model.spec + (f", recipe {model.recipe}" if model.recipe else ""),
        "checkpoint": f"sha256 {model.sha256}" if model.sha256 else "none",
        "target": f"{target.id}: {target.mcpu} {' '.join(target.mattr)}",
        "needs": f"{target.arch}, glibc {target.glibc}, {' '.join(target.features)}",
        "file": f"{manifest.library}, {manifest.files[manifest.library].bytes:,} bytes",
        "made with": ", ".join(f"{name} {value}" for name, value in vars(manifest.created_with).items()),
        "check": f"{check.status} on {check.samples} samples of {check.data}"
        if check.status == "passed"
        else f"{check.status}: {check.reason}",
        **manifest.accuracy.named(),
        "digest": manifest.digest,
        "build number": manifest.build_number,
        "signature": signer or None,
    }
    entries = columns(
        (
            "entry",
            "inputs",
            "outputs",
            "MACs",
            "weights B",
            "workspace B",
            "max diff",
        ),
        [_entry_row(bundle, name, entry) for name, entry in sorted(manifest.entries.items())],
    )
    parts = [pairs(head), entries]
    if layers:
        parts += [f"{name}\n{plan_table(entry)}" for name, entry in sorted(manifest.entries.items())]
    if measured is not None:
        parts.append(measured.text())
    return "\n\n".join(parts)


@dataclass(frozen=True)
class TimedLayers:
    """The times of layers by entry; or, with no layers, why they could not be measured."""

    layers: Mapping[str, tuple[LayerTime, ...]]
    heading: str

    def text(self) -> str:
        """For people: a table for each entry."""
        from edgecsi.report.text import times_table

        tables = [f"{name}, measured\n{times_table(times)}" for name, times in self.layers.items()]
        return "\n\n".join([*tables, self.heading])


def time_layers(bundle: Bundle, device: str = "local") -> TimedLayers:
    """Time the layers of a bundle; on this machine, with their shares of what it can do at best.

    Args:
        bundle: for any target; of one that cannot run here, the result says why.
        device: where.

    Raises:
        BundleError, ToolchainError: it cannot be loaded, or the limits cannot be measured.
        DeviceError: another device cannot run it.
    """
    from edgecsi.bench import layers, limits
    from edgecsi.bundle.shared_library import check_runs_here
    from edgecsi.device import open_device
    from edgecsi.errors import DeviceError

    if device != "local":
        with contextlib.closing(open_device(device)) as where:
            return TimedLayers(layers.measure_layers(bundle, None, where), f"measured on {where.spec}")
    try:
        check_runs_here(bundle)
    except DeviceError as error:
        return TimedLayers({}, f"layers are not measured: {error.why}")
    known = limits.known_limits()
    heading = (
        f"the limits of {known.machine.cpu}: {known.fp32_gflops:.0f} GFLOP/s, "
        f"{known.int8_gops:.0f} GOP/s in int8, reading {_rates(known.read_gbps)} GB/s"
    )
    return TimedLayers(layers.measure_layers(bundle, known), heading)


def _rates(read_gbps: Mapping[int, float]) -> str:
    """The fastest rate, and the slowest."""
    return f"{max(read_gbps.values()):.0f} to {min(read_gbps.values()):.0f}"


def _entry_row(bundle: Bundle, name: str, entry: Entry) -> tuple[object, ...]:
    checked = bundle.manifest.check.entries.get(name)
    apart = checked.max_abs_diff if checked else None
    shapes = (" ".join(map(_shape, tensors)) for tensors in (entry.inputs, entry.outputs))
    return (name, *shapes, entry.macs, entry.weight_bytes, entry.workspace, apart)


def _shape(tensor: Tensor) -> str:
    return f"{tensor.name}[{','.join(map(str, tensor.shape))}]"


def plan_table(entry: Entry) -> str:
    """The layers of an entry, one a line: which kernel, with which knobs, why, and what it costs."""
    head = ("layer", "op", "kernel", "knobs", "density", "bits", "bytes", "MACs", "µs", "why")
    rows = [
        (
            layer.name,
            layer.op,
            layer.kernel,
            " ".join(f"{knob}={value}" for knob, value in sorted(layer.knobs.items())),
            layer.density,
            layer.bits,
            layer.bytes,
            layer.macs,
            layer.predicted_us,
            layer.why,
        )
        for layer in entry.layers
    ]
    return columns(head, rows)
