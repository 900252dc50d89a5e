"""A whole recipe: written whole or not at all, the same after a restart, rebuilt by whoever loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecsi.channels.shipped import test_set as shipped_channels
from edgecsi.compress import (
    CompressProgress,
    compress,
    layer_costs,
    recipe,
    run,
)
from edgecsi.compress.size import densities
from edgecsi.errors import CheckFailed, DataError, ModelError, Notice, RecipeError
from edgecsi.models.checkpoint_files import read_metadata
from edgecsi.models.compressed.layers import ClusteredLinear, StaticLinear
from edgecsi.models.load import load_model
from tests._builds import build_for
from tests._every_case import in_turns

pytestmark = [
    pytest.mark.usefixtures("short"),
    pytest.mark.filterwarnings("ignore::edgecsi.errors.Notice"),  # untrained networks, few samples
]


class Killed(Exception):
    pass


PRUNE = 'do = "prune"\npattern = "bsr4x1"\nsparsity = 0.5\nepochs = 2\n'
QUANTIZE = '[[steps]]\ndo = "quantize"\n'
RECIPES = {
    "prune": f"[[steps]]\n{PRUNE}",
    "rewound": f'[[steps]]\n{PRUNE}rewind = "weights"\nteacher = 0.5',
    "fisher": f'[[steps]]\n{PRUNE}criterion = "fisher"\nscope = "global"',
    "sensitivity": f'[[steps]]\n{PRUNE}scope = "sensitivity"',
    "reconstruct-int8": f'[[steps]]\n{PRUNE}criterion = "reconstruct"\n{QUANTIZE}epochs = 2',
    "columns": '[[steps]]\ndo = "prune"\npattern = "columns"\nsparsity = 0.5\nexclude = ["*fc1"]\nepochs = 2',
    "cluster": f'[[steps]]\n{PRUNE}\n[[steps]]\ndo = "cluster"\ncentroids = 16\nepochs = 2',
    "factor": f'[[steps]]\ndo = "low-rank"\nbudget = 0.5\nepochs = 1\n{QUANTIZE}mode = "dynamic"',
    "distill": '[[steps]]\ndo = "distill"\nepochs = 2',
}


def kill_and_resume(
    model: str, chosen: recipe.Recipe, data: str, folder: Path, at_once: bool = False, turn: int = 0
) -> Path:
    """Kill a run half-way or near its end, in turns (and at once), start it again, and compare; returns what it
    writes."""
    straight, resumed = folder / "a.safetensors", folder / "b.safetensors"
    events: list[CompressProgress] = []
    compress(model, chosen, data, straight, accept_loss=True, progress=events.append)

    late = sorted({len(events) // 2, len(events) - 1} - {0})
    for stop in sorted({1} | {*late} if at_once else {*in_turns(late, turn if len(late) > 1 else 0)}):
        seen = 0

        def kill(_: CompressProgress, stop: int = stop) -> None:
            nonlocal seen
            seen += 1
            if seen == stop:
                raise Killed

        resumed.unlink(missing_ok=True)
        with pytest.raises(Killed):
            compress(model, chosen, data, resumed, resume=False, accept_loss=True, progress=kill)
        assert not resumed.exists()
        compress(model, chosen, data, resumed, accept_loss=True)
        assert resumed.read_bytes() == straight.read_bytes(), f"killed at {events[stop - 1]}"
    assert sorted(path.name for path in folder.iterdir()) == ["a.safetensors", "b.safetensors"]
    return straight


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_ends_with_the_same_file(detector: str, tmp_path: Path, name: str) -> None:
    chosen, turn = recipe.parse(RECIPES[name], name), list(RECIPES).index(name)
    kill_and_resume(detector, chosen, "mimo:2000", tmp_path, name == "prune", turn)


CODEC = """
import torch
from torch import nn

class Codec(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(128, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 128), nn.Unflatten(1, (2, 8, 8)))

    def forward(self, x):
        return self.decoder(self.encoder(x))

def make():
    return Codec().eval(), torch.zeros(1, 2, 8, 8)
