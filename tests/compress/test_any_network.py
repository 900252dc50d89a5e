"""Post-training recipes on networks of every kind: they lose next to nothing, what stays fp32 is named."""

from __future__ import annotations

import json
import threading
import warnings
from collections import UserDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgecsi.compress import apply_post_training, recipe
from edgecsi.compress.low_rank import factor_layers
from edgecsi.compress.post_training import compressed
from edgecsi.compress.prune import prunable
from edgecsi.compress.recipe import LowRank, Prune
from edgecsi.errors import ModelError, Notice
from edgecsi.models.compressed.layers import CompressedLayer
from edgecsi.models.compressed.store import rebuild, structure
from edgecsi.models.load import load_model
from edgecsi.models.parametrised import make_plain
from edgecsi.reference import outputs_of
from tests.lower._answers import Answers

RECIPES = [name for name in recipe.list_recipes() if recipe.load(name).post_training]


class OwnAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v)
        y: Tensor = x + self.down(torch.relu(self.up(x)))
        return y


class Transformer(nn.Module):
    """Children called encoder and decoder with no codeword between them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.decoder(x, self.encoder(x))
        return y


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.lstm(x)[0])
        return y


class Gated(nn.Module):
    """Two layers, both directions, and one that no int8 layer can stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(16, 8, 2, batch_first=True, bidirectional=True)
        self.rnn, self.fc = nn.RNN(16, 8, batch_first=True), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.rnn(self.gru(x)[0])[0])
        return y


class Masked(nn.Module):
    """Attention to another tensor, with a mask, of which the weights are an output's factor."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, kdim=8, vdim=8)
        self.odd = nn.MultiheadAttention(16, 4, add_bias_kv=True, batch_first=True)
        self.register_buffer("later", torch.triu(torch.ones(8, 8), 1) > 0)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        seen, weights = self.attention(y, y[..., :8], y[..., 8:], attn_mask=self.later)
        y = seen.transpose(0, 1) * weights.sum(1)[..., None]
        z: Tensor = self.odd(x, y, y, need_weights=False)[0]
        return z


class OneDimension(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv1d(8, 16, 3, padding=1), nn.ConvTranspose1d(16, 8, 3, padding=1)
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.up(torch.relu(self.conv(x))))
        return y


class InPlace(nn.Module):
    """A convolution used twice, normalised once, and tensors that are overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = (
            nn.Conv2d(2, 2, 3, padding=1),
            nn.BatchNorm2d(2),
            nn.ReLU(inplace=True),
        )
        self.round, self.fc = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Linear(128, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        x += self.conv(x)
        y: Tensor = self.fc(self.relu(self.round(x)).flatten(1))
        return y


def weight_norm() -> nn.Module:
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(16, 32))
    return nn.Sequential(layer, nn.ReLU(inplace=True), nn.Linear(32, 4))


class Asks(nn.Module):
    """As people write code for any device and precision."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.typed, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x.to(next(self.parameters()).device))
        return UserDict(y=self.last(self.typed(x.to(self.typed.weight.dtype))).bfloat16())  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["int8-weights", "int8-dynamic"])
def test_layers_whose_type_or_device_the_network_asks_for_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom tests.compress.test_any_network import Asks\n"
        "def make():\n    torch.manual_seed(0)\n    return Asks(), torch.randn(1, 16)\n"
    )
    model = load_model(f"{tmp_path}/net.py:make")
    with pytest.warns(Notice, match="first, typed"):
        made = compressed(model, name, None)
    kinds = {key: type(part) for key, part in made.module.named_modules()}
    assert kinds["first"] is kinds["typed"] is nn.Linear
    assert issubclass(kinds["last"], CompressedLayer)
    x = torch.randn(1, 16)
    (found,), (wanted,) = outputs_of(made.entries["full"], [x]), outputs_of(model.entries["full"], [x])
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_what_cannot_be_copied_is_refused_by_name() -> None:
    class Locked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(16, 16)
            self.lock = threading.Lock()

    with pytest.raises(ModelError, match="cannot be copied"):
        apply_post_training(Locked(), torch.randn(1, 16), "int8-weights")


def windows() -> nn.Module:
    """Dense layers on tokens of windows: tensors of four axes that are no images."""
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def dead() -> nn.Module:
    """The second layer's input never varies."""
    return nn.Sequential(nn.Linear(16, 16), nn.Threshold(1e9, 0.0), nn.Linear(16, 4))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "own attention": (OwnAttention, (8, 16), ""),
    "transformer": (Transformer, (8, 16), ""),
    "LSTM": (Recurrent, (8, 16), ""),
    "GRU": (Gated, (8, 16), "1 RNN (rnn)"),
    "masked": (Masked, (8, 16), "1 MultiheadAttention (odd)"),
    "one dimension": (OneDimension, (8, 16), "1 ConvTranspose1d (up)"),
    "in place": (InPlace, (2, 8, 8), "1 Conv2d (round)"),
    "weight norm": (weight_norm, (16,), ""),
    "windows": (windows, (4, 8, 16), ""),
    "dead": (dead, (16,), ""),
}


