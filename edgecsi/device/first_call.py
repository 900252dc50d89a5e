"""A fresh process's first inference: ``python -m edgecsi.device.first_call BUNDLE ENTRY`` (see
``Local.first_calls``)."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from edgecsi.bundle import Loaded, read_bundle, read_golden

KIBIBYTE = 1024  # the unit of Linux's ru_maxrss


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def first_call(path: Path, entry: str) -> dict[str, float | int]:
    """Loads the bundle and calls it once; the fields of :class:`edgecsi.device.protocol.FirstCall`.

    Reading the golden input and verifying the files is not part of the times: a device verifies once, when a
    bundle is deployed.
    """
    bundle = read_bundle(path)
    inputs = [array[0] for array in read_golden(bundle, entry)[0]]
    before = resident()
    begin = time.perf_counter()
    loaded = Loaded(bundle)
    middle = time.perf_counter()
    loaded.run(*inputs, entry=entry)
    end = time.perf_counter()
    return {
        "load_ms": 1e3 * (middle - begin),
        "first_call_ms": 1e3 * (end - middle),
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE,
        "bundle_bytes": resident() - before,
    }


if __name__ == "__main__":
    json.dump(first_call(Path(sys.argv[1]), sys.argv[2]), sys.stdout)
