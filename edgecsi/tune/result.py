"""What a search found, layer by layer and as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgecsi.kernels.records import Means
from edgecsi.tune import in_place
from edgecsi.tune.search import Setting


@dataclass(frozen=True)
class TunedLayer:
    """What a search found for one kind of layer.

    Attributes:
        layer: its name; ``others`` are layers that are the same work.
        default, best: settings. default_us, best_us: medians, in turns (millions of instructions if counted).
        kept: whether the best setting is used: it is another than the default, and does not lose in place.
        tried, failed: settings measured, and those that crashed, hung or answered wrongly.
        times: of all settings tried, by kernel, in the order of trial.
    """

    layer: str
    others: tuple[str, ...]
    workload: str
    default: Setting
    best: Setting
    default_us: float
    best_us: float
    kept: bool
    tried: int
    failed: int
    times: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class TuneResult:
    """What a search of a network found.

    Attributes:
        entries: by entry, the time of the whole network with the defaults and with the choices, and their ratio with
            its 95 % interval.
        records: the file they were written to. complete: False if time or trials ran out first.
    """

    model: str
    target: str
    cpu: str
    device: str
    means: Means
    date: str
    layers: tuple[TunedLayer, ...]
    entries: Mapping[str, in_place.Compared]
    records: str
    measured: int
    known: int
    seconds: float
    complete: bool
