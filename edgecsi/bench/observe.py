"""What ``edgecsi bench`` finds out beside latencies, each added to the result only when it was asked for."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgecsi.bench.environment import judge, snapshot
from edgecsi.bench.measure import undisturbed
from edgecsi.bench.result import Result
from edgecsi.bench.self_check import self_check
from edgecsi.bench.statistics import Floats
from edgecsi.bench.sustained import Meter, paced, periodic, refuse_too_few, sustained
from edgecsi.bundle import Loaded, read_bundle, read_golden
from edgecsi.device import Device, Local, Remote
from edgecsi.device.protocol import Paced
from edgecsi.device.rpc_device import Rpc
from edgecsi.errors import UsageError
from edgecsi.progress import Progress

LONGEST_PROGRAM = 64 << 10


@dataclass(frozen=True)
class Wanted:
    """What to find out beside latencies.

    Attributes:
        rate: calls a second, beside calls in a row.
        sustained: seconds to watch whether it stays as fast; at ``rate`` if there is one.
        meter: file of the device's sysfs that counts energy, read in the long run.
        self_check: measure the library against itself.
    """

    rate: float | None = None
    sustained: float | None = None
    meter: Path | None = None
    self_check: bool = False


def observe(
    result: Result, path: Path, device: Device, wanted: Wanted, progress: Progress | None = None
) -> Result:
    """Adds to a result what is wanted; its validity then covers this as well.

    Args:
        result: of the same bundle, entry and device.
        path: the bundle's folder.
        device: where.
        wanted: what.
        progress: told how far it is.

    Raises:
        DeviceError: the device is lost.
        UsageError: as :func:`refuse`.
    """
    if wanted == Wanted():
        return result
    bundle = read_bundle(path)
    entry, inputs = result.entry, read_golden(bundle, result.entry)[0]
    tensors = bundle.entry(entry).inputs
    once = [array[:1].reshape(tensor.shape) for array, tensor in zip(inputs, tensors, strict=True)]
    x = [array[0] for array in inputs]
    loaded = Loaded(bundle) if wanted.rate is not None and isinstance(device, Local) else None

    def at_rate(rate: float, seconds: float) -> Paced:
        if isinstance(device, Remote):
            return device.paced(bundle, entry, once, rate, max(1, round(rate * seconds)))
        assert loaded is not None  # refuse() saw to that
        return paced(lambda: loaded.run(*x, entry=entry), rate, seconds)

    with undisturbed():
        if wanted.rate is not None:
            seconds = max(result.protocol.seconds, 20 / wanted.rate)
            result = replace(result, periodic=periodic(wanted.rate, at_rate(wanted.rate, seconds)))
        if wanted.sustained is not None:
            rate = wanted.rate
            if rate is not None:
                turn = lambda: at_rate(rate, max(1.0, 1 / rate)).calls  # noqa: E731
            else:
                timed = result.c_call if result.c_call is not None else result.engines[0].warm
                repeats = max(1, math.ceil(1e6 / timed.median))
                turn = lambda: _in_us(device.time(bundle, entry, once, repeats))  # noqa: E731
            begin = time.monotonic()
            run = sustained(
                turn,
                wanted.sustained,
                state=lambda: snapshot(None if device.spec == "local" else device.state()),
                rate=rate,
                meter=_meter(wanted, device),
                progress=progress,
            )
            result = replace(result, sustained=run)
            if (watched := time.monotonic() - begin) < wanted.sustained:
                result = _doubted(result, f"the long run was interrupted after {watched:.0f} s")
        if wanted.self_check:
            result = replace(result, self_check=self_check(bundle, entry, device, result.protocol, progress))
    if device.spec == "local" and result.validity.state != "invalid":
        after = snapshot()
        whole = judge(result.before, after, where=result.machine, notes=())
        # A reason that was there already comes again with another figure.
        known = {reason[:20] for reason in result.validity.reasons}
        reasons = (*result.validity.reasons, *(r for r in whole.reasons if r[:20] not in known))
        state = whole.state if whole.state == "invalid" else "suspect" if reasons else "valid"
        result = replace(result, after=after, validity=replace(whole, state=state, reasons=reasons))
    return result


def refuse(device: Device, wanted: Wanted, seconds: float, batch: int | None = None) -> None:
    """Refuse what a device cannot give, before anything is measured.

    Args:
        device: where.
        wanted: what.
        seconds: how long single calls are measured.
        batch: samples at once, where batches are measured instead.

    Raises:
        UsageError: the device, or a result of batches, cannot give it; too few calls; no meter.
        DeviceError: the meter cannot be asked.
    """
    if wanted == Wanted():
        return
    if device.spec == "emulate" or batch is not None:
        raise UsageError(
            "there are no latencies to watch",
            "batches are measured" if batch is not None else "emulated times mean nothing",
            "measure single calls on a real CPU",
        )
    if wanted.rate is not None:
        refuse_too_few(wanted.rate, max(seconds, 20 / wanted.rate))
    if not isinstance(device, Local | Remote) and (wanted.rate is not None or wanted.self_check):
        raise UsageError(
            f"--rate and --self-check are not measured on {device.spec}",
            "TVM's RPC calls a function in a row only, and starts no program",
            "use --device ssh://HOST, or --sustained alone",
        )
    _meter(wanted, device)


def _meter(wanted: Wanted, device: Device) -> Meter | None:
    if wanted.meter is None:
        return None
    if isinstance(device, Local):
        return Meter(wanted.meter)
    shell = device.shell if isinstance(device, Rpc) else device
    if not isinstance(shell, Remote):
        raise UsageError(
            f"--meter cannot be read on {device.spec}",
            "there is no way to its files",
            "use --device ssh://HOST",
        )
    return Meter(wanted.meter, shell.read)


def repeatable(result: Result, path: Path, bench: Sequence[str]) -> Result:
    """Adds what is needed to measure it again: the commands, and the bundle's own C program.

    Args:
        result: of the bundle.
        path: the bundle's folder.
        bench: the arguments of ``edgecsi bench``.
    """
    bundle = read_bundle(path)
    model, target = bundle.manifest.model, bundle.manifest.target
    build = ["edgecsi", "build", model.spec, "--target", target.id]
    own = ":" in model.spec
    weights = own and model.sha256 is not None
    # A network that compress wrote holds its recipe; nobody knows of it what it lost.
    held = weights and bundle.manifest.check.entries and bundle.manifest.accuracy.fp32 is None
    if model.recipe and "+" not in model.spec and not model.spec.endswith(".safetensors") and not held:
        build += ["--recipe", model.recipe]
    build += ["--weights", "WEIGHTS"] if weights else []
    build += ["--name", bundle.manifest.name] if own else []
    about = [f"# WEIGHTS is the file with the SHA-256 {model.sha256}"] if weights else []
    commands = (
        *about,
        shlex.join([*build, "-o", bundle.path.name]),
        shlex.join(["edgecsi", "bench", *bench]),
    )
    with contextlib.suppress(OSError):  # a bundle without examples is measured all the same
        program = (bundle.path / "example" / "main.c").read_text(encoding="utf-8", errors="replace")
        return replace(result, commands=commands, program=program[:LONGEST_PROGRAM])
    return replace(result, commands=commands)


def _doubted(result: Result, reason: str) -> Result:
    """The result with one more reason not to believe it."""
    validity = result.validity
    state = "suspect" if validity.state == "valid" else validity.state
    return replace(result, validity=replace(validity, state=state, reasons=(*validity.reasons, reason)))


def _in_us(nanoseconds: Floats) -> Floats:
    return np.asarray(nanoseconds, np.float64) / 1e3
