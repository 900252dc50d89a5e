"""How a compressed network is written down and rebuilt: its structure as JSON, its numbers as tensors.

The structure lists the layers that differ from the network's own: integer and clustered layers, factored
ones, attention and recurrent layers that were taken apart, convolutions that took in their batch normalisation.
Masks are not stored, they are the zeros of the weights.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from edgecsi.errors import ModelError
from edgecsi.models.compressed.layers import (
    ClusteredLinear,
    CompressedLayer,
    DynamicConv2d,
    DynamicLinear,
    HalfConv2d,
    HalfLinear,
    Int16Linear,
    StaticConv2d,
    StaticLinear,
    WeightOnlyLinear,
)
from edgecsi.models.compressed.taken_apart import TakenApart, in_parent, put_apart

_LAYERS: dict[str, type[CompressedLayer]] = {
    kind.__name__: kind
    for kind in (
        StaticConv2d,
        DynamicConv2d,
        HalfConv2d,
        StaticLinear,
        DynamicLinear,
        Int16Linear,
        HalfLinear,
        WeightOnlyLinear,
        ClusteredLinear,
    )
}
_CONVOLUTIONS = ("StaticConv2d", "DynamicConv2d", "HalfConv2d", "FoldedConv2d")
Record = dict[str, Any]


def structure(module: nn.Module, original: nn.Module) -> list[Record]:
    """What differs between a compressed module and its original: records ``{"path", "kind", …numbers}``."""
    records: list[Record] = []
    originals = dict(original.named_modules())
    for path, part in module.named_modules():
        before = originals.get(path)
        new_form = isinstance(part, TakenApart) and not isinstance(before, TakenApart)
        if isinstance(part, CompressedLayer) or new_form:
            assert isinstance(part, CompressedLayer | TakenApart)
            records.append({"path": path, "kind": type(part).__name__, **part.attributes()})
        elif isinstance(part, nn.Identity) and not isinstance(before, nn.Identity):
            records.append({"path": path, "kind": "Identity"})
        elif isinstance(part, nn.Conv2d) and isinstance(before, nn.Conv2d) and before.bias is None:
            if part.bias is not None:
                records.append({"path": path, "kind": "FoldedConv2d"})
        elif isinstance(part, nn.Sequential) and isinstance(before, nn.Linear):
            weight: Any = part[0].weight  # of `reduce`, which may be quantised by now: [rank, inputs]
            records.append({"path": path, "kind": "LowRank", "rank": len(weight)})
    return records


def continued(earlier: Record, report: Record) -> Record:
    """The record of a network that was compressed before: what it lost, it lost to the dense one."""
    now = [record["path"] for record in report["structure"]]
    kept = [record for record in earlier["structure"] if record["path"] not in now]
    joined = {key: earlier[key] for key in ("weights_sha256", "bytes_before")} | {
        "structure": [*kept, *report["structure"]],
        "steps": [*earlier["steps"], *report["steps"]],
        "recipe": f"{earlier['recipe']}+{report['recipe']}",
        "recipe_text": f"{earlier['recipe_text']}\n# then {report['recipe']}\n{report['recipe_text']}",
    }
    if (earlier["metric"], earlier["data"]) == (report["metric"], report["data"]):
        joined["before"] = earlier["before"]  # another score would be no comparison
    return report | joined


def factored(inputs: int, rank: int, outputs: int, bias: bool) -> nn.Sequential:
    """Two dense layers ``reduce`` and ``expand`` in place of one."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        reduce=nn.Linear(inputs, rank, bias=False), expand=nn.Linear(rank, outputs, bias=bias)
    )
    return nn.Sequential(layers)


def rebuild(module: nn.Module, metadata: dict[str, str], tensors: dict[str, Tensor]) -> nn.Module:
    """Turn a network as its factory makes it into the compressed one that a file describes.

    Args:
        module: the original network; changed in place.
        metadata: of the file; ``metadata["compression"]`` is what :func:`edgecsi.compress.compress` wrote.
        tensors: of the file.

    Returns:
        the module, in eval mode, with all tensors loaded.

    Raises:
        ModelError: metadata and tensors do not describe this network.
    """
    module = in_parent(module)
    try:
        records = json.loads(metadata["compression"])["structure"]
        assert isinstance(records, list)
        for record in records:
            _replace(module, dict(record), tensors)
        for name, tensor in tensors.items():
            assert not tensor.is_floating_point() or bool(tensor.isfinite().all()), f"{name} is not finite"
        module.load_state_dict(tensors, strict=True)
    # the record is a stranger's: whatever goes wrong with it, it does not describe this network
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            "the compressed weights do not fit the model",
            f"{type(error).__name__}: {reason}",
            "the file is damaged, or of another version of the model; compress it again",
        ) from error
    return module.eval()


