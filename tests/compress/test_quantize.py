"""Quantised networks: exact in integers, close in NMSE, zeros kept."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgecsi.compress import apply_post_training, recipe
from edgecsi.compress.quantize import quantize, ranges, start_rounding
from edgecsi.compress.quantize.fold import equalise, fold_batch_norm
from edgecsi.compress.quantize.ranges import Input, _fine
from edgecsi.compress.quantize.rounded import Rounded
from edgecsi.compress.quantize.weights import quantize_weight
from edgecsi.compress.recipe import Quantize
from edgecsi.errors import DataError, Notice, RecipeError
from edgecsi.models.blocks import ConvBN
from edgecsi.models.compressed.layers import DynamicLinear, StaticConv2d, StaticLinear
from edgecsi.models.csinet import RefineNet
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d, Dense, Quant, QuantizeWide


class Tiny(nn.Module):
    """A small network of the shape of CsiNet, for 2x8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(ConvBN(2, 2, 3), nn.LeakyReLU(0.3), nn.Flatten(), nn.Linear(128, 16))
        self.decoder = nn.Sequential(
            nn.Linear(16, 128), nn.Unflatten(1, (2, 8, 8)), RefineNet(), ConvBN(2, 2, 3), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.decoder(self.encoder(x))
        return y


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    """Like channels: around 0.5, with energy in the first columns, on few dimensions."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.randn(12, 2, 8, 8, generator=generator) * torch.tensor([1.0, 0.5, 0.2, *[0.02] * 5])
    weights = torch.randn(400, 12, generator=generator)
    return (0.5 + 0.03 * torch.einsum("nk,kchw->nchw", weights, basis)).clamp(0, 1)


@pytest.fixture(scope="module")
def network(samples: torch.Tensor) -> nn.Module:
    """Trained a little, so that normalisation and weights are what they are in real ones."""
    torch.manual_seed(0)
    module = Tiny()
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (module(samples) - samples).square().mean().backward()
        optimizer.step()
    return module.eval().requires_grad_(False)


def error_db(wanted: torch.Tensor, got: torch.Tensor) -> float:
    error = (wanted - got).square().sum() / (wanted - wanted.mean(0)).square().sum()
    return float(10 * torch.log10(error))


def test_folding_changes_nothing_and_leaves_no_normalisation(
    network: nn.Module, samples: torch.Tensor
) -> None:
    folded = copy.deepcopy(network)
    fold_batch_norm(folded, samples[:1])
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    torch.testing.assert_close(folded(samples), network(samples), rtol=1e-4, atol=1e-5)


def test_channels_between_two_convolutions_come_to_one_range() -> None:
    torch.manual_seed(4)
    first, second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
    with torch.no_grad():
        first.weight.mul_(torch.tensor([100.0, 1.0, 1.0, 0.01])[:, None, None, None])
    network = nn.Sequential(first, nn.LeakyReLU(0.3), second, nn.Tanh(), nn.Conv2d(2, 2, 1))
    samples = torch.randn(8, 2, 6, 6)
    before, last = network(samples).detach(), network[4].weight.detach().clone()
    equalise(network, {name: part for name, part in network.named_modules() if name}, samples)
    torch.testing.assert_close(network(samples), before, rtol=1e-4, atol=1e-4)
    peaks = network[:2](samples).abs().amax((0, 2, 3))
    assert float((peaks.max() / peaks.min()).detach()) < 1.01
    assert torch.equal(network[4].weight, last), "a tanh minds"


def test_channels_that_something_else_reads_keep_their_range() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.relu, self.second = nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.relu(self.first(x))
            return self.second(y) + y

    torch.manual_seed(5)
    network, samples = Skip(), torch.randn(8, 2, 6, 6)
    before, weight = network(samples).detach(), network.first.weight.detach().clone()
    equalise(network, dict(network.named_modules()), samples)
    torch.testing.assert_close(network(samples), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.first.weight.detach(), weight)


def test_an_input_has_one_plane_where_the_sums_have_no_room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is never negative, whose zero point is the lowest code."""
    image = torch.Size((2, 32, 32))
    assert [_fine(nn.Conv2d(channels, 2, 3), image) for channels in (1, 409, 410)] == [64, 8, 1]
    monkeypatch.setattr(ranges, "_LONGEST_SUM", 1 << 25)  # as if the channels were 32 times as many
    torch.manual_seed(6)
    network = nn.Sequential(nn.Conv2d(2, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))
    samples = torch.randn(8, 2, 8, 8)
    small = quantize(copy.deepcopy(network), Quantize(wide=("*",)), samples, samples[:1])
    assert [part.fine for part in small if isinstance(part, StaticConv2d)] == [64, 1]
    with torch.no_grad():
        assert error_db(network(samples), small(samples)) < -20


def test_a_convolution_that_something_else_reads_keeps_its_normalisation() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
            self.other, self.folded = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
            nn.init.constant_(self.norm.weight, 3.0)
            nn.init.constant_(self.folded.weight, 2.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.folded(self.other(self.norm(self.conv(x)) + self.conv(x)))
            return y

    module, x = Twice().eval(), torch.rand(1, 2, 8, 8)
    wanted = module(x)
    fold_batch_norm(module, x)
    assert isinstance(module.norm, nn.BatchNorm2d)
    assert module.conv.bias is None
    assert isinstance(module.folded, nn.Identity)
    torch.testing.assert_close(module(x), wanted)


@pytest.mark.parametrize(("mode", "limit_db"), [("static", -12), ("dynamic", -25), ("weights", -30)])
def test_int8_stays_close_to_fp32(
    network: nn.Module, samples: torch.Tensor, mode: str, limit_db: float
) -> None:
    text = f'[[steps]]\ndo = "quantize"\nmode = "{mode}"'
    small = apply_post_training(network, samples[:1], recipe.parse(text, "t"), samples).requires_grad_(False)
    assert error_db(network.encoder(samples), small.encoder(samples)) < -20
    assert error_db(network(samples), small(samples)) < limit_db


def test_training_form_computes_what_the_integers_compute(network: nn.Module, samples: torch.Tensor) -> None:
    rounded = copy.deepcopy(network)
    start_rounding(rounded, Quantize(), samples, samples[:1])
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    layers = {name: part for name, part in rounded.named_modules() if isinstance(part, Rounded)}
    assert len(layers) == 7
    for name, part in layers.items():
        part.register_forward_hook(lambda _p, i, o, name=name: seen.update({name: (i[0], o)}))
    with torch.no_grad():
        rounded(samples[:4])
        for name, part in layers.items():
            x, y = seen[name]
            assert error_db(y, part.integer()(x)) < -40, name


def test_static_layers_equal_the_kernels_reference(network: nn.Module, samples: torch.Tensor) -> None:
    module = quantize(copy.deepcopy(network), Quantize(), samples, samples[:1])
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    static = {n: p for n, p in module.named_modules() if isinstance(p, StaticConv2d | StaticLinear)}
    assert len(static) == 7
    for name, part in static.items():
        part.register_forward_hook(lambda _p, i, o, name=name: seen.update({name: (i[0], o)}))
    module(samples[:2])
    for name, part in static.items():
        x, y = seen[name]
        if isinstance(part, StaticLinear):
            x = Input(part.centre, part.gain).evened(x)
        x, y = x.numpy(), y.numpy()
        quant = Quant(part.scale, part.zero_point, part.offset)
        codes = quant.codes(np.ascontiguousarray(x))
        common = {
            "weight": part.weight.numpy(),
            "bias": part.bias.numpy(),
            "scale": part.weight_scale.numpy(),
            "x_quant": quant,
        }
        op: Conv2d | Dense
        if isinstance(part, StaticConv2d):
            x_layout = Layout(x.shape, dtype="uint8", fill=part.zero_point)
            op = Conv2d(x=x_layout, y=Layout(y.shape), padding=tuple(part.padding), **common)
        else:
            op = Dense(x=Layout(x.shape, dtype="uint8"), y=Layout(y.shape), **common)
        np.testing.assert_array_equal(y, op.compute(codes), err_msg=name)


def test_two_planes_of_codes_are_finer_and_equal_the_kernels_reference(
    network: nn.Module, samples: torch.Tensor
) -> None:
    plain = quantize(copy.deepcopy(network), Quantize(calibration="minmax"), samples, samples[:1])
    step = Quantize(calibration="minmax", wide=("*",))
    wide = quantize(copy.deepcopy(network), step, samples, samples[:1])
    assert error_db(network(samples), wide(samples)) < error_db(network(samples), plain(samples)) - 3
    part = wide.decoder[2].path.expand1.conv
    assert isinstance(part, StaticConv2d)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    part.register_forward_hook(lambda _p, i, o: seen.append((i[0], o)))
    wide(samples[:2])
    (x, y), quant = seen[0], Quant(part.scale, part.zero_point, part.offset)
    codes_shape = (2, 4, *x.shape[2:])
    codes = QuantizeWide(
        x=Layout(tuple(x.shape)), y=Layout(codes_shape, "uint8"), y_quant=quant, fine=part.fine
    )
    op = Conv2d(
        x=Layout(codes_shape, "uint8", fill=part.zero_point), y=Layout(tuple(y.shape)), padding=tuple(part.padding),
        weight=part.weight.numpy(), bias=part.bias.numpy(), scale=part.weight_scale.numpy(),
        x_quant=Quant(part.scale / part.fine, part.zero_point), fine=part.fine,
    )  # fmt: skip
    np.testing.assert_array_equal(y, op.compute(codes.reference(x.numpy())))
    assert all(layer.fine > 1 for layer in wide.modules() if isinstance(layer, StaticLinear))


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_inputs_of_very_different_size_or_mean_are_evened_out(mode: str) -> None:
    torch.manual_seed(0)
    size = torch.logspace(0, -3, 64)
    even = torch.randn(300, 64)
    for inputs, has_centre, has_gain in (
        (even, False, False),
        (even * size, False, True),
        (even + 100 * torch.randn(64), True, False),
        ((even + 100 * torch.randn(64)) * size, True, True),
    ):
        layer = nn.Sequential(nn.Linear(64, 32)).requires_grad_(False)
        nn.init.normal_(layer[0].weight)
        if has_gain:
            layer[0].weight /= size.sqrt()
        small = quantize(copy.deepcopy(layer), Quantize(mode=mode), inputs, inputs[:1])
        assert (small[0].centre is not None, small[0].gain is not None) == (has_centre, has_gain)
        assert error_db(layer(inputs), small(inputs)) < -30


def test_the_response_to_the_constant_is_exact_at_the_border_too() -> None:
    torch.manual_seed(1)
    layer = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False))
    constant = torch.full((1, 2, 8, 8), 0.5)
    data = constant + 0.02 * torch.randn(64, 2, 8, 8)
    small = quantize(copy.deepcopy(layer), Quantize(), data, constant)
    assert small[0].offset == 0.5
    assert small[0].bias.shape == (4, 8, 8)
    torch.testing.assert_close(small(constant), layer(constant), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("bits", "limit_db"), [(8, -43), (6, -31), (4, -19)])
