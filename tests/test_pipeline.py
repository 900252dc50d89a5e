"""The build as a whole: its stages, what it makes, and what it does when its own check fails."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgecsi import load, verdict
from edgecsi.bundle import read_bundle
from edgecsi.codegen.zig import zig_cc
from edgecsi.compress import compress
from edgecsi.errors import (
    CheckFailed,
    DataError,
    InputError,
    ModelError,
    Notice,
    RecipeError,
    ToolchainError,
    UsageError,
)
from edgecsi.lower.graph import Graph
from edgecsi.pipeline import STAGES, BuildOptions, _names_records, build
from tests._builds import NETWORKS, pytorch

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(12, 5)
        self.decoder = nn.Sequential(nn.Linear(5, 12), nn.Tanh())

    def forward(self, x):
        return self.decoder(self.encoder(x))

def make():
    return Net().eval(), torch.zeros(1, 12)

def layer():
    torch.manual_seed(0)
    return nn.Linear(48, 32).eval(), torch.zeros(1, 48)

def recurrent():
    torch.manual_seed(0)
    return nn.GRU(6, 8, batch_first=True).eval(), torch.zeros(1, 5, 6)

def many_inputs():
    layer = nn.Linear(70_000, 1)
    nn.init.ones_(layer.weight)
    return nn.Sequential(layer).eval(), torch.zeros(1, 70_000)
"""


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NETWORK)
    return path


def test_every_stage_is_announced_in_order(network: Path, tmp_path: Path) -> None:
    told: list[tuple[float, float, str]] = []
    result = build(
        BuildOptions(f"{network}:make", "host", out=tmp_path / "out"), lambda *step: told.append(step)
    )
    assert [done for done, _, _ in told] == list(range(len(STAGES) + 1))
    assert {total for _, total, _ in told} == {len(STAGES)}
    assert all(what and "\n" not in what for _, _, what in told)
    assert result.bundle is not None
    assert set(result.manifest.entries) == {"encoder", "decoder", "full"}
    assert read_bundle(tmp_path / "out").manifest == result.manifest


def test_a_dry_run_plans_and_writes_nothing(network: Path, tmp_path: Path) -> None:
    result = build(BuildOptions(f"{network}:make", "rpi4", out=tmp_path / "out", dry_run=True))
    assert result.bundle is None
    assert [layer.op for layer in result.manifest.entries["encoder"].layers] == ["dense"]
    assert not (tmp_path / "out").exists()


def test_one_entry_alone(network: Path, tmp_path: Path) -> None:
    build(BuildOptions(f"{network}:make", "host", out=tmp_path / "out", entry="decoder"))
    loaded = load(tmp_path / "out")
    assert set(loaded.entries) == {"decoder"}
    assert loaded.run(np.zeros((1, 5), np.float32), entry="decoder").shape == (1, 12)
    with pytest.raises(UsageError, match="encoder, decoder, full"):
        build(BuildOptions(f"{network}:make", "host", entry="middle"))


def test_the_encoders_output_is_the_decoders_input(network: Path, tmp_path: Path) -> None:
    build(BuildOptions(f"{network}:make", "host", out=tmp_path / "out"))
    loaded = load(tmp_path / "out")
    x = np.random.default_rng(0).random((1, 12), np.float32)
    assert np.allclose(loaded.run(loaded.run(x, entry="encoder"), entry="decoder"), loaded.run(x), atol=1e-6)


def test_the_batch_is_compiled_in(tmp_path: Path) -> None:
    build(BuildOptions(f"{NETWORKS}:batched", "host", out=tmp_path / "out", input_shape=(5, 2, 8, 8)))
    from tests.lower.networks import batched

    module, _ = batched()
    x = np.random.default_rng(0).random((5, 2, 8, 8), np.float32)
    wanted = pytorch(module, x)
    assert np.abs(load(tmp_path / "out").run(x) - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("model", "recipe", "name", "expected"),
    [
        ("own_file.py:make", None, None, "net"),  # the class of the user's own network
        ("own_file.py:layer", None, None, "own-file"),  # a layer of torch's says nothing
        ("own_file.py:layer", "int8-dynamic", None, "own-file-int8-dynamic"),
        ("own_file.py:make", "int8-dynamic", "My Net 2", "my-net-2"),
        ("own_file.py:make", None, "../up", "up"),
    ],
)
def test_the_bundles_name(
    network: Path, tmp_path: Path, model: str, recipe: str | None, name: str | None, expected: str
) -> None:
    network.rename(tmp_path / "own_file.py")
    options = BuildOptions(f"{tmp_path / model}", "host", name=name, recipe=recipe, dry_run=True)
    manifest = build(options).manifest
    assert (manifest.name, manifest.library) == (expected, f"lib{expected}.so")


