"""Proving a release on the device before it is activated: ``golden.npz`` through the device's own loader.

The runner loads the library there and calls it in a child process, which it watches: a crash, an endless loop and a
wrong answer are all found, and none of them can do harm.
"""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi import verdict
from edgecsi.bundle import Bundle, read_golden
from edgecsi.device.transport import Connection, Done
from edgecsi.errors import CheckFailed

_GRACE_SECONDS = 15.0  # that we wait longer than the runner, which should be the first to give up
_CODE, _TOO_LONG, _CRASHED = 3, 4, 128


def prove(connection: Connection, bundle: Bundle, runner: str, release: str, deadline: float) -> None:
    """Run every entry of a bundle on its golden inputs, on the device.

    Args:
        connection: the way there.
        bundle: what lies there as well.
        runner: path of the runner there.
        release: folder of the bundle's copy there.
        deadline: seconds that each entry may take.

    Raises:
        CheckFailed: an answer is wrong, or there is none.
        DeviceError: the device cannot be reached.
    """
    manifest = bundle.manifest
    for name, entry in manifest.entries.items():
        inputs, wanted = read_golden(bundle, name)
        sizes = [",".join(str(tensor.size) for tensor in group) for group in (entry.inputs, entry.outputs)]
        argv = [runner, "run", f"{release}/{manifest.library}", manifest.cname, name, *sizes]
        given = _rows(inputs)
        argv += [f"calls={len(given)}", f"deadline={deadline:g}"]
        done = connection.run(argv, input=given.tobytes(), timeout=deadline + _GRACE_SECONDS)
        expected = _rows(wanted)
        if done.code or len(done.stdout) != expected.nbytes:
            raise _failed(bundle, name, connection.name, _why(done, deadline))
        found = np.frombuffer(done.stdout, np.uint8).reshape(expected.shape)
        checked = manifest.check.entries.get(name)
        allowed = verdict.elsewhere(checked.allowed if checked else None, entry.quantised)
        at = 0
        for tensor, right in zip(entry.outputs, wanted, strict=True):
            part = found[:, at : at + 4 * tensor.size]
            at += 4 * tensor.size
            answer = np.ascontiguousarray(part).view(tensor.dtype)
            apart = verdict.difference(answer, right.reshape(answer.shape)).max_rel_diff
            if not apart <= allowed:
                why = f"{tensor.name} is off by {apart:.2g} of the largest output; {allowed:g} is rounding"
                raise _failed(bundle, name, connection.name, why)


def _rows(arrays: list[NDArray[Any]]) -> NDArray[np.uint8]:
    """``[samples, bytes]``: what one call takes, or gives, lies together; four bytes a number of either type."""
    return np.concatenate([array.reshape(len(array), -1).view(np.uint8) for array in arrays], axis=1)


def _why(done: Done, deadline: float) -> str:
    if done.code == _CODE:
        return f"the library returned code {done.said}"
    if done.code == _TOO_LONG:
        return f"no answer after {deadline:g} s"
    if done.code == _CRASHED + signal.SIGILL:
        return "it used an instruction that this CPU lacks (SIGILL)"
    if done.code > _CRASHED:
        return f"it crashed ({signal.strsignal(done.code - _CRASHED) or done.code})"
    return done.said if done.code else "it ended before its answer was whole"


def _failed(bundle: Bundle, entry: str, name: str, why: str) -> CheckFailed:
    return CheckFailed(
        f"{entry} of {bundle.manifest.name} is wrong on {name}: it is not activated", why,
        "what was active still is; build for this device's target (edgecsi device probe), or report a bug",
    )  # fmt: skip
