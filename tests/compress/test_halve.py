"""Half-precision weights as a recipe."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecsi.bundle import read_bundle
from edgecsi.compress import apply_post_training
from edgecsi.compress.halve import halve, int16_layer
from edgecsi.compress.recipe import Halve
from edgecsi.compress.size import stored_bytes
from edgecsi.errors import ModelError, Notice, RecipeError, ToolchainError
from edgecsi.models.compressed.layers import DynamicConv2d, HalfConv2d, HalfLinear, Int16Linear
from edgecsi.models.compressed.store import rebuild, structure
from edgecsi.pipeline import BuildOptions, build

NET = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(512, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)), torch.zeros(1, 512)
"""


CONVOLUTIONS = """
import torch
from torch.nn import *
def make():
    torch.manual_seed(0)
    layers = Conv2d(2, 8, 3, padding=1), LeakyReLU(), Conv2d(8, 2, 3, padding=1), Flatten(), Linear(256, 16)
    return Sequential(*layers), torch.zeros(1, 2, 8, 16)
"""


def test_dense_weights_become_half_precision_numbers_and_nothing_else() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(18, 8), nn.MultiheadAttention(8, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    step_net = nn.Sequential(net[0], net[1], net[2])
    made = apply_post_training(step_net, torch.zeros(1, 2, 8), "f16-weights")
    assert torch.equal(made[2].weight, before["2.weight"].half().float())
    assert torch.equal(made[2].bias, before["2.bias"])
    assert torch.equal(made[0].weight, before["0.weight"])
    assert torch.equal(net[2].weight, before["2.weight"])
    assert stored_bytes(made) < 0.62 * stored_bytes(step_net)


def test_the_library_halves(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    sizes = {}
    for recipe in (None, "f16-weights"):
        out = tmp_path / str(recipe)
        build(BuildOptions(model=f"{tmp_path / 'net.py'}:make", target="x86", out=out, recipe=recipe))
        manifest = read_bundle(out).manifest
        sizes[recipe] = manifest.entries["full"].weight_bytes
        assert {layer.bits for layer in manifest.entries["full"].layers} == {16 if recipe else 32}
    assert sizes["f16-weights"] < 0.51 * sizes[None]


def test_a_weight_that_is_too_large_is_named() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        net[0].weight[0, 0] = 1e6
    with pytest.raises(RecipeError, match="0 has a weight of 1e"):
        apply_post_training(net, torch.zeros(1, 4), "f16-weights")


def test_convolutions_compute_in_int16_and_are_found_again_in_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 9, (3, 3), padding=1),
        nn.Conv2d(9, 4, 3, stride=2),
    ).eval()  # fmt: skip
    x = 0.5 + 0.025 * torch.randn(4, 2, 12, 16)
    with pytest.warns(Notice, match=r"stay in fp32: 1 Conv2d \(4\)"):
        made = halve(copy.deepcopy(net), Halve(arithmetic="int16"), x[:1])
    first, second = made[0], made[3]
    assert isinstance(first, DynamicConv2d)
    assert isinstance(second, DynamicConv2d)
    assert isinstance(made[4], nn.Conv2d)
    # an image of one value keeps its answer: the sum of every filter is rounded, not each of its weights
    sums = second.weight.double().sum((2, 3)) * second.weight_scale.double()[:, None]
    off = (sums - net[3].weight.detach().double().sum((2, 3))).abs() / second.weight_scale.double()[:, None]
    assert float(off.max()) < 0.51
    with torch.no_grad():
        y, wanted = made(x), net(x)
        assert float((y - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())
        records = structure(made, net)
        tensors = {name: value.clone() for name, value in made.state_dict().items()}
        again = rebuild(copy.deepcopy(net), {"compression": json.dumps({"structure": records})}, tensors)
        assert torch.equal(again(x), y)
    tensors["0.weight"] = tensors["0.weight"].float()
    with pytest.raises(ModelError, match=r"0\.weight is torch\.float32"):
        rebuild(copy.deepcopy(net), {"compression": json.dumps({"structure": records})}, tensors)


def test_a_filter_of_any_size_fits_its_sums() -> None:
    convolutions = [
        nn.Conv2d(ins, 8, window, padding="same") for ins, window in ((1, 1), (8, 3), (64, 3), (512, 3))
    ]
    for layer in (*convolutions, *(nn.Linear(ins, 8) for ins in (1, 64, 2048, 4608))):
        made = int16_layer(layer)
        assert int(made.weight.double().abs().flatten(1).sum(1).max()) * made.steps < 2**31
        off = layer.weight - made.weight * made.weight_scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
        assert float(off.detach().abs().max()) <= 1.01 * float(made.weight_scale.max())
        assert int(made.weight.abs().max()) >= 255


def sequences(width: int, outputs: int) -> tuple[nn.Sequential, torch.Tensor]:
    """Attention, a layer of which most weights are zero, and a dense one; with inputs of it."""
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True),
        nn.Linear(width, 64, bias=False),
        nn.Linear(64, outputs),
    ).eval()
    x = torch.randn(8, 6, width)
    with torch.no_grad():
        net[1].weight[torch.rand(64, width) < 0.8] = 0
    return net, x


