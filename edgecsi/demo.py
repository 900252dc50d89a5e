"""The whole way once: CsiNet for this machine and for the Raspberry Pi, built, evaluated and timed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from edgecsi import disk
from edgecsi.bench.bench import run_bench
from edgecsi.bench.result import write_result
from edgecsi.bundle import read_bundle
from edgecsi.channels import files
from edgecsi.deploy import deploy, destination, status
from edgecsi.device import open_device
from edgecsi.device.loopback import loopback
from edgecsi.evaluate import evaluate
from edgecsi.pipeline import BuildOptions, build
from edgecsi.progress import Progress
from edgecsi.reference import reference_model
from edgecsi.report.html import html
from edgecsi.report.make import make_report
from edgecsi.report.read import read_shown
from edgecsi.report.text import table

MODEL = "csinet-cr4"
DATA = "test"
PEER = "onnxruntime"
_EMULATED_SAMPLES = 64  # QEMU is some fifty times slower than the CPU it runs on

Say = Callable[[str], None]


def _deploy(bundle: Path, say: Say) -> None:
    """Deploy to this machine as one does to a board: over SSH, to a server that is there for the demo only."""
    with loopback() as device:
        if device is None:
            say("nothing was deployed: there is no sshd here (sudo apt-get install openssh-server)")
            return
        there = destination(device)
        try:
            first, again = (deploy(read_bundle(bundle), there.connection) for _ in range(2))
            (found,) = status(there.connection, there.root)
        finally:
            there.connection.close()
    sound = found.current is not None and not found.current.drift
    say(
        f"deployed over SSH to a device on this machine: {first.sent_files} files, {first.sent_bytes:,} bytes, golden "
        f"answers right there, {first.action}; the same again sent {again.sent_bytes} bytes; every byte there is "
        f"{'as it was deployed' if sound else 'NOT as it was deployed'}"
    )


def run_demo(out: Path, say: Say, progress: Progress) -> list[Path]:
    """Build, evaluate and time CsiNet CR 1/4, and write everything below a folder.

    Args:
        out: the folder; what an earlier demo wrote there is replaced.
        say: called with each piece of the account as it becomes known.
        progress: called with (done, total, what is being done).

    Returns:
        Everything that was written, to be looked at; first the bundle for this machine.
    """
    out.mkdir(parents=True, exist_ok=True)
    bundles: dict[str, Path] = {}
    for target in ("host", "arm"):
        progress(0, 0, f"building {MODEL} for {target}")
        bundles[target] = out / f"{MODEL}-{target}"
        built = build(BuildOptions(model=MODEL, target=target, out=bundles[target]), progress)
        say(f"built {bundles[target]} for {built.manifest.target.id}")

    channels = files.load(DATA)
    reference = reference_model(read_bundle(bundles["host"]).manifest)
    devices = {"host": "local"} | ({"arm": "emulate"} if shutil.which("qemu-aarch64") else {})
    for target, device in devices.items():
        x = channels if device == "local" else channels[:_EMULATED_SAMPLES]
        bundle = read_bundle(bundles[target])
        found = evaluate(bundle, x, DATA, device=open_device(device), reference=reference, progress=progress)
        worst = max(difference.max_rel_diff for difference in found.differences.values())
        say(
            f"{found.target} on {device}: NMSE {found.nmse_db:.2f} dB over {len(x)} channels, PyTorch "
            f"{found.nmse_db_pytorch:.2f} dB, largest difference {worst:.1e} of the largest output"
        )
    if "arm" not in devices:
        say("the Raspberry Pi's bundle was not tried: QEMU is missing (sudo apt-get install qemu-user)")

    progress(0, 0, "deploying to a device on this machine")
    _deploy(bundles["host"], say)

    bench = run_bench(
        bundles["host"], quick=True, against=[PEER], load_module=lambda _: reference.module, progress=progress
    )
    written = [out / "bench-host.json"]
    write_result(bench, written[0])
    say("\n" + table(bench) + "\n")
    if "arm" in devices:
        counted = run_bench(bundles["arm"], device="emulate", quick=True, progress=progress)
        written.append(out / "bench-arm.json")
        write_result(counted, written[1])
        if counted.instructions is not None:
            say(f"Raspberry Pi 4, counted under QEMU: {counted.instructions:,} instructions per inference")
    page = out / "report.html"
    disk.write(page, html(make_report(read_shown(written), title=f"{MODEL}, built by the demo")))
    return [*bundles.values(), *written, page]