def test_compressed_weights_are_part_of_the_name(network: Path, tmp_path: Path) -> None:
    compress(f"{network}:layer", "int8-weights", None, tmp_path / "small.safetensors")
    options = BuildOptions(
        f"{network}:layer", "host", weights=str(tmp_path / "small.safetensors"), dry_run=True
    )
    assert build(options).manifest.name == "net-int8-weights"
    assert build(dataclasses.replace(options, name="own")).manifest.name == "own"


@pytest.mark.parametrize("factory", ["layer", "recurrent"])
def test_a_network_that_is_one_layer_is_compressed(network: Path, tmp_path: Path, factory: str) -> None:
    small = tmp_path / "small.safetensors"
    compress(f"{network}:{factory}", "int8-dynamic", None, small)
    build(BuildOptions(f"{network}:{factory}", "host", weights=str(small), out=tmp_path / "out"))
    assert read_bundle(tmp_path / "out").entry("full").quantised


def test_builds_for_two_targets_stand_side_by_side_and_one_program_links_fp32_and_int8(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for target, recipe in (("rpi4", None), ("host", None), ("host", "int8-dynamic")):
        build(BuildOptions(f"{network}:layer", target, recipe=recipe))
    assert {path.parent.name for path in tmp_path.glob("*/manifest.json")} == {
        "net-rpi4",
        "net-host",
        "net-int8-dynamic-host",
    }
    (tmp_path / "both.c").write_text("""
        #include "net-host/net.h"
        #include "net-int8-dynamic-host/net-int8-dynamic.h"
        int main(void) {
            static float x[48], y[32], z[32];
            x[3] = 1;
            if (net_full(x, y) || net_int8_dynamic_full(x, z)) return 1;
            return y[5] == z[5] ? 2 : 0; /* two libraries, two answers */
        }""")
    libraries = ["net-host/libnet.so", "net-int8-dynamic-host/libnet-int8-dynamic.so"]
    zig_cc(["both.c", *libraries, "-Wl,-rpath,net-host:net-int8-dynamic-host", "-o", "both"], cwd=tmp_path)
    assert subprocess.run([tmp_path / "both"], cwd=tmp_path, check=False).returncode == 0


def test_replacing_another_targets_bundle_is_told_before_the_work(network: Path, tmp_path: Path) -> None:
    build(BuildOptions(f"{network}:layer", "rpi4", out=tmp_path / "out"))  # a notice would be an error
    with pytest.warns(Notice, match=r"/out holds net for rpi4, which this build replaces"):
        build(BuildOptions(f"{network}:layer", "host", out=tmp_path / "out"))


@pytest.mark.parametrize("name", ["", "4x4", "---", "é", "n" * 61])
def test_a_name_that_is_no_c_identifier_is_refused(network: Path, name: str) -> None:
    with pytest.raises(InputError, match="--name"):
        build(BuildOptions(f"{network}:make", "host", name=name, dry_run=True))


def test_a_wrong_answer_is_never_written(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecsi.codegen import library

    gather = library.gather

    def broken(entries):
        linked = gather(entries)
        linked.weights[0:4] = np.float32(1e3).tobytes()
        return linked

    monkeypatch.setattr(library, "gather", broken)
    with pytest.raises(CheckFailed, match="nothing was written"):
        build(BuildOptions(f"{network}:make", "host", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_wrong_answer_names_the_tuning_records_that_may_be_at_fault() -> None:
    def named(*whys: str) -> str:
        layers = [SimpleNamespace(name=f"fc{n}", kernel="f32_dense", why=why) for n, why in enumerate(whys)]
        manifest: Any = SimpleNamespace(entries={"full": SimpleNamespace(layers=layers)})
        return _names_records(CheckFailed("full is wrong", "by 3", "report this"), manifest).fix

    assert named("predicted") == "report this"
    fix = named("predicted", "1.00 µs measured, the default 2.00 (record 0123abcd)")
    assert "--no-records" in fix
    assert "record 0123abcd (f32_dense for fc1)" in fix
    assert "fc0" not in fix


def test_without_an_emulator_the_same_network_is_checked_here(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)
    result = build(BuildOptions(f"{network}:make", "rpi4", out=tmp_path / "out"))
    found = read_bundle(tmp_path / "out").manifest.check
    assert found == result.manifest.check
    assert found.status == "not run"
    assert "qemu-user" in found.reason
    assert "the same network with kernels for" in found.data
    assert set(found.entries) == {"encoder", "decoder", "full"}


def test_lowering_is_never_unchecked(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that computes something else is caught, though nothing here can run the library."""
    from edgecsi import lower

    def wrong(graph: Graph) -> None:
        for node in graph.nodes:
            if node.op == "dense":
                node.attrs["weight"] = node.attrs["weight"] * 2

    monkeypatch.setattr("shutil.which", lambda program: None)
    monkeypatch.setattr(lower, "PASSES", [*lower.PASSES, wrong])
    with pytest.raises(CheckFailed, match="nothing was written"):
        build(BuildOptions(f"{network}:make", "rpi4", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.needs("qemu-aarch64")
def test_a_static_emulator_will_do(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    real = which("qemu-aarch64")
    found = {"qemu-aarch64": None, "qemu-aarch64-static": real}
    monkeypatch.setattr("shutil.which", lambda program, **rest: found.get(program, which(program, **rest)))
    result = build(BuildOptions(f"{network}:make", "rpi4", out=tmp_path / "out"))
    assert result.manifest.check.status == "passed"


RANDOM = """
import torch
from torch import nn

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(12, 12)

    def forward(self, x):
        return self.body(x) + 1e-4 * torch.randn_like(x)

class Dropped(nn.Linear):
    def __init__(self):
        super().__init__(12, 12)

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.1, training=True)

def noisy():
    return Noisy().eval(), torch.zeros(1, 12)

def dropout():
    return Dropped().eval(), torch.zeros(1, 12)
"""


@pytest.mark.parametrize(("factory", "operator"), [("noisy", "randn_like"), ("dropout", "dropout")])
def test_a_network_that_draws_random_numbers_is_refused_by_their_name(
    tmp_path: Path, factory: str, operator: str
) -> None:
    (tmp_path / "net.py").write_text(RANDOM)
    with pytest.raises(ModelError, match=operator):
        build(BuildOptions(f"{tmp_path / 'net.py'}:{factory}", "host", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("recipe", "low", "high"), [("int8-dynamic", 1e-4, 0.1), (None, 1e-5, 1e-5)])
def test_what_is_allowed_follows_from_the_network_and_stands_in_the_manifest(
    network: Path, tmp_path: Path, recipe: str | None, low: float, high: float
) -> None:
    result = build(BuildOptions(f"{network}:make", "host", out=tmp_path / "out", recipe=recipe))
    allowed = result.manifest.check.entries["full"].allowed
    assert allowed is not None
    assert low <= allowed <= high


def test_int8_without_an_fp32_sum_before_a_quantiser_is_held_to_rounding(tmp_path: Path) -> None:
    result = build(BuildOptions("fullycon+int8-static", "host", out=tmp_path / "out"))
    assert result.manifest.check.entries["full"].allowed == verdict.NARROW


@pytest.mark.parametrize("recipe", ["int8-weights", "int8-dynamic"])
def test_a_quantised_network_that_is_a_little_wrong_is_never_written(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """By 5 %, which is more than fp32 rounding before a quantiser can do here, and less than it may do anywhere."""
    from edgecsi import lower

    def wrong(graph: Graph) -> None:
        for node in graph.nodes:
            if node.op == "dense":
                node.attrs["scale"] = node.attrs["scale"] * np.float32(1.05)

    monkeypatch.setattr(lower, "PASSES", [*lower.PASSES, wrong])
    with pytest.raises(CheckFailed, match="nothing was written"):
        build(BuildOptions(f"{network}:make", "host", out=tmp_path / "out", recipe=recipe, entry="encoder"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("factory", ["make", "layer"])
def test_a_recipe_that_needs_no_data(network: Path, tmp_path: Path, factory: str) -> None:
    result = build(BuildOptions(f"{network}:{factory}", "host", out=tmp_path / "out", recipe="int8-dynamic"))
    assert result.manifest.model.recipe == "int8-dynamic"
    layers = result.manifest.entries["full"].layers
    assert {layer.bits for layer in layers if layer.op == "dense"} == {8}


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("int8-static", DataError), ("prune75-bsr16x4-int8", RecipeError), ("shrink", RecipeError)],
)
def test_a_recipe_that_a_build_cannot_apply(
    network: Path, tmp_path: Path, recipe: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        build(BuildOptions(f"{network}:make", "host", out=tmp_path / "out", recipe=recipe))
    assert not (tmp_path / "out").exists()


def test_sums_that_int32_may_not_hold_are_refused_and_nothing_else_is(network: Path, tmp_path: Path) -> None:
    """70,000 inputs, the largest weights: 255 · 127 · 70,000 is more than 2^31, which random inputs do not show."""
    options = BuildOptions(f"{network}:many_inputs", "host", recipe="int8-dynamic", dry_run=True)
    with pytest.raises(
        ToolchainError, match="70,000 inputs: its sums of integers may exceed 32 bits"
    ) as refused:
        build(options)
    assert "keep-fp32" in refused.value.fix
    build(BuildOptions(f"{network}:many_inputs", "host", out=tmp_path / "out", recipe="int8-weights"))
    x = np.ones((1, 70_000), np.float32)
    assert load(tmp_path / "out").run(x) == pytest.approx(70_000, rel=1e-3)
