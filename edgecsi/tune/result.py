"""What a search found, layer by layer and as a whole, as data (`edgecsi tune --json`). Nothing here measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgecsi.errors import DataError
from edgecsi.schema import convert

SCHEMA = 1
_FIX = "write one with edgecsi tune --json FILE"


@dataclass(frozen=True)
class InPlace:
    """A network with the default choices and with those that were found.

    Attributes:
        default_us, tuned_us: medians (millions of instructions, if counted). ratio: tuned to default; below 1 is a
            gain. low, high: the ratio's 95 % interval.
    """

    default_us: float
    tuned_us: float
    ratio: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """Whether the gain is more than noise."""
        return self.high < 1.0


@dataclass(frozen=True)
class Candidate:
    """A kernel by name, with its knobs."""

    kernel: str
    knobs: Mapping[str, int]


@dataclass(frozen=True)
class TunedLayer:
    """What a search found for one kind of layer.

    Attributes:
        layer: its name; ``others`` are layers that are the same work.
        default, best: what was chosen without and with measuring. default_us, best_us: medians, in turns (millions of
            instructions if counted).
        kept: whether the best is used: it is another than the default, and does not lose in place.
        tried, failed: settings measured, and those that crashed, hung or answered wrongly.
        times: of all settings tried, by kernel, in the order of trial.
        default_cycles, best_cycles: where instructions were counted, the millions of cycles that they take at the rate of
            the hot loop, as llvm-mca estimates it; None without. What takes no fewer of them is no choice.
        bound: what takes longest in the best of them by the target's bandwidths and peaks: reading weights or
            multiplying; None where there is neither. share: the least possible time by that, over ``best_us``; None
            where instructions were counted: where those wait for memory, the default stays.
    """

    layer: str
    others: tuple[str, ...]
    workload: str
    default: Candidate
    best: Candidate
    default_us: float
    best_us: float
    kept: bool
    tried: int
    failed: int
    times: Mapping[str, tuple[float, ...]]
    bound: Literal["bytes", "MACs"] | None = None
    share: float | None = None
    default_cycles: float | None = None
    best_cycles: float | None = None


@dataclass(frozen=True)
class Precision:
    """Which layers have fewer bits.

    Attributes:
        recipe: the file that says so, to build with; empty if nothing was gained. data: what the loss was found on.
        max_loss_db, loss_db: allowed and found. formats: by layer. fp32_us: the tuned network without, all entries.
    """

    recipe: str
    data: str
    max_loss_db: float
    loss_db: float
    formats: Mapping[str, str]
    fp32_us: float


@dataclass(frozen=True)
class TuneResult:
    """What a search of a network found.

    Attributes:
        means: ``measured`` (all times in µs) or ``counted`` (all "times" in millions of instructions).
        entries: by entry, the time of the whole network with the defaults and with the choices, and their ratio with
            its 95 % interval.
        records: the file they were written to. measured, known: settings measured now, and taken from there.
        complete: False if time or trials ran out first. precision: where fewer bits were allowed.
        slowed: what a device says slowed it down meanwhile (heat, undervoltage): then the choices deserve a recheck.
    """

    model: str
    target: str
    cpu: str
    device: str
    means: Literal["measured", "counted"]
    date: str
    layers: tuple[TunedLayer, ...]
    entries: Mapping[str, InPlace]
    records: str
    measured: int
    known: int
    seconds: float
    complete: bool
    precision: Precision | None = None
    slowed: tuple[str, ...] = ()
    schema: int = SCHEMA
    kind: Literal["edgecsi tune"] = "edgecsi tune"


def decode_tuned(tree: Any, path: Path) -> TuneResult:
    """A result of tuning from the tree of its JSON.

    Raises:
        DataError: it is none, or of another version.
    """
    if isinstance(tree, dict) and tree.get("kind") == "edgecsi tune" and tree.get("schema") != SCHEMA:
        raise DataError(
            f"{path} is a result of version {tree.get('schema')!r}",
            f"this edgecsi reads version {SCHEMA}",
            _FIX,
        )
    return convert(tree, TuneResult, what=str(path), error=DataError, fix=_FIX)
