"""Where features meet: fixed batches, single numbers, outputs without samples, recipes, halves, batches of calls."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgecsi
from edgecsi import target as targets
from edgecsi.bench.competitors import fp32_model
from edgecsi.bundle import Bundle, read_bundle, read_golden
from edgecsi.channels.files import as_samples
from edgecsi.codegen.zig import zig_cc
from edgecsi.compress import compress
from edgecsi.device import Local, open_device
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.errors import BundleError, DataError, ModelError, UsageError
from edgecsi.evaluate import evaluate_data, judge
from edgecsi.lower import lower
from edgecsi.models.load import load_model
from edgecsi.models.rows import in_rows
from edgecsi.results.reliability.memory import Found, compile_guarded
from edgecsi.results.reliability.memory import judge as judge_memory
from edgecsi.tune.trial_bundle import _described
from tests._sshd import serving

CODEBOOK = """
import torch
from torch import nn

class Codebook(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.codebook = nn.Linear(8, 6), nn.Parameter(torch.randn(5, 6))

    def encode(self, x):
        return (self.first(x)[:, None] - self.codebook).square().sum(-1).argmin(-1)

    def decode(self, numbers):
        return self.codebook[numbers]

    def forward(self, x):
        return self.decode(self.encode(x))

def codebook():
    torch.manual_seed(0)
    return Codebook().eval(), torch.randn(1, 8)
"""

SOURCE = '''
import torch
from torch import nn

class Fixed(nn.Module):
    """Takes a number and two samples, no more and no fewer; the mean is of both."""
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.places = nn.Parameter(torch.randn(2, 8))

    def forward(self, scale, x):
        y = self.last(torch.relu(self.first(x.view(2, 8)))) * scale + self.places
        return y, y.square().mean()

class Squeezed(nn.Module):
    """Its codeword has no sample axis."""
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 4), nn.Linear(4, 8)

    def encode(self, x):
        return self.first(x).squeeze(0)

    def decode(self, codeword):
        return self.last(codeword[None])

    def forward(self, x):
        return self.decode(self.encode(x))

class Number(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 6)

    def forward(self, x):
        return self.layer(x.reshape(1, 1)).sum()

class Places(nn.Module):
    """An encoder of integers."""
    def __init__(self):
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(10, 4), nn.Linear(24, 4), nn.Linear(4, 8)

    def encode(self, places):
        return self.first(self.table(places).flatten(1))

    def decode(self, codeword):
        return self.last(codeword)

    def forward(self, places):
        return self.decode(self.encode(places))

class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(4, 4), nn.Embedding(10, 4)

    def forward(self, h, count, H, ids, gain, c, mask, levels):
        y = self.layer(h) + self.table(ids).sum(1)
        return {
            "y": y * gain, "loud": y * 3, "Y": (H * mask).float(), "y_golden": c + y.mean(), "new": ids + count,
            "best": y.argmax(-1), "power": y.square().mean(), "dark": -levels,
        }

class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def encode(self, x):
        return torch.view_as_complex(self.first(x).reshape(1, 4, 2))

    def decode(self, codeword):
        return self.last(torch.view_as_real(codeword).flatten(1))

    def forward(self, x):
        return self.decode(self.encode(x))

def made(kind, *example):
    torch.manual_seed(0)
    return kind(), example

def fixed():
    return made(Fixed, torch.tensor(0.7), torch.randn(2, 8))

def mixed():
    ids, levels = torch.randint(10, (1, 6)), torch.randint(0, 256, (1, 4), dtype=torch.uint8)
    mask, c = torch.tensor([[True, False, True]]), torch.randn(1, 2)
    h, H = torch.randn(1, 4), torch.randn(1, 3)
    return made(Mixed, h, torch.tensor(3), H, ids, torch.tensor(0.7), c, mask, levels)

class Writes(nn.Module):
    """Writes on what it is given."""
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        x -= 0.5
        return self.layer(x)

def writes():
    return made(Writes, torch.randn(1, 8))

def complex_codeword():
    return made(Complex, torch.randn(1, 8))

def squeezed():
    return made(Squeezed, torch.randn(1, 8))

def number():
    return made(Number, torch.tensor(0.5))

def places():
    return made(Places, torch.randint(10, (1, 6)))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the networks, and data for them."""
    folder = tmp_path_factory.mktemp("crossings")
    (folder / "nets.py").write_text(SOURCE)
    random = np.random.default_rng(0)
    np.savez(folder / "fixed.npz", scale=0.3, x=random.standard_normal((33, 8)))
    np.save(folder / "numbers.npy", random.standard_normal(64))
    np.savez(
        folder / "mixed.npz", h=random.standard_normal((20, 4)), count=5, H=random.standard_normal((20, 3)), gain=0.4,
        ids=random.integers(0, 10, (20, 6)), c=random.standard_normal((20, 2)), mask=random.integers(0, 2, (20, 3)),
        levels=random.integers(0, 256, (20, 4)),
    )  # fmt: skip
    return folder


def test_a_network_of_one_batch_and_a_number_is_calibrated_and_evaluated(folder: Path) -> None:
    """Its batch is a call's, its first input has no samples, nor has its second output; one sample is left over."""
    model, data = f"{folder}/nets.py:fixed", f"{folder}/fixed.npz"
    edgecsi.build(model, "host", recipe="int8-static", calib=data, out=folder / "fixed")
    bundle = read_bundle(folder / "fixed")
    found, _ = evaluate_data(bundle, data, open_device("local"), model=model, calib=data)
    judge(bundle, found)
    assert found.differences["full"].max_rel_diff < 1e-5
    np.savez(folder / "few.npz", scale=0.3, x=np.zeros((1, 8)))
    with pytest.raises(DataError, match=r"holds 1 sample\(s\)"):
        edgecsi.build(model, "host", recipe="int8-static", calib=f"{folder}/few.npz", out=folder / "few")


def test_it_is_compressed_call_by_call(folder: Path) -> None:
    recipe = folder / "some.toml"
    recipe.write_text(
        'description = "A few weights zero, trained on beside a network like it, then int8."\n'
        '[[steps]]\ndo = "prune"\nsparsity = 0.1\npattern = "unstructured"\nepochs = 1\nlr = 1e-4\n'
        f'[[steps]]\ndo = "distill"\nteacher-model = "{folder}/nets.py:fixed"\nepochs = 1\nlr = 1e-4\n'
        '[[steps]]\ndo = "quantize"\nmode = "dynamic"\n'
    )
    out = folder / "fixed.safetensors"
    done = compress(f"{folder}/nets.py:fixed", recipe, f"{folder}/fixed.npz", out, batch=4)
    assert done.after < -13


def test_a_codeword_without_samples_is_as_good_as_another(folder: Path) -> None:
    bundle = edgecsi.build(
        f"{folder}/nets.py:squeezed", "host", recipe="int8-dynamic", out=folder / "s"
    ).bundle
    assert bundle is not None
    assert bundle.entry("decoder").inputs[0].shape == (4,)
    assert bundle.manifest.check.status == "passed"


def test_data_stay_as_they_are_if_a_network_writes_on_its_input(folder: Path) -> None:
    """What calibrates and trains calls it again and again with the same samples."""
    np.save(folder / "eight.npy", np.random.default_rng(0).standard_normal((20, 8)))
    model, read = in_rows(load_model(f"{folder}/nets.py:writes"))
    x = torch.from_numpy(read(f"{folder}/eight.npy", None))
    with torch.no_grad():
        once, again = model.module(x).clone(), model.module(x)
    assert torch.equal(once, again)
    assert torch.equal(x, torch.from_numpy(np.load(folder / "eight.npy").astype(np.float32)))


def test_halves_with_complex_numbers_between_them_are_built_as_one(folder: Path) -> None:
    model = load_model(f"{folder}/nets.py:complex_codeword")
    assert list(model.entries) == ["full"]
    assert "complex numbers" in model.entries["full"].note


def test_shapes_and_integers_that_cannot_be_taken_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="takes 2 inputs, and --input-shape is that of one"):
        load_model(f"{folder}/nets.py:fixed", input_shape=(4, 8))
    with pytest.raises(DataError, match="integers up to 16777217"):
        as_samples(np.array([[1, 2**24 + 1]]), "places", (2,))