"""


def test_a_killed_run_ends_with_the_same_clusters_around_a_codeword(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("codec")
    (folder / "net.py").write_text(CODEC)
    # more than twice as many samples as the codeword has entries
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((80, 2, 8, 8)))
    model, chosen = f"{folder / 'net.py'}:make", recipe.parse('[[steps]]\ndo = "cluster"\nepochs = 2', "c")
    made = kill_and_resume(model, chosen, str(folder / "x.npy"), tmp_path)
    module = load_model(model, str(made)).module
    for layer in (module.encoder[1], module.decoder[0]):
        assert isinstance(layer, ClusteredLinear)
        assert len(layer.table) == 16


@pytest.fixture(scope="module")
def clustered(csi_network: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clustered")
    np.save(folder / "channels.npy", shipped_channels(80))
    chosen = recipe.parse('[[steps]]\ndo = "cluster"\nepochs = 0', "cluster")
    out = folder / "clustered.safetensors"
    compress(csi_network, chosen, str(folder / "channels.npy"), out, accept_loss=True)
    return str(out)


@pytest.mark.parametrize("target", ["host", "x86-64-v3", "rpi4", "rpi5"])
def test_clusters_around_a_codeword_are_built_with_their_scales(
    clustered: str, tmp_path: Path, target: str
) -> None:
    module = load_model(clustered).module
    assert module.encoder.fc.gain.shape == (2048,)
    assert module.decoder.fc.scale.shape == (2048,)
    manifest = build_for(clustered, target, tmp_path / "bundle").manifest
    assert manifest.check.entries["full"].max_rel_diff < 1e-5
    assert [layer.kernel for layer in manifest.entries["full"].layers].count("f32_lut16_dense") == 2


def test_compressing_again_goes_on_with_the_record(clustered: str, tmp_path: Path) -> None:
    data, out = str(Path(clustered).with_name("channels.npy")), tmp_path / "again.safetensors"
    chosen = recipe.parse('[[steps]]\ndo = "halve"\narithmetic = "int16"', "int16")
    compress(clustered, chosen, data, out, accept_loss=True)
    first, both = (json.loads(read_metadata(Path(path))["compression"]) for path in (clustered, out))
    assert both["recipe"] == "cluster+int16"
    assert [step["kind"] for step in both["steps"]] == ["cluster", "halve"]
    for key in ("before", "bytes_before", "weights_sha256"):
        assert both[key] == first[key]
    assert both["bytes_after"] < first["bytes_after"]
    assert load_model(str(out)).module.decoder.fc.scale.shape == (2048,)


def test_equal_steps_are_told_apart(detector: str, tmp_path: Path) -> None:
    told: list[CompressProgress] = []
    step = '[[steps]]\ndo = "distill"\nepochs = 1\n'
    compress(
        detector, recipe.parse(step * 2, "t"), "mimo:2000", tmp_path / "o.safetensors", progress=told.append
    )
    assert [(now.step, now.epoch) for now in told] == [(1, 1), (1, 0), (2, 1), (2, 0)]


def test_a_frozen_layer_stays_while_the_others_learn(detector: str, tmp_path: Path) -> None:
    out = tmp_path / "trained.safetensors"
    text = '[[steps]]\ndo = "distill"\nteacher = 0.0\nepochs = 1\nfreeze = ["*fc2"]'
    compress(detector, recipe.parse(text, "t"), "mimo:2000", out)
    before, after = load_model(detector).module.layers, load_model(str(out)).module.layers
    assert torch.equal(before.fc2.weight, after.fc2.weight)
    assert not torch.equal(before.fc3.weight, after.fc3.weight)
    with pytest.raises(RecipeError, match="no layer to freeze"):
        compress(
            detector, recipe.parse(text.replace("fc2", "fc9"), "t"), "mimo:2000", tmp_path / "b.safetensors"
        )
    assert not (tmp_path / "b.safetensors").exists()


def test_neurons_go_with_the_inputs_they_made(detector: str, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    result = compress(detector, recipe.parse(RECIPES["columns"], "t"), "mimo:2000", out)
    module = load_model(str(out)).module
    for layer in (module.layers.fc1, module.layers.fc4):
        assert int((layer.weight != 0).any(1).sum()) == 100
        assert int((layer.bias != 0).sum()) == 100
    assert result.bytes_after < 0.32 * result.bytes_before


def test_the_file_is_all_that_is_needed(detector: str, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    result = compress(detector, recipe.parse(RECIPES["reconstruct-int8"], "mine"), "mimo:2000", out)
    loaded = load_model(str(out))
    assert loaded.name == "fullycon"
    assert isinstance(loaded.module.layers.fc2, StaticLinear)
    assert result.density == densities(loaded.module)
    assert sum(result.density.values()) / 5 == pytest.approx(0.5, abs=0.01)
    assert result.bytes_after < result.bytes_before / 4.5
    record = json.loads(read_metadata(out)["compression"])
    assert record["recipe"] == "mine"
    assert record["recipe_text"] == RECIPES["reconstruct-int8"]
    assert record["before"] == result.before
    assert record["after"] == result.after
    assert [step["kind"] for step in record["steps"]] == ["prune", "quantize"]
    assert torch.export.export(loaded.module, (loaded.example_input,))


def test_clusters_are_few_and_keep_zeros(detector: str, tmp_path: Path) -> None:
    out = tmp_path / "clustered.safetensors"
    compress(detector, recipe.parse(RECIPES["cluster"], "t"), "mimo:2000", out)
    module = load_model(str(out)).module
    assert isinstance(module.layers.fc2, ClusteredLinear)
    assert len(module.layers.fc2.table) == 16
    zero = module.layers.fc2.table[module.layers.fc2.index.long()] == 0
    blocks = zero.reshape(-1, 4, zero.shape[1]).all(1)
    assert float(blocks.float().mean()) == pytest.approx(0.5, abs=0.02), (
        "every pruned block, and hardly another"
    )


def test_channels_of_the_papers_work_everywhere(csi_network: str, channels: Path, tmp_path: Path) -> None:
    text = '[[steps]]\ndo = "prune"\npattern = "bsr16x1"\nsparsity = 0.8\nepochs = 1\nramp = 0.5\n'
    text += '[[steps]]\ndo = "quantize"\nsamples = 16'
    result = compress(csi_network, recipe.parse(text, "t"), channels, tmp_path / "o.safetensors", batch=16)
    assert result.metric == "nmse_db"
    y = load_model(str(result.path)).module(torch.from_numpy(shipped_channels(2)))
    assert y.shape == (2, 2, 32, 32)


def test_errors_leave_nothing_half_written(
    csi_network: str, detector: str, channels: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.safetensors"
    chosen = recipe.parse(RECIPES["prune"], "t")
    with pytest.raises(DataError):
        compress(detector, chosen, channels, out)
    with pytest.raises(DataError):
        compress(csi_network, chosen, "mimo:100", out)
    bad = tmp_path / "bad.npy"
    np.save(bad, np.full((20, 2, 32, 31), 0.5, np.float32))
    with pytest.raises(DataError, match="shape"):
        compress(csi_network, chosen, bad, out)
    with pytest.raises(RecipeError, match="does not divide"):
        compress(detector, recipe.parse(RECIPES["prune"].replace("4x1", "7x1"), "t"), "mimo:2000", out)
    with pytest.raises(RecipeError, match=r"no \.safetensors file"):
        compress(detector, chosen, "mimo:2000", tmp_path / "o.pth")
    with pytest.raises(ModelError, match="the loss became"):
        compress(detector, recipe.parse(RECIPES["distill"] + "\nlr = 1.0\nteacher = 0.0", "t"), "mimo:2000",
                 out, weights=_damaged(detector, tmp_path))  # fmt: skip
    assert not out.exists()


def test_a_state_of_another_run_is_refused(detector: str, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"

    def kill(_: CompressProgress) -> None:
        raise Killed

    with pytest.raises(Killed):
        compress(detector, recipe.parse(RECIPES["prune"], "t"), "mimo:2000", out, progress=kill)
    with pytest.raises(ModelError, match=r"belongs to another run\nit differs in recipe"):
        compress(detector, recipe.parse(RECIPES["fisher"], "t"), "mimo:2000", out)
    out.with_suffix(".resume").write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot be read"):
        compress(detector, recipe.parse(RECIPES["prune"], "t"), "mimo:2000", out)


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.pop("structure"),
        lambda record: record["structure"].append({"path": "layers.fc9", "kind": "StaticLinear"}),
        lambda record: record["structure"][0].update(kind="Linear"),
        lambda record: record["structure"][0].update(path="layers.relu1"),
        lambda record: record["structure"][0].update(surprise=1),
        lambda record: record["structure"][0].pop("scale"),
        lambda record: record["structure"].pop(),
    ],
)
def test_damaged_files_are_refused(detector: str, tmp_path: Path, damage: object) -> None:
    from safetensors.torch import load_file, save_file

    out = tmp_path / "o.safetensors"
    text = '[[steps]]\ndo = "quantize"'
    compress(detector, recipe.parse(text, "t"), "mimo:2000", out)
    metadata = read_metadata(out)
    record = json.loads(metadata["compression"])
    damage(record)
    save_file(load_file(out), out, metadata | {"compression": json.dumps(record)})
    with pytest.raises(ModelError, match="do not fit the model"):
        load_model(str(out))


def _damaged(weights: str, folder: Path) -> str:
    """A copy whose numbers are so large that the first loss is infinite."""
    from safetensors.torch import load_file, save_file

    path = folder / "damaged.safetensors"
    shutil.copy(weights, path)
    save_file({key: value * 1e20 for key, value in load_file(path).items()}, path, read_metadata(path))
    return str(path)


def test_a_recipe_that_ruins_the_network_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "channels.npy", shipped_channels(800))
    data, out = tmp_path / "channels.npy", tmp_path / "o.safetensors"
    ruin = recipe.parse('[[steps]]\ndo = "low-rank"\nbudget = 0.02\nepochs = 0', "ruin")
    with (
        pytest.warns(Notice, match=r"step 1 \(low-rank\) of ruin loses .* dB"),
        pytest.raises(CheckFailed, match=r"ruin ruins the network.*\n.*\n.*--accept-loss"),
    ):
        compress("csinet-cr16", ruin, data, out)
    assert not out.exists()
    with pytest.warns(Notice, match="loses"):
        assert compress("csinet-cr16", ruin, data, out, accept_loss=True).path.exists()
    full = recipe.parse('[[steps]]\ndo = "low-rank"\nenergy = 0.9999\nepochs = 0', "full")
    with pytest.raises(RecipeError, match="their outputs are full already"):
        compress("csinet-cr16", full, data, out)


def test_an_untrained_network_is_named(csi_network: str, channels: Path, tmp_path: Path) -> None:
    with pytest.warns(Notice, match=r"looks untrained: NMSE \d"):
        compress(csi_network, "int8-dynamic", channels, tmp_path / "o.safetensors")


DECODER = """
import torch
from torch import nn
def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 12)).eval(), torch.zeros(1, 24)
def autoencoder():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(416, 416), nn.Unflatten(1, (2, 16, 13))).eval()
    net[1].weight.data.copy_(torch.eye(416) + 0.01 * torch.randn(416, 416))
    return net, torch.zeros(1, 2, 16, 13)
