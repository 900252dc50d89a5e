"""MODEL on the command line: zoo names and the user's own code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecsi.errors import ModelError
from edgecsi.lower.export import export
from edgecsi.models import registry
from edgecsi.models.checkpoints import write_weights
from edgecsi.models.load import load_model
from edgecsi.reference import outputs_of

OWN = """
import torch
from torch import nn
from neighbour import WIDTH

class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, 3), nn.Linear(3, WIDTH)
    def encode(self, x):
        return self.down(x)
    def decode(self, c):
        return self.up(c)
    def forward(self, x):
        return self.decode(self.encode(x))

def split():
    return Split().eval(), torch.zeros(1, WIDTH)

def plain():
    return nn.Sequential(nn.Linear(WIDTH, 4), nn.Dropout(0.5))

def double():
    return nn.Linear(WIDTH, 4).double()

def diverged():
    layer = nn.Linear(WIDTH, 4)
    layer.bias.data[0] = float("nan")
    return layer, torch.zeros(1, WIDTH)

class Counts(nn.Linear):
    def get_extra_state(self):
        return {"calls": 3}
    def set_extra_state(self, state):
        assert state["calls"] == 3

def counts():
    return nn.Sequential(Counts(WIDTH, 4)), torch.zeros(1, WIDTH)

def quantized():
    return torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}), torch.zeros(1, WIDTH)

def nothing():
    return None

def fails():
    raise RuntimeError("no such luck")

def wants(argument):
    return nn.Linear(1, 1)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    (tmp_path / "my net.py").write_text(OWN)
    return str(tmp_path / "my net.py")


def test_methods_called_encode_and_decode_are_entries(own: str) -> None:
    model = load_model(f"{own}:split")
    assert list(model.entries) == ["encoder", "decoder", "full"]
    x = torch.randn(1, 5)
    with torch.no_grad():
        codeword = model.entries["encoder"].module(x)
        torch.testing.assert_close(model.entries["decoder"].module(codeword), model.module(x))
    assert model.entries["decoder"].example_input.shape == (1, 3)
    for entry in model.entries.values():
        torch.export.export(entry.module, (entry.example_input,))


def test_a_plain_module_has_one_entry_and_is_put_into_eval_mode(own: str) -> None:
    model = load_model(f"{own}:plain", input_shape=[1, 5])
    assert list(model.entries) == ["full"]
    assert not model.module.training
    assert model.name == "plain"
    assert model.sha256 is None


def test_an_example_of_the_shape_that_is_asked_for_is_kept(tmp_path: Path) -> None:
    """A bundle remembers its first input's shape; the factory also knows its type, and the inputs beside it."""
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Looked(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table = torch.nn.Embedding(9, 4)\n"
        "    def forward(self, index, gain):\n"
        "        return self.table(index) * gain\n"
        "def make():\n"
        "    return Looked(), (torch.zeros(1, 5, dtype=torch.int32), torch.ones(1))\n"
    )
    model = load_model(f"{tmp_path}/net.py:make", input_shape=[1, 5])
    assert model.example_input.dtype == torch.int32
    assert len(model.more_inputs) == 1


def test_a_double_network_becomes_float32(own: str) -> None:
    model = load_model(f"{own}:double", input_shape=[2, 5])
    assert next(model.module.parameters()).dtype == torch.float32


