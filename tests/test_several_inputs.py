"""Networks of several inputs and outputs, and of integers, go the whole way: calibrated, built, evaluated, compressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

import edgecsi
from edgecsi import verdict
from edgecsi.bundle import read_bundle
from edgecsi.channels.named import load_named
from edgecsi.compress import compress
from edgecsi.device import open_device
from edgecsi.errors import BundleError, DataError, ModelError
from edgecsi.evaluate import evaluate_data, judge
from edgecsi.results.reliability.memory import Found, compile_guarded
from edgecsi.results.reliability.memory import judge as judge_memory

SOURCE = """
import torch
from torch import nn

class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.noise, self.users, self.rows = nn.Linear(1, 8), nn.Embedding(10, 8), nn.Linear(16, 16)

    def forward(self, h, snr, user, levels, scale):
        y = self.first(h) + self.noise(snr)[..., None, None] + self.users(user)[..., None, None]
        y = self.last(torch.relu(y)) + levels[:, None, None].float() / 255
        y = h + self.rows(y.flatten(2)).reshape(h.shape) * scale
        return {"clean": y, "strong": (y > 0.5).to(torch.uint8), "power": y.square().mean((1, 2, 3))}

def denoiser():
    torch.manual_seed(0)
    levels = torch.randint(0, 256, (1, 4), dtype=torch.uint8)
    return Denoiser(), (torch.randn(1, 2, 4, 4), torch.rand(1, 1), torch.tensor([3]), levels, torch.tensor(0.7))

class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(24, 8), nn.Linear(8, 24)

    def encode(self, x):
        codeword = self.first(x)
        return codeword, codeword.abs().mean(-1)

    def decode(self, codeword, size):
        return {"y": self.last(codeword) * size[:, None], "signs": (codeword > 0).to(torch.uint8)}

    def forward(self, x):
        return self.decode(*self.encode(x))

class Strongest(nn.Module):
    def forward(self, x, gain):
        return (x * (1 - gain).clamp(min=0)).topk(5)[1]

class Packed(nn.Module):
    def __init__(self, pack):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.pack = nn.Linear(24, 8), pack

    def forward(self, x):
        y = self.first(x.mul_(2))
        return {"tuple": (y,), "list": [y, None], "dictionary": {"y": {"inner": y}}}[self.pack]

def packed(pack):
    return Packed(pack), torch.randn(1, 24)

def unseeded():
    torch.seed()
    return nn.Linear(24, 8), torch.randn(1, 24)

def strongest():
    return Strongest(), (torch.randn(1, 24), torch.tensor(0.5))