"""


def test_a_network_with_inputs_of_its_own_is_compressed(tmp_path: Path) -> None:
    """What is no channel and reconstructs nothing is held to its own first answers."""
    (tmp_path / "net.py").write_text(DECODER)
    np.save(tmp_path / "codewords.npy", np.random.default_rng(0).standard_normal((400, 24)))
    out = tmp_path / "o.safetensors"
    chosen = recipe.parse(f'[[steps]]\n{PRUNE}criterion = "reconstruct"\nlr = 0.01\n{QUANTIZE}', "t")
    model = f"{tmp_path}/net.py:make"
    result = compress(model, chosen, str(tmp_path / "codewords.npy"), out, accept_loss=True)
    assert result.metric == "difference_db"
    assert result.before < -60 < -20 < result.after < 0
    costs = layer_costs(model, "int8-static", str(tmp_path / "codewords.npy"))
    assert [cost.layer for cost in costs.layers if cost.cost < 1e-3] == ["2", "0"] or costs.layers
    assert costs.keep_fp32 == ()


def test_an_autoencoder_of_another_shape_has_an_nmse(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(DECODER)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((200, 2, 16, 13)))
    out = tmp_path / "o.safetensors"
    result = compress(f"{tmp_path}/net.py:autoencoder", "int8-dynamic", str(tmp_path / "x.npy"), out)
    assert result.metric == "nmse_db"
    assert -25 < result.before < -5
    assert result.after == pytest.approx(result.before, abs=0.5)


def test_what_comes_before_the_first_epoch_is_kept(
    detector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruning by reconstruction takes longer than an epoch, and says layer by layer what it does."""
    chosen = recipe.parse(f'[[steps]]\n{PRUNE}criterion = "reconstruct"', "t")
    straight, resumed = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    told: list[CompressProgress] = []
    compress(detector, chosen, "mimo:2000", straight, accept_loss=True, progress=told.append)
    phases = [(now.phase, now.done, now.total) for now in told if now.phase]
    assert phases[0] == ("measuring what layers see", 0, 0)
    assert phases[1:] == [(f"solving layers.fc{number + 1}", number, 5) for number in range(5)]

    def kill(now: CompressProgress) -> None:
        if now.epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        compress(detector, chosen, "mimo:2000", resumed, accept_loss=True, progress=kill)
    monkeypatch.setattr(run, "reconstruct", None)
    compress(detector, chosen, "mimo:2000", resumed, accept_loss=True)
    assert resumed.read_bytes() == straight.read_bytes()