def test_dense_layers_of_sequences_and_attention_compute_in_int16() -> None:
    net, x = sequences(16, 4)
    with torch.no_grad():
        made = apply_post_training(net, x[:1], "int16")
        y, wanted = made(x), net(x)
    kinds = {name: type(made.get_submodule(name)) for name in ("0.self_attn.qkv", "0.linear1", "1", "2")}
    # zeros are left out where most are: such a layer computes in fp32 with half the bytes
    assert list(kinds.values()) == [Int16Linear, Int16Linear, nn.Linear, Int16Linear]
    assert torch.equal(made[1].weight, net[1].weight.half().float())
    assert float((y - wanted).square().sum()) < 1e-6 * float(wanted.square().sum())
    kept = halve(copy.deepcopy(net), Halve(arithmetic="int16", exclude=("0.self_attn",)), x[:1])
    assert isinstance(kept[0].self_attn, nn.MultiheadAttention)


def test_int16_is_built_bit_for_bit_where_the_cpu_has_it_and_refused_by_name_elsewhere(
    tmp_path: Path,
) -> None:
    (tmp_path / "net.py").write_text(CONVOLUTIONS)
    options = {"model": f"{tmp_path / 'net.py'}:make", "recipe": "int16"}
    build(BuildOptions(target="x86", out=tmp_path / "x86", **options))
    manifest = read_bundle(tmp_path / "x86").manifest
    layers = [layer for layer in manifest.entries["full"].layers if layer.op in ("conv2d", "dense")]
    assert [layer.bits for layer in layers] == [16, 16, 16]
    assert all(layer.kernel.startswith("qd16_qs16w_") for layer in layers)
    (tmp_path / "dense.py").write_text(NET)
    for name in ("net", "dense"):
        options["model"] = f"{tmp_path / name}.py:make"
        with pytest.raises(ToolchainError, match="the CPU has no int16 products") as refused:
            build(BuildOptions(target="rpi4", out=tmp_path / "rpi4", **options))
        assert "lut" not in refused.value.why


def layers(gain: float = 1.0) -> nn.Sequential:
    torch.manual_seed(2)
    made = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.LeakyReLU(0.3), nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
    )
    with torch.no_grad():
        for part in made:
            for tensor in part.parameters():
                tensor.mul_(gain)
    return made.eval()


def test_convolutions_compute_in_half_precision_and_are_found_again_in_a_file() -> None:
    net, x = layers(), 0.5 + 0.025 * torch.randn(8, 2, 12, 16)
    with pytest.warns(Notice, match=r"stay in fp32: 1 Conv2d \(3\)"):
        made = halve(copy.deepcopy(net), Halve(arithmetic="f16"), x[:1], x)
    with pytest.warns(Notice, match="stay in fp32"):
        unseen = halve(copy.deepcopy(net), Halve(arithmetic="f16"), x[:1])
    assert isinstance(made[0], HalfConv2d)
    assert [round(offset, 2) for offset in made[0].offset] == [0.5, 0.5]
    with torch.no_grad():
        inside = net(x)[..., 2:-2, 2:-2]
        off, further = (float((some(x)[..., 2:-2, 2:-2] - inside).std()) for some in (made, unseen))
        assert off < 2e-3 * float((inside - inside.mean((0, 2, 3), keepdim=True)).std())
        assert off < 0.5 * further
        records = structure(made, net)
        tensors = {name: value.clone() for name, value in made.state_dict().items()}
        again = rebuild(copy.deepcopy(net), {"compression": json.dumps({"structure": records})}, tensors)
        assert torch.equal(again(x), made(x))
    for key, value in (("gain", 3.0), ("offset", [1.0]), ("offset", [1e30, 0.0])):
        wrong = [record | ({key: value} if record["path"] == "0" else {}) for record in records]
        with pytest.raises(ModelError, match=rf"0\.{key}"):
            rebuild(copy.deepcopy(net), {"compression": json.dumps({"structure": wrong})}, tensors)
    tensors["0.weight"] = tensors["0.weight"].float()
    with pytest.raises(ModelError, match=r"0\.weight is torch\.float32"):
        rebuild(copy.deepcopy(net), {"compression": json.dumps({"structure": records})}, tensors)


