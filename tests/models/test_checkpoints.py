"""Checkpoints in the layouts that users bring."""

from __future__ import annotations

import argparse
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from safetensors.torch import save_file
from torch import nn

from edgecsi.errors import ModelError, Notice
from edgecsi.models.checkpoint_files import read_metadata
from edgecsi.models.checkpoints import load_weights, sha256, write_weights
from edgecsi.models.load import load_model
from edgecsi.models.registry import create

State = dict[str, torch.Tensor]


def random_model(name: str) -> torch.nn.Module:
    return load_model(name, allow_random=True).module


def assert_same(module: torch.nn.Module, expected: torch.nn.Module) -> None:
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], value, rtol=0, atol=0, msg=key)


def backwards(state: Mapping[str, torch.Tensor], rules: list[tuple[str, str]]) -> State:
    """Our names to an author's."""
    published = {}
    for key, value in state.items():
        for pattern, theirs in rules:
            key = re.sub(pattern, theirs, key)
        published[key] = value.clone()
    return published


DECODER = [
    (r"^decoder\.fc\.", "decoder_fc."),
    (r"^decoder\.conv5x5\.", "decoder_feature.conv5x5_bn."),
    (r"^decoder\.blocks\.0\.", "decoder_feature.CRBlock1."),
    (r"^decoder\.blocks\.1\.", "decoder_feature.CRBlock2."),
    (r"(CRBlock\d)\.wide\.", r"\1.path1."),
    (r"(CRBlock\d)\.narrow\.", r"\1.path2."),
    (r"(CRBlock\d)\.merge\.", r"\1.conv1x1."),
    (r"^encoder\.merge\.conv1x1\.", "encoder_conv.conv1x1_bn."),
    (r"^encoder\.fc\.", "encoder_fc."),
]
CRNET = [
    (r"^encoder\.wide\.(conv\dx\d)\.", r"encoder1.\1_bn."),
    (r"^encoder\.narrow\.", "encoder2."),
    *DECODER,
]
CLNET = [
    (r"^encoder\.spatial\.(conv\dx\d)\.", r"encoder1.\1_bn."),
    (r"^encoder\.spatial\.gate\.conv3x3\.", "sa.spatial."),
    (r"^encoder\.fusion\.conv1x1\.", "encoder2."),
    (r"^encoder\.fusion\.weight\.squeeze\.", "se.fc.0."),
    (r"^encoder\.fusion\.weight\.excite\.", "se.fc.2."),
    *DECODER,
]


def with_profiler_buffers(state: State) -> State:
    """What thop leaves behind."""
    left = {"total_ops": torch.zeros(1, dtype=torch.float64), "encoder1.total_params": torch.ones(1)}
    return {**left, **state}


def clnet_pair(model: torch.nn.Module) -> tuple[State, State]:
    """CLNet's two dictionaries: dense layers as convolutions of length 1, the decoder's transposed."""
    state = backwards(model.state_dict(), CLNET)
    state["replace_efc.weight"] = state.pop("encoder_fc.weight")[:, :, None]
    state["replace_efc.bias"] = state.pop("encoder_fc.bias")
    state["replace_dfc.weight"] = state.pop("decoder_fc.weight").T[:, :, None].contiguous()
    state["replace_dfc.bias"] = state.pop("decoder_fc.bias")
    ours = {"replace_dfc", "decoder_feature"}
    decoder = {key: value for key, value in state.items() if key.split(".")[0] in ours}
    return {key: value for key, value in state.items() if key not in decoder}, decoder


