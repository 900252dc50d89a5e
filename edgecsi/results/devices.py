"""What devices cost: ``python -m edgecsi.results.devices``, on a real ``sshd`` on this machine's loopback.

One entry is timed in turns by the local C face, by our runner over SSH and by TVM's RPC over SSH: their medians must
agree within 5 %, and a call that does nothing must take less than 1 µs in each. Then what ``device setup`` and ``deploy``
put on a device, and how long ``device rollback`` takes. It takes some two minutes; the figures go into the results and
into docs/how-to/benchmark-remotely.md.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from edgecsi import disk
from edgecsi.bench.environment import judge, machine, snapshot
from edgecsi.bench.measure import QUICK
from edgecsi.bundle import read_bundle, read_golden
from edgecsi.device import Device, Local, Remote, install
from edgecsi.device.loopback import loopback
from edgecsi.device.protocol import Series
from edgecsi.device.rpc_device import Rpc
from edgecsi.errors import ToolchainError
from edgecsi.results import script
from edgecsi.results.bundles import run_edgecsi
from edgecsi.results.files import own_folder, write_between, write_json
from edgecsi.results.run import require_quiet

MARKS = "<!-- devices -->", "<!-- /devices -->"
AGREE, NOTHING_US, ROLLBACK_SECONDS = 0.05, 1.0, 1.0
MB, MB_WITH_RPC = 1.0, 8.0
WAYS = ("local", "ssh", "rpc")


@script.in_words
def main(arguments: Sequence[str] | None = None) -> int:
    """The script; its exit code is 1 if a bar is missed."""
    parser = script.parser("devices", __doc__, "results/", times=True)
    parser.add_argument("--model", default="csinet-cr16", help="MODEL to build and measure")
    parser.add_argument("--turns", type=int, default=7, metavar="N")
    chosen = parser.parse_args(arguments)
    if not chosen.anyway:
        require_quiet()
    found = measure(chosen.model, chosen.turns)
    write_json(own_folder(chosen.docs / "results", machine().cpu) / "devices.json", found)
    write_between(chosen.docs / "how-to" / "benchmark-remotely.md", *MARKS, f"\n{sentence(found)}\n")
    print(sentence(found))
    missed = bars_missed(found)
    print("\n".join(f"MISSED {text}" for text in missed) or "every bar is held")
    return 1 if missed else 0


def measure(model: str, turns: int) -> dict[str, Any]:
    """Builds a model twice, so that there is something to go back to, and uses it on the device."""
    with disk.scratch(runs=True) as scratch, loopback() as spec:
        if spec is None:
            raise ToolchainError(
                "there is no sshd", "a device on this machine needs one", "apt-get install openssh-server"
            )
        for number in ("1", "2"):
            run_edgecsi(["build", model, "--target", "host", "--build-number", number, "-o", number], scratch)
        bundle = read_bundle(scratch / "2")
        with closing(Remote.over_ssh(spec)) as device:
            held = {}
            for name, more in (("setup", []), ("setup with RPC", ["--rpc"])):
                run_edgecsi(["device", "setup", spec, *more], scratch)
                held[name] = sum(install.held(device.connection, device.board.folder).values())
            for number in ("1", "2"):
                run_edgecsi(["deploy", number, spec], scratch)
            deployed = install.held(device.connection, device.board.folder)["bundles"]
            rollbacks = [
                _seconds(["device", "rollback", spec, bundle.manifest.name], scratch) for _ in range(5)
            ]

            ways: dict[str, Device] = {
                "local": Local(),
                "ssh": device,
                "rpc": Rpc(f"rpc+{spec}", device, time_nothing=True),
            }
            sample = [array[0] for array in read_golden(bundle, "full")[0]]
            series: dict[str, list[Series]] = {way: [] for way in WAYS}
            before = snapshot()
            for turn in range(turns):
                for way in WAYS if turn % 2 == 0 else reversed(WAYS):
                    series[way].append(ways[way].measure(bundle, "full", sample, QUICK))
            after = snapshot()
            # What the other processes of ours used is theirs, not somebody else's.
            after = dataclasses.replace(after, own=before.own + after.clock - before.clock)
    medians = {
        way: [float(np.median(one.samples)) / 1e3 for one in several] for way, several in series.items()
    }
    nothing = {
        way: float(np.median([np.median(one.nothing.samples) for one in several if one.nothing])) / 1e3
        for way, several in series.items()
    }
    sizes = sum(info.bytes for info in bundle.manifest.files.values())
    return {
        "kind": "devices",
        "model": model,
        "medians_us": medians,
        "nothing_us": nothing,
        "setup_bytes": held["setup"],
        "setup_with_rpc_bytes": held["setup with RPC"],
        "bundle_bytes": sizes,
        "two_releases_bytes": deployed,
        "rollback_seconds": rollbacks,
        "machine": dataclasses.asdict(machine()),
        "validity": dataclasses.asdict(judge(before, after, where=machine())),
        "date": after.date,
    }


def apart(found: dict[str, Any]) -> dict[str, float]:
    """Relative differences of the medians from the local one, by way: of the middle turn, since what disturbs a turn
    disturbs all that is measured in it."""
    local = np.array(found["medians_us"]["local"])
    return {
        way: float(np.median(np.array(found["medians_us"][way]) / local)) - 1
        for way in WAYS
        if way != "local"
    }


def bars_missed(found: dict[str, Any]) -> list[str]:
    """What is not as it must be, in words."""
    differences = apart(found)
    missed = [
        f"{way} differs from the local C face by {d:+.1%}" for way, d in differences.items() if abs(d) > AGREE
    ]
    if abs(differences["rpc"] - differences["ssh"]) > AGREE:
        missed.append("SSH and RPC differ")
    missed += [f"a call that does nothing takes {us:.2f} µs by {way}" for way, us in found["nothing_us"].items()
               if us >= NOTHING_US]  # fmt: skip
    for key, most in (("setup_bytes", MB), ("setup_with_rpc_bytes", MB_WITH_RPC)):
        if found[key] >= most * 1e6:
            missed.append(f"{key} is {found[key] / 1e6:.2f} MB")
    if (seconds := float(np.median(found["rollback_seconds"]))) >= ROLLBACK_SECONDS:
        missed.append(f"a rollback takes {seconds:.2f} s")
    return missed


def sentence(found: dict[str, Any]) -> str:
    """The figures in words."""
    us = {way: float(np.median(values)) for way, values in found["medians_us"].items()}
    differences, nothing = apart(found), found["nothing_us"]
    doubt = "" if found["validity"]["state"] == "valid" else f" ({found['validity']['state']})"
    return (
        f"Measured{doubt} on {found['machine']['cpu']} behind an sshd on loopback, {found['model']}, in turns "
        f"(`python -m edgecsi.results.devices`): the local C face takes {us['local']:.1f} µs, our runner over SSH "
        f"{differences['ssh']:+.1%}, TVM's RPC over SSH {differences['rpc']:+.1%}. A call that does nothing takes "
        f"{1e3 * nothing['local']:.0f}, {1e3 * nothing['ssh']:.0f} and {1e3 * nothing['rpc']:.0f} ns. `device setup` "
        f"puts {found['setup_bytes'] / 1e6:.2f} MB on a device, {found['setup_with_rpc_bytes'] / 1e6:.2f} MB with RPC; "
        f"two releases of this bundle of {found['bundle_bytes'] / 1e6:.2f} MB take "
        f"{found['two_releases_bytes'] / 1e6:.2f} MB. `device rollback` takes "
        f"{float(np.median(found['rollback_seconds'])):.2f} s, from the command to its end."
    )


def _seconds(command: Sequence[str], folder: Path) -> float:
    begin = time.monotonic()
    run_edgecsi(command, folder)
    return time.monotonic() - begin


if __name__ == "__main__":
    raise SystemExit(main())