def test_dense_layers_of_sequences_and_attention_compute_in_half_precision() -> None:
    net, x = sequences(32, 16)
    with torch.no_grad():
        made = apply_post_training(net, x[:1], "f16", x)
        y, wanted = made(x), net(x)
    names = ("0.self_attn.qkv", "0.self_attn.out_proj", "0.linear1", "1", "2")
    # zeros are left out where most are: such a layer computes in fp32 with half the bytes
    assert [type(made.get_submodule(name)) for name in names] == [*[HalfLinear] * 3, nn.Linear, HalfLinear]
    assert torch.equal(made[1].weight, net[1].weight.half().float())
    assert float((y - wanted).square().sum()) < 1e-6 * float(wanted.square().sum())
    records = structure(made, net)
    tensors = {name: value.clone() for name, value in made.state_dict().items()}
    with torch.no_grad():
        again = rebuild(copy.deepcopy(net), {"compression": json.dumps({"structure": records})}, tensors)
        assert torch.equal(again(x), y)
    kept = halve(copy.deepcopy(net), Halve(arithmetic="f16", exclude=("0.self_attn",)), x[:1])
    assert isinstance(kept[0].self_attn, nn.MultiheadAttention)


def test_what_all_inputs_of_a_dense_layer_share_is_subtracted_first() -> None:
    torch.manual_seed(4)
    net, x = nn.Sequential(nn.Linear(256, 32)).eval(), 0.5 + 0.025 * torch.randn(64, 256)
    made, unseen = (halve(copy.deepcopy(net), Halve(arithmetic="f16"), x[:1], data) for data in (x, None))
    centred = halve(copy.deepcopy(net), Halve(arithmetic="f16"), x[:1], x - 0.5)
    assert made[0].centre is not None
    assert (unseen[0].centre, centred[0].centre) == (None, None)
    with torch.no_grad():
        off, further = (float((some(x) - net(x)).std()) for some in (made, unseen))
        assert off < 0.2 * further
        assert off < 1e-3 * float((net(x) - net(x).mean(0)).std())


@pytest.mark.filterwarnings("ignore:stay in fp32")
@pytest.mark.parametrize("gain", [1e-9, 1e-3, 1e3, 1e9])
def test_numbers_of_any_size_fit_half_precision(gain: float) -> None:
    net, x = layers(gain), gain * torch.randn(8, 2, 12, 16)
    made = halve(copy.deepcopy(net), Halve(arithmetic="f16"), x[:1], x)
    with torch.no_grad():
        assert float((made(x) - net(x)).abs().max()) < 2e-3 * float(net(x).abs().max())


@pytest.mark.needs("qemu-aarch64")
@pytest.mark.filterwarnings("ignore:stay in fp32")
def test_half_precision_is_built_where_the_cpu_has_it_and_refused_by_name_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CONVOLUTIONS)
    options = {"model": f"{tmp_path / 'net.py'}:make", "recipe": "f16"}
    build(BuildOptions(target="rpi5", out=tmp_path / "rpi5", **options))
    found = read_bundle(tmp_path / "rpi5").manifest.entries["full"].layers
    layers = [layer for layer in found if layer.op in ("conv2d", "dense")]
    assert [layer.bits for layer in layers] == [16, 16, 16]
    assert [layer.kernel.rsplit("_", 1)[0] for layer in layers] == ["f16_conv2d", "f16_conv2d", "f16"]
    for target, reason in (("rpi4", "no half-precision arithmetic"), ("x86", "int16 is as fast on x86")):
        with pytest.raises(ToolchainError, match=reason):
            build(BuildOptions(target=target, out=tmp_path / target, **options))