def test_weights_are_symmetric_and_keep_zeros(bits: int, limit_db: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 40)
    weight[:, ::3] = 0
    weight[5] = 0
    codes, scale = quantize_weight(weight, bits)
    assert int(codes.abs().max()) <= 2 ** (bits - 1) - 1
    assert bool((codes[weight == 0] == 0).all())
    assert bool((scale > 0).all())
    assert error_db(weight, codes * scale[:, None]) < limit_db


def test_pruned_weights_stay_zero_in_int8(network: nn.Module, samples: torch.Tensor) -> None:
    pruned = copy.deepcopy(network)
    with torch.no_grad():
        pruned.encoder[3].weight[:, ::2] = 0
        pruned.decoder[0].weight[torch.rand(128, 16) < 0.5] = 0
    small = quantize(copy.deepcopy(pruned), Quantize(), samples, samples[:1])
    for name in ("encoder.3", "decoder.0"):
        before, after = pruned.get_submodule(name).weight, small.get_submodule(name).weight
        assert bool((after[before == 0] == 0).all())
        assert float((after[before != 0] != 0).double().mean()) > 0.5


def test_layers_are_kept_and_errors_are_clear(network: nn.Module, samples: torch.Tensor) -> None:
    small = quantize(copy.deepcopy(network), Quantize(keep_fp32=("decoder.*",)), samples, samples[:1])
    assert isinstance(small.decoder[0], nn.Linear)
    assert isinstance(small.encoder[3], StaticLinear)
    with pytest.raises(RecipeError, match="no layer to quantise"):
        quantize(copy.deepcopy(network), Quantize(keep_fp32=("*",)), samples, samples[:1])
    with pytest.raises(DataError, match="calibration data"):
        apply_post_training(network, samples[:1], "int8-static")
    with pytest.raises(DataError, match="NaN"):
        apply_post_training(network, samples[:1], "int8-static", samples * float("nan"))
    trained = recipe.parse('[[steps]]\ndo = "prune"\npattern = "rows"\nsparsity = 0.5', "trains")
    with pytest.raises(RecipeError, match="trains"):
        apply_post_training(network, samples[:1], trained)