def halves():
    torch.manual_seed(0)
    return Halves(), torch.randn(1, 24)
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """MODEL, DATA, and the folder they lie in."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "networks.py").write_text(SOURCE)
    random = np.random.default_rng(0)
    np.savez(
        folder / "data.npz", h=random.standard_normal((64, 2, 4, 4)), snr=random.random((64, 1)),
        user=random.integers(0, 10, 64), levels=random.integers(0, 256, (64, 4), np.uint8), scale=0.3,
    )  # fmt: skip
    return f"{folder}/networks.py:denoiser", f"{folder}/data.npz", folder


@pytest.fixture(scope="module")
def calibrated(given: tuple[str, str, Path]) -> Path:
    model, data, folder = given
    edgecsi.build(
        model, "host", recipe="int8-static", calib=data, keep_output=("power", "clean"), out=folder / "b"
    )
    return folder / "b"


def test_data_by_name_calibrate_and_evaluate_some_outputs(
    given: tuple[str, str, Path], calibrated: Path
) -> None:
    model, data, _ = given
    bundle = read_bundle(calibrated)
    assert [t.name for t in bundle.manifest.entries["full"].outputs] == ["power", "clean"]
    assert {layer.bits for layer in bundle.manifest.entries["full"].layers} >= {8}
    allowed = bundle.manifest.check.entries["full"].allowed  # of this network, not of any
    assert allowed is not None
    assert verdict.NARROW <= allowed < verdict.QUANTISED
    found, note = evaluate_data(bundle, data, open_device("local"), 20, model, calib=data)
    judge(bundle, found)
    assert not note
    assert found.samples == 20
    assert found.differences["full"].max_rel_diff < 1e-5
    assert found.nmse_db is not None
    assert found.nmse_db_fp32 == pytest.approx(found.nmse_db, abs=0.5)


@pytest.mark.parametrize("pack", ["tuple", "list", "dictionary"])
def test_one_output_may_be_packed_in_something(
    given: tuple[str, str, Path], tmp_path: Path, pack: str
) -> None:
    """And the network writes on its input, which is none of its answer."""
    model = f"{given[2]}/networks.py:packed(pack={pack!r})"
    bundle = edgecsi.build(model, "host", batches=(2,), out=tmp_path / "b").bundle
    assert bundle is not None
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((9, 24), np.float32))
    found, _ = evaluate_data(bundle, f"{tmp_path}/x.npy", open_device("local"), 20, model)
    judge(bundle, found)
    assert found.differences["full"].max_rel_diff < 1e-5


def test_a_factory_that_makes_other_weights_each_time_is_told_so(
    given: tuple[str, str, Path], tmp_path: Path
) -> None:
    model = f"{given[2]}/networks.py:unseeded"
    bundle = edgecsi.build(model, "host", out=tmp_path / "b").bundle
    assert bundle is not None
    np.save(tmp_path / "x.npy", np.ones((3, 24), np.float32))
    with pytest.raises(BundleError, match=r"other weights than .* has now\n.*\ncall torch.manual_seed"):
        evaluate_data(bundle, f"{tmp_path}/x.npy", open_device("local"), 20, model)


@pytest.mark.parametrize("factory", ["denoiser", "halves"])
def test_several_calls_at_once_give_what_each_gives(
    given: tuple[str, str, Path], tmp_path: Path, factory: str
) -> None:
    """Of every tensor there is one for each call, of single numbers too; and not a byte beyond is touched."""
    bundle = edgecsi.build(
        f"{given[2]}/networks.py:{factory}", "host", batches=(3,), out=tmp_path / "b"
    ).bundle
    assert bundle is not None
    random = np.random.default_rng(0)
    with edgecsi.load(bundle.path) as loaded:
        for entry in ("full", "decoder") if factory == "halves" else ("full",):
            at_once, one = bundle.entry(f"{entry}_b3"), bundle.entry(entry)
            inputs = [random.integers(0, 10, (3, *t.shape)).astype(t.dtype) for t in one.inputs]
            together = loaded.run(
                *(x.reshape(t.shape) for x, t in zip(inputs, at_once.inputs, strict=True)),
                entry=f"{entry}_b3",
            )
            alone = [loaded.run(*(x[call] for x in inputs), entry=entry) for call in range(3)]
            for number, tensor in enumerate(at_once.outputs):
                wanted = np.stack([answers[number] for answers in alone]).reshape(tensor.shape)
                np.testing.assert_allclose(together[number], wanted, rtol=1e-5, atol=1e-5)
    program = compile_guarded(bundle.manifest.target.arch, tmp_path)
    assert not judge_memory(program, bundle, Found())


def test_places_of_equal_values_are_refused_though_only_some_inputs_have_such(
    given: tuple[str, str, Path], tmp_path: Path
) -> None:
    """All are zero where the gain is above 1, which the build's check is the first to meet."""
    with pytest.raises(ModelError, match="which of equal values"):
        edgecsi.build(f"{given[2]}/networks.py:strongest", "host", out=tmp_path / "b")