def _replace(module: nn.Module, record: Record, tensors: dict[str, Tensor]) -> None:
    path, kind = str(record.pop("path")), str(record.pop("kind"))
    before = module.get_submodule(path)
    own = {name: value for name, value in tensors.items() if name.rpartition(".")[0] == path}
    own = {name.rpartition(".")[2]: value for name, value in own.items()}
    if kind == "Identity":
        assert isinstance(before, nn.BatchNorm2d), f"{path} is no batch normalisation"
        module.set_submodule(path, nn.Identity())
        return
    if put_apart(module, path, kind, record):
        return
    wanted: Any = nn.Conv2d if kind in _CONVOLUTIONS else nn.Linear
    assert isinstance(before, wanted), f"{path} is no {wanted.__name__}"
    if kind == "FoldedConv2d":
        before.bias = nn.Parameter(torch.zeros(before.out_channels))
    elif kind == "LowRank":
        rank = int(record["rank"])
        assert 0 < rank <= min(before.weight.shape), f"rank {rank} of {path}"
        new = factored(before.in_features, rank, before.out_features, f"{path}.expand.bias" in tensors)
        module.set_submodule(path, new)
    else:
        weight = own["index" if kind == "ClusteredLinear" else "weight"]
        assert weight.shape == before.weight.shape, f"{path} has the shape {list(weight.shape)}"
        make: Any = _LAYERS[kind]
        layer: CompressedLayer = make(**own, **record)
        _check(layer, path)
        module.set_submodule(path, layer)


def _check(layer: CompressedLayer, path: str) -> None:
    """Refuse tensors that a kernel could not take."""
    tensors = layer.tensors()
    outputs = len(next(iter(tensors.values())))
    for name, tensor in tensors.items():
        dtype = {"weight": torch.int8, "index": torch.uint8}.get(name, torch.float32)
        if name == "weight" and isinstance(layer, DynamicConv2d | Int16Linear):
            dtype = torch.int16
        if name == "weight" and isinstance(layer, HalfConv2d | HalfLinear):
            dtype = torch.float16
        if name == "bias" and isinstance(layer, StaticConv2d | StaticLinear):
            dtype = torch.int32
        assert tensor.dtype == dtype, f"{path}.{name} is {tensor.dtype}"
        if name in ("weight_scale", "scale", "bias"):
            assert tensor.shape[0] == outputs, f"{path}.{name} has the shape {list(tensor.shape)}"
        if name in ("centre", "gain"):
            assert tensor.shape == next(iter(tensors.values())).shape[1:], f"{path}.{name}"
    if isinstance(layer, StaticConv2d | StaticLinear):
        assert layer.fine in (1, 2, 4, 8, 16, 32, 64), f"{path}.fine"
    if isinstance(layer, StaticConv2d):
        assert layer.fine == 1 or layer.groups == 1, f"{path}.fine"
    if isinstance(layer, DynamicConv2d | Int16Linear):
        assert 1 <= layer.steps <= 32767, f"{path}.steps"
    if isinstance(layer, HalfConv2d):
        assert len(layer.offset) in (0, tensors["weight"].shape[1] * layer.groups), f"{path}.offset"
        assert all(map(math.isfinite, layer.fill)), f"{path}.offset"
    if isinstance(layer, HalfConv2d | HalfLinear):
        assert 2.0**-100 <= layer.gain <= 2.0**100, f"{path}.gain"
        assert math.frexp(layer.gain)[0] == 0.5, f"{path}.gain is no power of two"
    if isinstance(layer, ClusteredLinear):
        assert tensors["table"].ndim == 1, f"{path}.table"
        assert int(tensors["index"].max()) < len(tensors["table"]), f"{path}.index leads out of the table"