def test_numbers_are_calibrated_with_and_come_in_batches(folder: Path) -> None:
    model, data = f"{folder}/nets.py:number", f"{folder}/numbers.npy"
    edgecsi.build(model, "host", recipe="int8-dynamic", calib=data, batches=(3,), out=folder / "n")
    x = np.float32([0.5, -1, 2])
    with edgecsi.load(folder / "n") as loaded:
        together = loaded.run(x, entry="full_b3")
        np.testing.assert_allclose(together, [loaded.run(one) for one in x], rtol=1e-6)


def test_a_decoder_is_built_alone_whose_encoder_takes_integers(folder: Path) -> None:
    done = edgecsi.build(f"{folder}/nets.py:places", "host", entry="decoder", batches=(2,), out=folder / "d")
    assert set(done.manifest.check.entries) == {"decoder", "decoder_b2"}


def test_answers_kept_in_another_order_are_compared_with_the_same(folder: Path) -> None:
    model = f"{folder}/nets.py:mixed"
    bundle = edgecsi.build(model, "host", keep_output=("loud", "y", "Y"), out=folder / "order").bundle
    assert bundle is not None
    found, _ = evaluate_data(bundle, f"{folder}/mixed.npz", open_device("local"), model=model)
    assert found.differences["full"].max_rel_diff < 1e-5
    assert found.nmse_db is not None
    assert found.nmse_db == pytest.approx(found.nmse_db_pytorch)  # of `loud`, which comes first
    module = fp32_model(bundle.manifest, model, None)
    assert [tuple(y.shape) for y in module(*load_model(model).inputs)] == [(1, 4), (1, 4), (1, 3)]
    with pytest.raises(BundleError, match="was not built from"):
        evaluate_data(bundle, f"{folder}/mixed.npz", open_device("local"), model=f"{folder}/nets.py:places")


