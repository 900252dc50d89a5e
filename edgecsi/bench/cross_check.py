"""One device measured in two ways: by our runner over SSH, and through TVM's RPC. They must agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgecsi.bench.measure import Series
from edgecsi.bench.peers import Array
from edgecsi.bundle import Bundle
from edgecsi.device import Remote
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.device.rpc_device import Rpc
from edgecsi.progress import Progress

OWN = "edgecsi"


def over_rpc(
    ours: Series,
    device: Remote,
    bundle: Bundle,
    entry: str,
    sample: Sequence[Array],
    protocol: MeasuringProtocol,
    progress: Progress | None,
) -> dict[str, Series]:
    """The same entry through TVM's RPC, and the calls that do nothing, by our runner and over RPC."""
    if progress is not None:
        progress(0, 0, "measuring over RPC")
    rpc = Rpc(f"rpc+{device.spec}", device, time_nothing=True)
    theirs = rpc.measure(bundle, entry, sample, protocol)
    if theirs.lost is not None:
        raise theirs.lost
    empty = {"nothing": ours.nothing, "nothing over RPC": theirs.nothing}
    return {f"{OWN} over RPC": theirs} | {name: one for name, one in empty.items() if one is not None}


def same_rounds(series: Mapping[str, Series]) -> dict[str, Series]:
    """What is to be compared, cut to equally many rounds; calls that do nothing are not compared."""
    compared = {name: one for name, one in series.items() if OWN in name}
    rounds = min(len(one.rounds) for one in compared.values())
    return {name: replace(one, rounds=one.rounds[:rounds]) for name, one in compared.items()}