def test_a_fit_to_few_samples_is_not_trusted(network: nn.Module, samples: torch.Tensor) -> None:
    few = quantize(copy.deepcopy(network), Quantize(mode="weights"), samples[:6], samples[:1]).requires_grad_(
        False
    )
    assert error_db(network(samples), few(samples)) < -25


def test_dense_layers_may_keep_a_range_for_every_sample_beside_static_convolutions(
    network: nn.Module, samples: torch.Tensor
) -> None:
    step = Quantize(calibration="minmax", wide=("*",), dynamic=("encoder.3", "decoder.0"))
    small = quantize(copy.deepcopy(network), step, samples, samples[:1])
    assert isinstance(small.encoder[3], DynamicLinear)
    assert isinstance(small.decoder[0], DynamicLinear)
    assert isinstance(small.decoder[3].conv, StaticConv2d)
    assert error_db(network(samples), small(samples)) < -20


@pytest.mark.parametrize("layer", ["dense", "convolution"])
def test_samples_that_do_not_differ_make_no_layer_blind(layer: str) -> None:
    """What lies around the one input that was seen is no range: other inputs have to come through all the same."""
    torch.manual_seed(0)
    net: nn.Module = nn.Linear(32, 16) if layer == "dense" else nn.Conv2d(2, 4, 3, padding=1)
    shape = (32,) if layer == "dense" else (2, 8, 8)
    seen = torch.randn(*shape).expand(200, *shape) if layer == "dense" else torch.full((200, *shape), 0.7)
    with pytest.warns(Notice, match="the same in all samples"):
        small = apply_post_training(nn.Sequential(net).eval(), seen[:1], "int8-static", seen)
    other = torch.rand(64, *shape) * seen.abs().max()
    with torch.no_grad():
        assert error_db(net(other), small(other)) < -25


@pytest.mark.parametrize("wide", [(), ("*",)])
def test_convolutions_whose_sums_no_kernel_holds_stay_fp32(wide: tuple[str, ...]) -> None:
    """Strides are computed in fp32, whose sums of integers are exact up to 2^24: 255 * 127 * 576 is more."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 64, 3, padding=1), nn.Conv2d(64, 4, 3, stride=2), nn.Conv2d(4, 2, 3, stride=2)
    ).eval()  # fmt: skip
    x = torch.randn(96, 2, 16, 16)
    with pytest.warns(Notice, match=r"stay in fp32: 1 Conv2d \(1\)"):
        small = quantize(copy.deepcopy(net), Quantize(mode="static", wide=wide), x, x[:1])
    first, left, last = small.children()
    assert isinstance(first, StaticConv2d)
    assert isinstance(last, StaticConv2d)
    assert type(left) is nn.Conv2d
    for layer in (first, last):
        most = 2**24 if layer is last else 2**31
        assert 255 * 127 * layer.weight[0].numel() * (layer.fine + (layer.fine > 1)) < most