def test_crnet_as_its_authors_save_it(tmp_path: Path) -> None:
    model = random_model("crnet-cr64")
    state = with_profiler_buffers(backwards(model.state_dict(), CRNET))
    assert "encoder1.conv1x9_bn.conv.weight" in state
    assert "decoder_feature.CRBlock2.path1.conv9x1.bn.running_var" in state
    torch.save({"state_dict": state, "best_nmse": torch.tensor(-13.4), "epoch": 9}, tmp_path / "a.pth")
    loaded = load_model("crnet-cr64", str(tmp_path / "a.pth"))
    assert_same(loaded.module, model)
    assert loaded.sha256 == sha256([tmp_path / "a.pth"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_clnet_as_two_files(tmp_path: Path, prefix: str, legacy: bool) -> None:
    model = random_model("clnet-cr64")
    files = [tmp_path / "enc.pth.tar", tmp_path / "dec.pth.tar"]
    for path, state in zip(files, clnet_pair(model), strict=True):
        named = {prefix + key: value for key, value in with_profiler_buffers(state).items()}
        torch.save({"state_dict": named}, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_model("clnet-cr64", f"{files[0]},{files[1]}")
    assert_same(loaded.module, model)


def test_clnet_as_one_file(tmp_path: Path) -> None:
    model = random_model("clnet-cr32")
    encoder, decoder = clnet_pair(model)
    state = {f"encoder.{k}": v for k, v in encoder.items()} | {f"decoder.{k}": v for k, v in decoder.items()}
    torch.save(state, tmp_path / "a.pth")
    assert_same(load_model("clnet-cr32", str(tmp_path / "a.pth")).module, model)


def test_any_network_split_into_encoder_and_decoder(tmp_path: Path) -> None:
    model = random_model("csinet-cr64")
    torch.save(model.encoder.state_dict(), tmp_path / "e.pth")
    torch.save(model.decoder.state_dict(), tmp_path / "d.pth")
    assert_same(load_model("csinet-cr64", f"{tmp_path}/e.pth,{tmp_path}/d.pth").module, model)
    with pytest.raises(ModelError, match="the encoder's first"):
        load_model("csinet-cr64", f"{tmp_path}/d.pth,{tmp_path}/e.pth")
    with pytest.raises(ModelError, match="at most two"):
        load_model("csinet-cr64", f"{tmp_path}/d.pth,{tmp_path}/e.pth,{tmp_path}/e.pth")


def test_data_parallel_prefixes_and_half_precision(tmp_path: Path) -> None:
    model = random_model("csinet-cr64")
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    assert_same(load_model("csinet-cr64", str(tmp_path / "a.pth")).module, model)
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save(half, tmp_path / "half.pth")
    loaded = load_model("csinet-cr64", str(tmp_path / "half.pth")).module
    assert all(p.dtype == torch.float32 for p in loaded.parameters())


def test_safetensors_keep_their_metadata_and_are_reproducible(tmp_path: Path) -> None:
    model = random_model("csinet-cr64")
    metadata = {"model": "csinet-cr64", "config": "{}", "note": "ö", "z": "1", "a": "2"}
    for name in ("a", "b"):
        write_weights(tmp_path / f"{name}.safetensors", model.state_dict(), metadata)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert read_metadata(tmp_path / "a.safetensors") == metadata
    loaded = load_model(str(tmp_path / "a.safetensors"))
    assert loaded.name == "csinet-cr64"
    assert loaded.metadata == metadata
    assert_same(loaded.module, model)


def test_weights_of_zero_are_weights(tmp_path: Path) -> None:
    """A network pruned to nothing, and denormal numbers, are unusual but valid."""
    state = {key: torch.zeros_like(value) for key, value in random_model("fullycon").state_dict().items()}
    state["layers.fc1.bias"][0] = 1e-40
    torch.save(state, tmp_path / "a.pth")
    assert load_model("fullycon", str(tmp_path / "a.pth")).sha256


def test_missing_unexpected_and_renamed_tensors_are_all_listed(tmp_path: Path) -> None:
    state = dict(random_model("fullycon").state_dict())
    state["layers.fc_2.weight"] = state.pop("layers.fc2.weight")
    state.pop("layers.fc3.bias")
    state["optimizer"] = torch.zeros(3)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError) as refused:
        load_model("fullycon", str(tmp_path / "a.pth"))
    for name in ("layers.fc2.weight", "layers.fc3.bias", "layers.fc_2.weight", "optimizer", "a.pth"):
        assert name in str(refused.value)


def test_a_refused_checkpoint_changes_nothing(tmp_path: Path) -> None:
    module = create("fullycon")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = {key: torch.ones_like(value) for key, value in before.items()}
    state["layers.fc5.bias"][0] = torch.nan
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"layers\.fc5\.bias"):
        load_weights(module, [tmp_path / "a.pth"])
    for key, value in before.items():
        assert torch.equal(module.state_dict()[key], value)


def cut(path: Path) -> None:
    torch.save(random_model("csinet-cr64").state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def test_a_safetensors_file_that_names_no_model(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="--weights"):
        load_model(str(path))
    write_weights(path, {"w": torch.zeros(1)}, {"model": "csinet-cr4", "config": "[]"})
    with pytest.raises(ModelError, match="no JSON table"):
        load_model(str(path))
    write_weights(path, {"w": torch.zeros(1)}, {"model": "no-such-net"})
    with pytest.raises(ModelError, match="no model of the zoo"):
        load_model(str(path))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(encoder=nn.Linear(4, 2), norm=nn.BatchNorm1d(2), decoder=nn.Linear(2, 4, bias=False))
    )


def lightning(state: State) -> object:
    settings = argparse.Namespace(lr=0.1, name="a", nested=argparse.Namespace(b=1))
    return {
        "state_dict": prefixed(state, "model."), "epoch": 3, "hyper_parameters": vars(settings), "args": settings,
        "best": np.float64(-12.3), "history": np.arange(3.0), "optimizer_states": [{"state": {0: {}}}],
    }  # fmt: skip


def prefixed(state: Mapping[str, torch.Tensor], prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def averaged(state: State) -> object:
    model = torch.optim.swa_utils.AveragedModel(small())
    model.module.load_state_dict(state)
    return model.state_dict()


def masked(state: State) -> object:
    model = small()
    model.load_state_dict(state)
    torch.nn.utils.prune.random_unstructured(model.get_submodule("encoder"), "weight", 0.5)
    state["encoder.weight"].copy_(model.get_submodule("encoder").weight.detach())
    return model.state_dict()


def parts(state: State) -> object:
    def part(name: str) -> object:
        return {"state_dict": {k[len(name) :]: v for k, v in state.items() if k.startswith(name)}, "epoch": 1}

    return {"encoder": part("encoder."), "decoder": part("decoder."), "norm": part("norm."), "note": "x"}


SAVED: dict[str, Callable[[State], object]] = {
    "DataParallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "both": lambda state: prefixed(state, "module._orig_mod."),
    "a compiled part": lambda state: {
        k.replace("encoder.", "encoder._orig_mod."): v for k, v in state.items()
    },
    "an attribute": lambda state: prefixed(state, "net.model."),
    "Lightning": lightning,
    "AveragedModel": averaged,
    "parts": parts,
    "pruned": masked,
    "half": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    "NumPy": lambda state: {"weights": {k: v.numpy() for k, v in state.items()}, "epoch": np.int64(3)},
    "beside settings": lambda state: {**state, "epoch": 7, "args": argparse.Namespace(cr=4)},
}


@pytest.mark.parametrize("kind", SAVED)
def test_weights_as_people_save_them(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    wanted = small()
    for parameter in wanted.parameters():
        parameter.data.normal_()
    state = dict(wanted.state_dict())
    torch.save(SAVED[kind](state), tmp_path / "a.ckpt")
    module = small()
    load_weights(module, [tmp_path / "a.ckpt"])
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(module.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_a_prefix_that_is_a_child_of_the_network_stays(tmp_path: Path) -> None:
    """A network with a child `model` beside others must not lose that name."""
    outer = nn.Module()
    outer.add_module("model", small())
    outer.add_module("head", nn.Linear(4, 4))
    torch.save(prefixed(small().state_dict(), "model."), tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"missing: head\.bias"):
        load_weights(outer, [tmp_path / "a.pth"])
    only = nn.Module()
    only.add_module("model", small())
    load_weights(only, [tmp_path / "a.pth"])
    torch.save(prefixed(small().state_dict(), "model.model."), tmp_path / "b.pth")
    load_weights(only, [tmp_path / "b.pth"])


def test_of_several_sets_of_weights_it_says_which_it_took(tmp_path: Path) -> None:
    state = small().state_dict()
    average = {key: value + 1 for key, value in state.items()}
    path = tmp_path / "a.pth"
    torch.save({"model_ema": average, "model": state, "optimizer": {"state": {0: state}}}, path)
    module = small()
    with pytest.warns(Notice, match="took 'model', not 'model_ema'"):
        load_weights(module, [path])
    assert torch.equal(module.get_parameter("encoder.weight"), state["encoder.weight"])
    load_weights(module, [Path(f"{path}#model_ema")])
    assert torch.equal(module.get_parameter("encoder.weight"), average["encoder.weight"])
    with pytest.raises(ModelError, match="it holds model"):
        load_weights(module, [Path(f"{path}#emma")])


def test_shards_with_an_index(tmp_path: Path) -> None:
    state = small().state_dict()
    names = {"one.safetensors": ["encoder.weight", "encoder.bias"], "two.safetensors": list(state)[2:]}
    for file, keys in names.items():
        save_file({key: state[key] for key in keys}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: file for file, keys in names.items() for key in keys}}))
    module = small()
    module.get_parameter("encoder.weight").data.zero_()
    load_weights(module, [index])
    assert torch.equal(module.get_parameter("encoder.weight"), state["encoder.weight"])
    before = sha256([index])
    save_file({key: state[key] * 2 for key in names["one.safetensors"]}, tmp_path / "one.safetensors")
    assert sha256([index]) != before
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ModelError, match=r"two\.safetensors\nthat file is missing"):
        load_weights(module, [index])
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(ModelError, match="beside it"):
        load_weights(module, [index])


