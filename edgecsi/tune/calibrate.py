"""What a CPU's kernels take, measured, against what they are estimated to take: so that untuned choices get better.

The layers of a few networks are measured with their default kernels and with every kernel that competes. The median
of measured over estimated, kernel by kernel, is what the target file keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecsi import target as targets
from edgecsi.errors import CheckFailed
from edgecsi.kernels.variants import candidates
from edgecsi.tune.isolated import Devices
from edgecsi.tune.measure import Bench
from edgecsi.tune.network import open_timer, works_of
from edgecsi.tune.search import Setting

NETWORKS = (
    "csinet-cr4",
    "csinet-cr4+prune90-bsr16x4-int8-dynamic",
    "csinet-cr4+int8-trained",
    "crnet-cr16",
    "fullycon",
)
_CLOSE = 3.0
"""Kernels estimated to be further from the best are not measured: they are never chosen."""

Floats = NDArray[np.float64]
Progress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Calibration:
    """How estimates fare on a CPU.

    Attributes:
        factors: by kernel, median of measured over estimated time. measured: settings measured.
        rank_before, rank_after: Spearman's rank correlation of estimated and measured times over all of them, with
            today's estimates and with the factors. within_before, within_after: share of the default choices whose
            estimate is within 1.3 times of what was measured.
    """

    target: str
    device: str
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
    timer, _ = open_timer(device, chosen)
    rows: list[tuple[str, float, float, bool]] = []
    try:
        works = {k: w for model in networks or NETWORKS for k, w in works_of(model, chosen).items()}
        for number, work in enumerate(works.values()):
            if progress is not None:
                progress(number, len(works), work.names[0])
            op = work.choice.op
            found, _ = candidates(op, chosen)
            settings = {
                Setting.of(kernel.name, knobs): cost.seconds * 1e6
                for kernel, knobs, cost in found
                if cost.seconds <= _CLOSE * found[0][2].seconds
            }
            times = Bench(op, chosen, Devices([timer]), work.beside).quick(list(settings))
            default = Setting.of(work.choice.kernel.name, work.choice.knobs)
            rows += [
                (setting.kernel, estimated, time.median, setting == default)
                for (setting, estimated), time in zip(settings.items(), times, strict=True)
                if time is not None
            ]
    finally:
        timer.close()
    if not rows:
        raise CheckFailed(f"nothing could be measured on {device}", "no kernel ran", "run `edgecsi doctor`")
    return _fit(chosen.id, device, rows, dict(chosen.factors))


def _fit(
    target: str, device: str, rows: Sequence[tuple[str, float, float, bool]], known: dict[str, float]
) -> Calibration:
    ratios: dict[str, list[float]] = {}
    for kernel, estimated, measured, _ in rows:
        ratios.setdefault(kernel, []).append(measured / estimated)
    new = {kernel: float(np.median(values)) for kernel, values in ratios.items()}
    before = np.array([row[1] for row in rows])
    after = np.array([row[1] * new[row[0]] for row in rows])
    times, default = np.array([row[2] for row in rows]), np.array([row[3] for row in rows])
    factors = known | {kernel: round(known.get(kernel, 1.0) * value, 3) for kernel, value in new.items()}
    return Calibration(
        target, device, dict(sorted(factors.items())), len(rows), _spearman(before, times), _spearman(after, times),
        _within(before[default], times[default]), _within(after[default], times[default]),
    )  # fmt: skip


def _spearman(a: Floats, b: Floats) -> float:
    one, other = (np.argsort(np.argsort(values)).astype(float) for values in (a, b))
    return float(np.corrcoef(one, other)[0, 1]) if len(a) > 1 else 1.0


def _within(estimated: Floats, measured: Floats) -> float:
    ratio = measured / estimated
    return float(((ratio <= 1.3) & (ratio >= 1 / 1.3)).mean()) if len(ratio) else 1.0
