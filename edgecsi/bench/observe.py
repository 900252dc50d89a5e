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
from edgecsi.bench.measure import Progress, undisturbed
from edgecsi.bench.result import Result
from edgecsi.bench.self_check import self_check
from edgecsi.bench.statistics import Floats
from edgecsi.bench.sustained import Meter, paced, periodic, sustained
from edgecsi.bundle import Loaded, read_bundle, read_golden
from edgecsi.device import Device
from edgecsi.errors import UsageError

LONGEST_PROGRAM = 64 << 10


@dataclass(frozen=True)
class Wanted:
    """What to find out beside latencies.

    Attributes:
        rate: calls a second, beside calls in a row.
        sustained: seconds to watch whether it stays as fast; at ``rate`` if there is one.
        meter: file of sysfs that counts energy, read in the long run.
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
        UsageError: the device or the result cannot give it.
    """
    if wanted == Wanted():
        return result
    bundle = read_bundle(path)
    if not result.engines:
        raise UsageError(
            f"{bundle.manifest.name} has no latencies to watch",
            "it ran emulated, or batches were measured",
            "measure single calls on a real CPU",
        )
    if device.spec != "local" and (wanted.rate is not None or wanted.self_check or wanted.meter is not None):
        raise UsageError(
            f"--rate, --meter and --self-check work on this machine, not on {device.spec}",
            "they need clock and files of the machine that calls",
            "use --device local, or --sustained alone",
        )
    entry, inputs = result.entry, read_golden(bundle, result.entry)[0]
    tensors = bundle.entry(entry).inputs
    once = [array[:1].reshape(tensor.shape) for array, tensor in zip(inputs, tensors, strict=True)]
    with undisturbed():
        if wanted.rate is not None:
            loaded = Loaded(bundle)
            x = [array[0] for array in inputs]
            call = lambda: loaded.run(*x, entry=entry)  # noqa: E731
            seconds = max(result.protocol.seconds, 20 / wanted.rate)
            result = replace(result, periodic=periodic(call, wanted.rate, seconds))
        if wanted.sustained is not None:
            rate = wanted.rate
            if rate is not None:
                turn = lambda: paced(call, rate, max(1.0, 1 / rate)).calls  # noqa: E731
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
                meter=None if wanted.meter is None else Meter(wanted.meter),
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
    # A compressed network that ships, and one that compress wrote, hold their recipe.
    if model.recipe and "+" not in model.spec and not model.spec.endswith(".safetensors"):
        build += ["--recipe", model.recipe]
    commands = (shlex.join([*build, "-o", bundle.path.name]), shlex.join(["edgecsi", "bench", *bench]))
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
