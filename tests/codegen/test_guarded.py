"""Whole bundles between guard pages: no byte is read or written outside of what the header names, and a thread's stack
is not left, on this CPU and on ARM under QEMU. `guarded.c` says how."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgecsi import target as targets
from edgecsi.bundle import Bundle
from edgecsi.results.reliability.memory import (
    Found,
    compile_guarded,
    compile_memcheck,
    random_networks,
    run_guarded,
    watch,
)
from tests._builds import build_for
from tests._cpu import skip_without

FACTORIES = """
import torch
from torch import nn
from torch.nn import functional as F

def odd():
    torch.manual_seed(0)
    layers = [nn.Linear(30, 201), nn.ReLU(), nn.Linear(201, 7), nn.Sigmoid()]
    return nn.Sequential(*layers).eval(), torch.rand(1, 30)

def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 2, 5)).eval(), torch.rand(1, 2, 29, 31)

class Writes(nn.Module):
    def forward(self, x):
        y = F.pad(x, (1, 1, 2, 0), mode="circular")
        y[:, 0, 3:5] = x[:, 1, 1:3, :1]
        y = y.index_add(3, torch.tensor([9, 0, 4]), x[:, :, :, :3].repeat(1, 1, 2, 1)[:, :, :10])
        y = y.scatter(2, torch.tensor([[0, 9], [8, 1]]).expand(len(x), 1, 2, 2), x[:, :1, :2, :2])
        places = (x[:, :, :3] * 9).long().clamp(0, 9)
        back = F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2)
        return torch.cat([y.scatter(3, places, 2.0), y.roll(3, 2), back], 1)

def writes():
    return Writes(), torch.rand(1, 2, 8, 8)
"""
INT8 = "csinet-cr16+prune75-bsr16x4-int8"
PAIRS = [
    (INT8, "host"), (INT8, "x86"), (INT8, "rpi4"), (INT8, "rpi5"), ("crnet-cr16+int8-dynamic", "host"),
    ("fullycon", "x86"), ("odd", "host"), ("odd", "x86-64-v4"), ("odd", "x86"), ("odd", "rpi4"), ("odd", "rpi5"),
    ("wide", "host"), ("wide", "x86"), ("wide", "rpi5"), ("writes", "x86"), ("writes", "rpi4"),
]  # fmt: skip


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """guarded.c for both architectures."""
    folder = tmp_path_factory.mktemp("guarded")
    return {arch: compile_guarded(arch, folder) for arch in targets.TRIPLES}


def bundle_of(model: str, target: str, folder: Path) -> Bundle:
    wanted = targets.load(target)
    if wanted.arch == "x86_64":
        skip_without(wanted)
    options: dict[str, Any] = {}
    spec = model
    if model in FACTORIES:
        (folder / "net.py").write_text(FACTORIES)
        spec = f"{folder}/net.py:{model}"
        options = {"batches": (2,)} | ({"recipe": "int8-dynamic"} if model == "odd" else {})
    bundle = build_for(spec, target, folder / f"{model}-{target}", **options).bundle
    assert bundle is not None
    return bundle


@pytest.mark.parametrize(("model", "target"), PAIRS)
def test_a_call_touches_its_arrays_and_at_most_32_kb_of_stack(
    program: dict[str, Path], model: str, target: str, tmp_path: Path
) -> None:
    """Where the stack is too small, it ends at the guard page."""
    bundle = bundle_of(model, target, tmp_path)
    guarded = partial(run_guarded, program[bundle.manifest.target.arch], bundle)
    for entry in bundle.manifest.entries:
        done = guarded(entry, "arrays")
        assert (done.returncode, done.stdout) == (0, "43 placements, one answer\n"), done.stderr
        done = guarded(entry, "stack", str(96 << 10))
        found = re.fullmatch(r"(\d+) bytes\n", done.stdout)
        assert found, done.stdout + done.stderr
        assert int(found[1]) <= 32 << 10
    if (model, target) in ((INT8, "host"), (INT8, "rpi4")):
        assert bundle.entry("encoder").workspace > 12 << 10
        for kilobytes in (8, 12):
            done = guarded("encoder", "stack", str(kilobytes << 10))
            assert (done.returncode, done.stdout) == (0, "stopped by signal 11\n"), done.stderr


@pytest.mark.needs("valgrind")
def test_valgrind_watches_the_library_and_would_see_one_value_too_many(tmp_path: Path) -> None:
    bundle = bundle_of("odd", "x86", tmp_path)
    program, workspace = compile_memcheck(tmp_path), bundle.entry("full").workspace
    assert program is not None
    symbol = f"{bundle.manifest.cname}_full"
    for inputs, outputs, said in (("30", "7", ""), ("29", "7", "Invalid read"), ("30", "6", "Invalid write")):
        found = watch(program, bundle.library, symbol, inputs, outputs, workspace)
        assert said in found if said else not found


def test_random_networks_stay_between_their_guard_pages() -> None:
    found = random_networks(Found(), minutes=0.1)
    assert found.networks
    assert not found.findings