def network(kind: str) -> tuple[nn.Module, Tensor]:
    make, shape, _ = NETWORKS[kind]
    torch.manual_seed(0)
    module = make().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_var is not None
            assert part.running_mean is not None
            part.running_var.uniform_(0.5, 2)
            part.running_mean.uniform_(-1, 1)
    make_plain(module)
    return module, torch.randn(64, *shape)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_int8_of_any_network_loses_little_and_names_what_stays(kind: str, name: str) -> None:
    module, x = network(kind)
    left = NETWORKS[kind][2]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantised = apply_post_training(module, x[:1], name, x)
    with torch.no_grad():
        wanted, found = module(x), quantised(x)
    assert float((found - wanted).square().sum()) < 2e-4 * float(wanted.square().sum()) + 1e-12
    if name not in ("f16-weights", "f16"):
        assert any(isinstance(part, CompressedLayer) for part in quantised.modules())
    again = rebuild(
        NETWORKS[kind][0]() if kind != "weight norm" else network(kind)[0],
        {"compression": json.dumps({"structure": structure(quantised, module)})},
        quantised.state_dict(),
    )
    with torch.no_grad():
        assert torch.equal(again(x), found)
    if name == "f16":  # leaves what is too small to gain by it
        return
    said = " ".join(str(warning.message) for warning in caught if warning.category is Notice)
    convolutions = "static" in name or name in ("int8-wide", "int16")
    spared = name == "f16-weights" or ("Conv" in left and not convolutions)
    assert bool(said) == (bool(left) and not spared)
    assert spared or left in said


def test_pruning_and_factoring_leave_what_attention_uses_itself() -> None:
    module, x = network("transformer")
    with pytest.warns(Notice, match=r"cannot prune by reconstruction.*NonDynamicallyQuantizableLinear"):
        chosen = prunable(module, Prune("unstructured", sparsity=0.5, criterion="reconstruct"), x[:1])
    assert {name.rsplit(".", 1)[1] for name in chosen} == {"linear1", "linear2"}
    with pytest.warns(Notice):
        ranks = factor_layers(module, LowRank(energy=0.9), x)
    assert set(ranks) <= set(chosen)
    with torch.no_grad():
        assert module(x).isfinite().all()


def test_layers_that_the_pattern_does_not_divide_stay_dense() -> None:
    module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))
    with pytest.warns(Notice, match=r"not pruned, as bsr16x1 does not divide them: 1 Linear \(2\)"):
        assert list(prunable(module, Prune("bsr16x1", sparsity=0.5))) == ["0"]


def test_a_rank_follows_from_the_outputs_on_data() -> None:
    """A weight of full rank whose inputs lie on three dimensions."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 32))
    x = torch.randn(200, 3) @ torch.randn(3, 32) + 2
    wanted = module(x)
    assert factor_layers(module, LowRank(energy=0.9999), x) == {"0": 3}
    torch.testing.assert_close(module(x), wanted, rtol=1e-3, atol=1e-3)


def test_a_build_says_what_a_recipe_loses() -> None:
    """CsiNet 1/16 with weights of two bits, and a network that reconstructs nothing."""
    two_bits = recipe.parse('[[steps]]\ndo = "quantize"\nmode = "weights"\nbits = 2', "two-bits")
    loaded = load_model("csinet-cr16")
    with pytest.warns(
        Notice, match=r"recipe two-bits loses \d+\.\d dB: NMSE of the fp32 network -\d\.\d\d dB"
    ):
        apply_post_training(loaded.module, loaded.example_input, two_bits)
    module, x = network("weight norm")
    with pytest.warns(Notice, match=r"loses .* answers in PyTorch differ from the fp32 network's by -\d"):
        apply_post_training(module, x[:1], two_bits, x)


def test_codes_of_a_dense_layer_are_the_image_that_a_convolution_reads() -> None:
    """Both layers are int8 and nothing but a view lies between them; the convolution wants channels side by side."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.conv = nn.Linear(32, 512), nn.Conv2d(2, 2, 5, padding=2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(self.fc(x).reshape(-1, 2, 16, 16))
            return y

    torch.manual_seed(0)
    x = torch.randn(64, 32)
    quantised = apply_post_training(Decoder().eval(), x[:1], "int8-static", x)
    library = Answers(quantised, (x[:1],))
    assert all(not library.wrong(sample) for sample in x.split(1)[:8])


def test_rows_of_tensors_of_four_axes_take_whole_tensors_into_their_epilogue() -> None:
    """Scales and offsets of every token before an int8 layer, sums and gates, where a tensor looks like an image."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.gate = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            seen = self.conv(x)
            y = seen + self.down(torch.relu(self.up(x)))
            gated: Tensor = self.conv(y) + self.gate(y) * y.mean((2, 3), keepdim=True)
            return gated

    torch.manual_seed(0)
    x = torch.randn(64, 2, 8, 32)
    module = Tokens().eval()
    for made in (module, apply_post_training(module, x[:1], "int8-static", x)):
        library = Answers(made, (x[:1],))
        assert all(not library.wrong(sample) for sample in x.split(1)[:4])


@pytest.mark.parametrize("name", ["int8-weights", "int8-dynamic"])
def test_layers_of_other_precisions_stay_as_they_are(name: str) -> None:
    """Beside one of float32, which is quantised: a network may compute a part in half or in double precision."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).double()
            self.recurrent = nn.LSTM(6, 8, batch_first=True).half()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
            self.line, self.last = nn.Conv1d(24, 24, 3, padding=1).double(), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.recurrent(self.image(x.double()).flatten(1, 2).half())[0].double()
            y = self.line(self.attention(y, y, y)[0])
            return self.last(y.float())

    torch.manual_seed(0)
    module, x = Mixed().eval(), torch.randn(1, 2, 8, 8)
    with pytest.warns(Notice, match="recurrent"):
        compressed = apply_post_training(module, x, name)
    assert isinstance(compressed.get_submodule("last"), CompressedLayer)
    assert {type(compressed.get_submodule(n)) for n in ("recurrent", "line")} == {nn.LSTM, nn.Conv1d}
    wanted = module(x)
    assert (compressed(x) - wanted).abs().max() < 0.05 * wanted.abs().max()