def test_missing_names_come_with_the_nearest(tmp_path: Path) -> None:
    state = {k.replace("decoder", "decodr"): v for k, v in small().state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"decoder\.weight \(decodr\.weight\?\)") as refused:
        load_weights(small(), [tmp_path / "a.pth"])
    assert "compression ratio" not in str(refused.value)


def script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


WHAT: dict[str, tuple[Callable[[Path], object], str]] = {
    "TorchScript": (script, "a TorchScript program"),
    "a module": (lambda path: torch.save(small(), path), "whole module, not only its weights"),
    "an old module": (
        lambda path: torch.save(small(), path, _use_new_zipfile_serialization=False),
        "whole module, not only its weights",
    ),
    "a web page": (lambda path: path.write_text("<!DOCTYPE html><html>Sign in</html>"), "a web page"),
    "Keras": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file"),
    "git-lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "nothing": (lambda path: path.write_bytes(b""), "an empty file"),
    "cut short": (cut, "cut short"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", WHAT)
def test_a_file_that_holds_no_weights_is_named_by_what_it_is(tmp_path: Path, kind: str) -> None:
    make, words = WHAT[kind]
    make(tmp_path / "a.pth")
    with pytest.raises(ModelError) as refused:
        load_weights(small(), [tmp_path / "a.pth"])
    assert words in str(refused.value)