def test_samples_are_those_of_the_first_input_that_has_axes(given: tuple[str, str, Path]) -> None:
    shapes = [x.shape for x in load_named(given[1], {"scale": (), "snr": (1, 1), "h": (1, 2, 4, 4)})]
    assert shapes == [(), (64, 1), (64, 2, 4, 4)]
    arrays = dict(np.load(given[1]))  # numbers only: each has one for every sample
    savemat(given[2] / "data.mat", arrays)  # MATLAB's have two axes, or more
    for data in (given[1], given[2] / "data.mat"):
        assert [x.shape for x in load_named(data, {"user": (), "snr": ()})] == [(64,), (64,)]
        found = load_named(data, {"user": (1,), "scale": (), "h": (1, 2, 4, 4)})
        assert [x.shape for x in found] == [(64,), (), (64, 2, 4, 4)]


def test_other_engines_get_the_outputs_that_a_bundle_has(
    given: tuple[str, str, Path], calibrated: Path
) -> None:
    from edgecsi.bench.competitors import fp32_model
    from edgecsi.models.load import load_model

    module = fp32_model(read_bundle(calibrated).manifest, given[0], None)
    power, clean = module(*load_model(given[0]).inputs)
    assert (power.shape, clean.shape) == ((1,), (1, 2, 4, 4))


def test_an_encoder_gives_all_that_its_decoder_takes(given: tuple[str, str, Path]) -> None:
    _, _, folder = given
    model = f"{folder}/networks.py:halves"
    edgecsi.build(model, "host", keep_output=("y",), out=folder / "halves")
    bundle = read_bundle(folder / "halves")
    outputs = {name: [t.name for t in e.outputs] for name, e in bundle.manifest.entries.items()}
    assert outputs == {"encoder": ["codeword", "codeword1"], "decoder": ["y"], "full": ["y"]}
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((20, 24), np.float32))
    found, _ = evaluate_data(bundle, f"{folder}/x.npy", open_device("local"), model=model)
    assert set(found.differences) == {"encoder", "decoder", "full"}
    assert max(d.max_rel_diff for d in found.differences.values()) < 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"snr": None}, ["has no variable snr", "user [64]", "the network takes h [N, 2, 4, 4], snr [N, 1]"]),
        ({"user": np.zeros(63)}, ["different numbers of samples", "user 63"]),
        ({"scale": np.zeros(2)}, ["#scale", "the same for all samples"]),
        ({"levels": np.zeros((64, 5))}, ["#levels", "[N, 4]"]),
    ],
)
def test_data_that_do_not_fit_are_named(
    given: tuple[str, str, Path], tmp_path: Path, change: dict[str, object], words: list[str]
) -> None:
    model, data, _ = given
    arrays = {name: array for name, array in {**np.load(data), **change}.items() if array is not None}
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(DataError) as caught:
        edgecsi.build(
            model, "host", recipe="int8-static", calib=str(tmp_path / "other.npz"), out=tmp_path / "b"
        )
    text = f"{caught.value.what} {caught.value.why} {caught.value.fix}"
    assert all(word in text for word in words), text


def test_one_array_for_several_inputs_is_refused_with_their_names(given: tuple[str, str, Path]) -> None:
    model, data, folder = given
    np.save(folder / "h.npy", np.load(data)["h"])
    with pytest.raises(DataError, match="takes 5 inputs, h, snr, user, levels, scale"):
        edgecsi.build(model, "host", recipe="int8-static", calib=str(folder / "h.npy"), out=folder / "c")


def test_recipes_of_compress_take_them_too(given: tuple[str, str, Path]) -> None:
    model, data, folder = given
    recipe = folder / "some.toml"
    recipe.write_text(
        'description = "A third of the dense weights zero, trained on, then int8."\n'
        '[[steps]]\ndo = "prune"\nsparsity = 0.3\npattern = "unstructured"\nepochs = 1\nlr = 1e-4\n'
        '[[steps]]\ndo = "quantize"\nmode = "dynamic"\n'
    )
    out = folder / "small.safetensors"
    done = compress(model, recipe, data, out, batch=16)
    assert done.metric == "difference_db"
    assert done.after < -13
    bundle = edgecsi.build(model, "host", weights=str(out), out=folder / "small")
    assert bundle.manifest.check.status == "passed"