def test_weights_for_the_users_own_network(own: str, tmp_path: Path) -> None:
    state = {"0.weight": torch.ones(4, 5), "0.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "w.pth")
    model = load_model(f"{own}:plain", str(tmp_path / "w.pth"), [1, 5])
    assert torch.equal(model.module.state_dict()["0.weight"], state["0.weight"])
    assert model.sha256


def test_a_factory_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "net.py").write_text("import torch\ndef make():\n    return torch.nn.ReLU()\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_model("my_package.net:make", input_shape=[1, 3]).name == "make"
    assert sys.path == before


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("plain", "--input-shape"),
        ("diverged", "NaN or infinity"),
        ("nothing", "returned a NoneType"),
        ("fails", "RuntimeError: no such luck"),
        ("wants", "takes no arguments"),
        ("absent", "it has"),
        ("wants(1, 2)", "it is wants(argument)"),
        ("wants(argument=open)", "the arguments cannot be read"),
        ("wants(*[1])", "the arguments cannot be read"),
    ],
)
def test_a_bad_factory_is_explained(own: str, factory: str, words: str) -> None:
    with pytest.raises(ModelError) as refused:
        load_model(f"{own}:{factory}")
    assert words in str(refused.value)
    assert refused.value.fix


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([1, 7], "does not run on an input of shape [1, 7]"),
        ([0, 5], "at least 1"),
        ([1, 2**31], "at most"),
        ([], "not possible"),
        ([-1, 5], "at least 1"),
    ],
)
def test_a_bad_input_shape_is_explained(own: str, shape: list[int], words: str) -> None:
    with pytest.raises(ModelError) as refused:
        load_model(f"{own}:plain", input_shape=shape)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere.py:make", "no such file"),
        ("no_such_package.net:make", "cannot be imported"),
        ("csinet-cr5", "nearest: csinet-cr"),
        ("nowhere.safetensors", "no such file"),
    ],
)
def test_what_cannot_be_found_is_explained(spec: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load_model(spec)


def test_a_file_that_does_not_parse(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def (:")
    with pytest.raises(ModelError, match="SyntaxError"):
        load_model(f"{tmp_path}/bad.py:make")


def test_a_zoo_name_without_weights_asks_for_a_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    with pytest.raises(ModelError, match="edgecsi train csinet-cr4"):
        load_model("csinet-cr4")


def test_random_weights_are_always_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    first, second = (load_model("csinet-cr64", allow_random=True) for _ in range(2))
    for a, b in zip(first.module.state_dict().values(), second.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first.example_input, second.example_input)
    assert first.sha256 is None


def test_a_factory_takes_literal_arguments(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn, zeros\n"
        "def make(width, *, more=(1, 2), name='a:b'):\n"
        "    assert more == (1, [2]) and name == 'c:(d)'\n"
        "    return nn.Linear(width, 3), zeros(1, width)\n"
        "class Net(nn.Linear):\n    pass\n"
    )
    loaded = load_model(f"{tmp_path}/net.py:make(7, more=(1, [2]), name='c:(d)')")
    assert loaded.example_input.shape == (1, 7)
    assert loaded.name == "make"
    assert load_model(f"{tmp_path}/net.py:Net(5, 4)", input_shape=[1, 5]).module.out_features == 4
    with pytest.raises(ModelError, match=r"it has make, Net\ngive .*net\.py:make"):
        load_model(f"{tmp_path}/net.py")


def test_sparse_tensors_are_taken_as_plain_ones(tmp_path: Path) -> None:
    """The adjacency of a graph, as buffer or attribute; torch.export knows none."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Graph(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        a = torch.eye(4).roll(1, 0)\n"
        "        self.register_buffer('a', a.to_sparse())\n        self.b = (2 * a).to_sparse()\n"
        "    def forward(self, x):\n        return torch.sparse.mm(self.a, x) + self.b @ x\n"
        "def make():\n    return Graph(), torch.rand(4, 2)\n"
    )
    loaded = load_model(f"{tmp_path}/net.py:make")
    x = loaded.example_input
    assert torch.equal(export(loaded.module, [x]).run([x])[0], 3 * x.roll(1, 0))


def test_a_factory_names_its_inputs(tmp_path: Path) -> None:
    """For a forward that takes them by name, in whatever order, or all in one dictionary."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Named(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(4, 2)\n"
        "    def forward(self, *, gain=None, csi):\n        return self.fc(csi) * gain\n"
        "class Batch(Named):\n"
        "    def forward(self, batch):\n        return super().forward(csi=batch['csi'], gain=batch['gain'])\n"
        "def example():\n    return {'csi': torch.rand(1, 4), 'gain': torch.tensor([[3.0]])}\n"
        "def named():\n    return Named(), example()\n"
        "def batch():\n    return Batch(), example()\n"
    )
    for factory in ("named", "batch"):
        loaded = load_model(f"{tmp_path}/net.py:{factory}")
        csi, gain = loaded.inputs
        assert loaded.entries["full"].input_names == ("csi", "gain")
        assert list(loaded.module.state_dict()) == ["fc.weight", "fc.bias"]
        assert torch.equal(loaded.module(csi, gain), loaded.module.fc(csi) * 3)


def repository(folder: Path, width: int) -> str:
    """A file beside a `utils`, which it imports at once and again when it is called."""
    folder.mkdir()
    (folder / "utils.py").write_text(f"WIDTH = {width}\n")
    (folder / "late.py").write_text("import utils\nWIDTH = utils.WIDTH\n")
    (folder / "net.py").write_text(
        "import utils\nfrom torch import nn, zeros\n"
        "def make():\n    import late\n    return nn.Linear(utils.WIDTH, late.WIDTH), zeros(1, utils.WIDTH)\n"
    )
    return f"{folder}/net.py:make"


def test_two_repositories_with_modules_of_the_same_names(tmp_path: Path) -> None:
    one, two = repository(tmp_path / "one", 3), repository(tmp_path / "two", 4)
    for spec, width in ((one, 3), (two, 4), (one, 3)):
        module = load_model(spec).module
        assert (module.in_features, module.out_features) == (width, width)


def test_a_package_one_folder_up_is_found_by_the_advice(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").write_text("")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net.py").write_text("from common import x\n")
    with pytest.raises(ModelError) as refused:
        load_model(f"{tmp_path}/models/net.py:make")
    assert f"PYTHONPATH={tmp_path}" in refused.value.fix
    (tmp_path / "models" / "__init__.py").write_text("")
    (tmp_path / "models" / "net.py").write_text("from .parts import x\n")
    with pytest.raises(ModelError) as refused:
        load_model(f"{tmp_path}/models/net.py:make")
    assert f"PYTHONPATH={tmp_path}, and give models.net:make" in refused.value.fix


def test_a_file_that_parses_arguments_sees_none_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--cr', type=int, {}=True)\n"
        "arguments = parser.parse_args()\nfrom torch import nn, zeros\n"
        "def make():\n    return nn.Linear(2, 2), zeros(1, 2)\n"
    )
    (tmp_path / "net.py").write_text(text.format("required"))
    before = list(sys.argv)
    with pytest.raises(ModelError, match=r"parses arguments \(argparse\)"):
        load_model(f"{tmp_path}/net.py:make")
    (tmp_path / "net.py").write_text(text.format("default"))
    assert load_model(f"{tmp_path}/net.py:make").module.in_features == 2
    assert sys.argv == before


def test_a_file_of_a_users_network_runs_no_code_that_is_not_named(own: str, tmp_path: Path) -> None:
    weights = load_model(f"{own}:split").module.state_dict()
    write_weights(tmp_path / "small.safetensors", weights, {"model": f"{own}:split"})
    with pytest.raises(ModelError) as refused:
        load_model(str(tmp_path / "small.safetensors"))
    assert f"'{own}:split' --weights {tmp_path}/small.safetensors" in refused.value.fix
    assert load_model(f"{own}:split", str(tmp_path / "small.safetensors")).sha256


def test_what_a_layer_keeps_beside_its_tensors_is_left_out(own: str, tmp_path: Path) -> None:
    module = load_model(f"{own}:counts").module
    assert set(module.state_dict()) == {"0.weight", "0.bias"}
    theirs = {**module.state_dict(), "0._extra_state": {"calls": 3}}
    torch.save(theirs, tmp_path / "theirs.pt")
    loaded = load_model(f"{own}:counts", str(tmp_path / "theirs.pt")).module
    assert torch.equal(loaded.state_dict()["0.weight"], theirs["0.weight"])
    loaded.load_state_dict(module.state_dict())


@pytest.mark.filterwarnings("ignore")  # PyTorch is about to give it up
def test_layers_that_pytorch_quantized_are_refused_by_name(own: str) -> None:
    with pytest.raises(ModelError, match=r"layers that PyTorch quantized\n.*: 0\n.*int8-dynamic"):
        load_model(f"{own}:quantized")


SHELLS = """
import torch
from torch import nn

X = torch.ones(1, 5)

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)
    def forward(self, x):
        return self.fc(x)

class Named(Plain):
    def forward(self, *, x, gain):
        return self.fc(x) * gain

class Dictionary(Plain):
    def forward(self, batch):
        return self.fc(batch["a b"]) * batch["class"]

class Chosen(Plain):
    def __init__(self):
        super().__init__()
        self.forward = self.other
    def other(self, x):
        return self.fc(x) * 2

class Raises(Plain):
    @property
    def encode(self):
        raise RuntimeError("not now")

class Anything(Plain):
    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return lambda *x, **named: None

class Text(Plain):
    def encode(self, text, snr):
        return text.split()
    def decode(self, words):
        return " ".join(words)

class Saves(Plain):
    def state_dict(self):
        return {"model": super().state_dict(), "epoch": 3}

class Refuses(Plain):
    def state_dict(self, *given, **named):
        raise NotImplementedError("call save()")

class Adds(Plain):
    def __init__(self):
        super().__init__()
        self._register_state_dict_hook(lambda module, state, prefix, local: state.update({prefix + "epoch": 3}))

class Evaluates(Plain):
    def train(self, mode=True):
        super().train(mode)  # and returns nothing

class Weight(Plain):
    def forward(self, x):
        return self.fc.weight

NETWORKS = {
    "named": lambda: (Named(), {"x": X, "gain": 2 * X}),
    "dictionary": lambda: (Dictionary(), {"a b": X, "class": X}),
    "chosen": lambda: (Chosen(), X),
    "chosen and named": lambda: (Chosen(), {"x": X}),
    "raises": lambda: (Raises(), X),
    "anything": lambda: (Anything(), X),
    "text": lambda: (Text(), X),
    "saves": lambda: (nn.Sequential(Saves()), X),
    "refuses": lambda: (Refuses(), X),
    "adds": lambda: (nn.Sequential(Adds()), X),
    "evaluates": lambda: (nn.Sequential(Evaluates()), X),
    "weight": lambda: (Weight(), X),
    "lazy": lambda: (nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()), X),
    "exported": lambda: (torch.export.export(Plain(), (X,)).module(), X),
    "inference": lambda: (torch.inference_mode()(lambda: nn.Sequential(Plain(), nn.BatchNorm1d(5)))(), X),
    "meta": lambda: (Plain().to("meta"), X),
    "unknown": lambda: nn.LazyLinear(4),
    "script": lambda: (torch.jit.script(Plain()), X),
    "scripted part": lambda: (nn.Sequential(torch.jit.script(Plain())), X),
    "traced part": lambda: (nn.Sequential(torch.jit.trace(Plain().eval(), X)), X),
    "numpy": lambda: (Plain(), X.numpy()),
    "sparse": lambda: (Plain(), X.to_sparse()),
    "no rows": lambda: (Plain(), X[:0]),
}

def shell(name):
    torch.manual_seed(0)
    return NETWORKS[name]()
"""
REFUSED = {
    "meta": "without values", "unknown": "without values", "script": "TorchScript", "scripted part": "TorchScript",
    "numpy": "ndarray", "sparse": "sparse", "no rows": r"\[0, 5\]",
}  # fmt: skip


def _exported(spec: str) -> None:
    part = load_model(spec).entries["full"]
    export(part.module, part.inputs)


@pytest.mark.parametrize("name", re.findall(r'^    "(.+)": lambda', SHELLS, re.MULTILINE))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_odd_shells_around_layers_are_exported_as_they_answer_or_refused_by_name(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(SHELLS)
    spec = f"{tmp_path}/net.py:shell({name!r})"
    if name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name]):
            _exported(spec)
        return
    model = load_model(spec)
    assert list(model.entries) == ["full"]
    assert ("no halves" in model.entries["full"].note) == (name == "text")
    part = model.entries["full"]
    (found,) = export(part.module, part.inputs).run(part.inputs)
    (expected,) = outputs_of(part, part.inputs)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert all(isinstance(value, torch.Tensor) for value in model.module.state_dict().values())