def test_a_finished_step_is_kept(detector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe.parse(f'[[steps]]\n{PRUNE}\n{QUANTIZE}mode = "dynamic"', "t")
    out = tmp_path / "a.safetensors"

    def kill(now: CompressProgress) -> None:
        if now.phase.startswith("rounding"):
            raise Killed

    with pytest.raises(Killed):
        compress(detector, chosen, "mimo:2000", out, accept_loss=True, progress=kill)
    told: list[CompressProgress] = []
    compress(detector, chosen, "mimo:2000", out, accept_loss=True, progress=told.append)
    assert {now.kind for now in told} == {"quantize"}


def test_a_later_step_without_a_layer_loses_nothing_of_those_before(detector: str, tmp_path: Path) -> None:
    """FullyCon has no convolution: int16 for these is said to change nothing, and the int8 layers stand."""
    steps = '[[steps]]\ndo = "quantize"\nmode = "weights"\n\n[[steps]]\ndo = "halve"\narithmetic = "int16"\n'
    wanted = recipe.parse(steps, "both")
    with pytest.warns(Notice, match=r"step 2 \(halve\) of both changes nothing"):
        result = compress(detector, wanted, None, tmp_path / "small.safetensors", accept_loss=True)
    assert result.bytes_after < result.bytes_before / 3
    other = recipe.parse(steps.partition("\n\n")[2] + 'layers = ["nothing"]\n', "one")
    with pytest.raises(RecipeError, match="nor a convolution"):
        compress(detector, other, None, tmp_path / "other.safetensors")


@pytest.mark.parametrize("precision", ["double", "half"])
def test_another_precision_is_refused_by_name(precision: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(f"""
import torch
def make():
    return torch.nn.Sequential(torch.nn.Linear(8, 8)).{precision}(), torch.zeros(1, 8).{precision}()
""")
    with pytest.raises(ModelError, match=r"computes in float(64|16): its input is"):
        compress(f"{tmp_path}/net.py:make", "int8-dynamic", None, tmp_path / "small.safetensors")