def test_other_engines_get_halves_that_are_methods_with_integers_between_them(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODEBOOK)
    model = f"{tmp_path}/net.py:codebook"
    bundle = edgecsi.build(model, "host", out=tmp_path / "b").bundle
    assert bundle is not None
    module, x = fp32_model(bundle.manifest, model, None), load_model(model).example_input
    numbers = module.encoder(x)
    assert torch.equal(module(x), module.decoder(numbers.int()))


@pytest.fixture(scope="module")
def mixed(folder: Path) -> Bundle:
    """As many tensors as there may be, of all types and shapes, for one call and for three."""
    done = edgecsi.build(f"{folder}/nets.py:mixed", "host", batches=(3,), out=folder / "mixed")
    assert done.bundle is not None
    return done.bundle


def test_sixteen_tensors_are_called_within_their_bounds(mixed: Bundle, folder: Path) -> None:
    assert not judge_memory(compile_guarded(mixed.manifest.target.arch, folder), mixed, Found())


def test_the_example_tells_tensors_apart_that_differ_in_little(mixed: Bundle, folder: Path) -> None:
    header = (mixed.path / mixed.manifest.header).read_text()
    assert "_FULL_h_SIZE 4 " in header
    assert "_FULL_H_SIZE 3 " in header
    assert "int32_t *new_" in header
    options = [
        "-Wall",
        "-Werror",
        mixed.path / "example" / "main.c",
        mixed.library,
        f"-Wl,-rpath,{mixed.path}",
    ]
    zig_cc([*options, "-lm", "-o", folder / "example"])
    done = subprocess.run([folder / "example", mixed.path / "golden.npz"], capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


@pytest.mark.needs("ssh", "sshd")
def test_integers_and_numbers_are_measured_elsewhere(mixed: Bundle) -> None:
    protocol = MeasuringProtocol(
        quick=True, samples=50, seconds=0.02, limit=2.0, turn=0.002, turn_calls=5, settle=2, cold_samples=3
    )
    with serving() as sshd, contextlib.closing(open_device(sshd.spec)) as device:
        for entry in ("full", "full_b3"):
            inputs, _ = read_golden(mixed, entry)
            several = [x.reshape(-1, *x.shape[2:]) for x in inputs]
            for y, here in zip(
                device.run(mixed, entry, several), Local().run(mixed, entry, several), strict=True
            ):
                np.testing.assert_array_equal(y, here)
            once = [x[0] for x in inputs]
            assert device.time(mixed, entry, several, 8).shape == (8,)
            assert device.measure(mixed, entry, once, protocol).samples.size >= 50
            layers = len(mixed.entry(entry).layers)
            assert device.profile(mixed, entry, once, 5, 1.0).shape == (5, layers)
            assert len(device.first_calls(mixed, entry, once, 1)) == 1


def test_integers_are_not_made_of_other_numbers(mixed: Bundle) -> None:
    x = [array[0] for array in read_golden(mixed, "full")[0]]
    names = [tensor.name for tensor in mixed.entry("full").inputs]
    with edgecsi.load(mixed.path) as loaded:
        whole = loaded.run(*x)
        for wrong in (
            x[names.index("ids")] + 0.5,
            x[names.index("ids")] + np.int64(2**32),
            np.full((1, 6), np.nan),
        ):
            given = [wrong if name == "ids" else one for name, one in zip(names, x, strict=True)]
            for run in (lambda g=given: loaded.run(*g), lambda g=given: Local().run(mixed, "full", g)):
                with pytest.raises(DataError, match="integers of 32 bits"):
                    run()
        same = loaded.run(*(one.astype(np.float64) for one in x))
    for y, other in zip(whole, same, strict=True):
        np.testing.assert_array_equal(y, other)


def test_what_cannot_be_measured_in_batches_is_refused(mixed: Bundle, folder: Path) -> None:
    for options in ({"batch": 3}, {"batch": 3, "entry": "full_b3"}):
        with pytest.raises(UsageError, match="cannot be measured in batches"):
            edgecsi.bench(mixed.path, **options)
    with pytest.raises(UsageError, match="several calls at once"):
        edgecsi.bench(mixed.path, entry="full_b3", against=["torch"], model=f"{folder}/nets.py:mixed")


def test_an_answer_given_twice_can_be_tuned() -> None:
    """The library that is measured needs names for its tensors that are all different. One is a constant of booleans,
    which something has to write."""
    module = nn.Linear(4, 4)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.layer(x)
            return y, y, x, x, self.layer.weight > 0

    (planned,) = lower(Twice().eval(), (torch.randn(1, 4),), "full", targets.load("x86"))
    assert len({tensor.name for tensor in _described(planned).outputs}) == 5
