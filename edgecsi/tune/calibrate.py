"""What a CPU's kernels take, measured, against what they are estimated to take: so that untuned choices get better.

The layers of a few networks are measured with their default kernels and with every kernel that competes. A target file
keeps a constant that every call takes, however little it does, what a sigmoid takes an element, and kernel by kernel the
median of what is measured beyond that over what is estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgecsi import target as targets
from edgecsi.errors import CheckFailed
from edgecsi.kernels.variants import candidates, estimate
from edgecsi.ops.steps import curves
from edgecsi.progress import Progress
from edgecsi.target import Target
from edgecsi.tune.isolated import Devices
from edgecsi.tune.measure import LayerBench
from edgecsi.tune.network import open_tuning_device
from edgecsi.tune.search import Setting
from edgecsi.tune.work import works_of

NETWORKS = (
    "csinet-cr4",
    "csinet-cr4+prune90-bsr16x4-int8-dynamic",
    "csinet-cr4+int8-trained",
    "crnet-cr16",
    "fullycon",
)
_CLOSE = 3.0
"""Kernels estimated to be further from the best are not measured: they are never chosen."""
_ROUNDS = 3

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A setting measured; times in µs. ``default``: it is the layer's choice without measuring. ``curves``: elements that
    a sigmoid or its like is taken of."""

    kernel: str
    estimated: float
    measured: float
    default: bool
    curves: int = 0


@dataclass(frozen=True)
class Calibration:
    """How estimates fare on a CPU.

    Attributes:
        call_us: µs that every call takes. curve_ns: ns that a sigmoid takes an element. factors: by kernel,
            median of measured over estimated time beyond that.
        measured: settings measured.
        rank_before, rank_after: Spearman's rank correlation of estimated and measured times over all of them, with
            today's estimates and with the new ones. within_before, within_after: share of the default choices whose
            estimate is within 1.3 times of what was measured.
    """

    target: str
    device: str
    call_us: float
    curve_ns: float
    factors: dict[str, float]
    measured: int
    rank_before: float
    rank_after: float
    within_before: float
    within_after: float


def calibrate(
    target: str, device: str = "local", networks: Sequence[str] = (), progress: Progress | None = None
) -> Calibration:
    """Measure kernels on a device against their estimates.

    Args:
        networks: whose layers; by default `NETWORKS`.

    Raises:
        TargetError, ModelError: as building would. DeviceError: the device cannot run the target.
        CheckFailed: nothing could be measured.
    """
    chosen = targets.load(target)
    rows = measured_rows(chosen, device, networks, progress)
    if not rows:
        raise CheckFailed(f"nothing could be measured on {device}", "no kernel ran", "run `edgecsi doctor`")
    return fit(chosen, device, rows)


def measured_rows(
    target: Target, device: str, networks: Sequence[str] = (), progress: Progress | None = None
) -> list[Row]:
    """The kernels that compete for the layers of some networks, measured; arguments and errors as above. Estimates are
    the kernels' own, without what a target knows of an earlier calibration."""
    opened, _ = open_tuning_device(device, target)
    plain = replace(target, factors=(), call_us=0.0, curve_ns=0.0)
    rows: list[Row] = []
    try:
        works = {k: w for model in networks or NETWORKS for k, w in works_of(model, target).items()}
        for number, work in enumerate(works.values()):
            if progress is not None:
                progress(number, len(works), work.names[0])
            op = work.choice.op
            found, _ = candidates(op, target)
            settings = {
                Setting.of(kernel.name, knobs): estimate(kernel, op, plain, knobs).seconds * 1e6
                for kernel, knobs, cost in found
                if cost.seconds <= _CLOSE * found[0][2].seconds
            }
            times = LayerBench(op, target, Devices([opened]), work.beside).quick(list(settings))
            rows += [
                Row(
                    setting.kernel,
                    estimated,
                    time.median,
                    setting == work.default,
                    op.y.size * curves(op.epilogue),
                )
                for (setting, estimated), time in zip(settings.items(), times, strict=True)
                if time is not None
            ]
    finally:
        opened.close()
    return rows


def fit(target: Target, device: str, rows: Sequence[Row]) -> Calibration:
    """The constants and the factors with which the logarithms of all times are nearest; factors of kernels that were not
    measured stay what they were. The two constants are found in turns."""
    kernels = np.array([row.kernel for row in rows])
    estimated, times = (np.array([getattr(row, name) for row in rows]) for name in ("estimated", "measured"))
    default = np.array([row.default for row in rows])
    elements = np.array([row.curves for row in rows]) / 1e3  # ns each are µs

    def factors_with(call: float, curve: float) -> dict[str, float]:
        beyond = np.maximum(times - call - curve * elements, 0.05 * times) / estimated
        return {str(kernel): float(np.median(beyond[kernels == kernel])) for kernel in np.unique(kernels)}

    def predicted(call: float, curve: float, factors: Mapping[str, float]) -> Floats:
        each = np.array([factors.get(kernel, 1.0) for kernel in kernels])
        return np.asarray(call + curve * elements + estimated * each)

    def apart(call: float, curve: float) -> float:
        return float(np.abs(np.log(predicted(call, curve, factors_with(call, curve)) / times)).mean())

    call, curve = 0.0, 0.0
    calls = [float(c) for c in np.linspace(0, np.quantile(times, 0.25), 101)]
    most = float(np.min(times[elements > 0] / elements[elements > 0], initial=100.0))
    curves_ns = [float(c) for c in np.linspace(0, most, 101)] if elements.any() else [0.0]
    for _ in range(_ROUNDS):
        call = min(calls, key=lambda c: apart(c, curve))
        curve = min(curves_ns, key=lambda c: apart(call, c))
    call, curve = round(call, 4), round(curve, 4)
    known = dict(target.factors)
    factors = known | {kernel: round(value, 3) for kernel, value in factors_with(call, curve).items()}
    before, after = predicted(target.call_us, target.curve_ns, known), predicted(call, curve, factors)
    return Calibration(
        target.id, device, call, curve, dict(sorted(factors.items())), len(rows), _spearman(before, times),
        _spearman(after, times), _within(before[default], times[default]), _within(after[default], times[default]),
    )  # fmt: skip


def _spearman(a: Floats, b: Floats) -> float:
    one, other = (np.argsort(np.argsort(values)).astype(float) for values in (a, b))
    return float(np.corrcoef(one, other)[0, 1]) if len(a) > 1 else 1.0


def _within(estimated: Floats, measured: Floats) -> float:
    ratio = measured / estimated
    return float(((ratio <= 1.3) & (ratio >= 1 / 1.3)).mean()) if len(ratio) else 1.0
