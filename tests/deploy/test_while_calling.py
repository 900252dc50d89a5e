"""A program that has the old library loaded never notices what is deployed."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgecsi.bundle import Bundle
from edgecsi.deploy import Options, deploy, rollback
from tests import _tiny
from tests._every_case import EVERY_CASE
from tests.deploy.conftest import active, place
from tests.deploy.simulated import Simulated

# Loads the library from `current` once, as a program does, and calls it now and then until its standard input ends.
PROGRAM = """
import ctypes, json, select, sys
import numpy as np
library = ctypes.CDLL(sys.argv[1])
x = np.arange(8, dtype=np.float32) / 8
wanted = np.array(json.loads(sys.argv[2]), np.float32)
y = np.empty(8, np.float32)
calls = wrong = 0
print("loaded", flush=True)
while not select.select([sys.stdin], [], [], 0.0005)[0] or calls < 10_000:
    y[:] = 0
    code = library.tiny_net_full(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data))
    calls += 1
    wrong += code != 0 or not np.allclose(y, wanted, rtol=1e-5)
print(json.dumps([calls, wrong]))
"""
TIMES = 20 if EVERY_CASE else 6


def test_ten_thousand_calls_while_deployments_and_rollbacks_go_on(
    bundles: list[Bundle], device: Callable[[], Path]
) -> None:
    home = device()
    x = np.arange(8, dtype=np.float32) / 8
    current = place(home) / "current" / "libtiny-net.so"
    wanted = json.dumps([float(value) for value in _tiny.full(x)])
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(current), wanted],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "loaded\n"
    for number in range(1, TIMES + 1):
        bundle, before = bundles[number % 3], active(home)
        # With `keep=2` the file that the program has mapped is removed as well.
        deploy(bundle, Simulated(home), Options(keep=2, downgrade=True))
        assert active(home) == bundle.manifest.digest
        rollback(Simulated(home), "tiny-net")
        assert active(home) == before or before == bundle.manifest.digest
        fresh = ctypes.CDLL(str(current))  # who starts now finds a whole one
        assert fresh.tiny_net_encoder(None, None) == -1
    output, _ = program.communicate("done\n", timeout=60)
    calls, wrong = json.loads(output)
    assert program.returncode == 0
    assert calls >= 10_000
    assert wrong == 0
