"""Sixteen bits where fp32 has thirty-two, without training or data.

Dense weights become numbers that half the bytes hold, and arithmetic stays fp32: the network stays an ordinary one, and
the kernels find such weights by themselves, as they find zeros. Or convolutions and dense layers compute in int16, whose
codes come of every sample's own range, and in a sequence of every row's.

Why int16, and neither of the 16-bit floats: it has the digits of fp16 and more, for images lie around a value that is
large against what differs between them; CPUs with VNNI multiply it at twice the rate of fp32, as they do bf16; and sums
are exact. bf16 has eight digits: CsiNet loses 0.15 dB by it, even with every channel's mean taken out first. ARM has no
such products of int16, but half precision at twice the rate of fp32: there layers may compute in that (`f16`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecsi.compress.choose import called, left_in_fp32, say_left
from edgecsi.compress.f16 import DENSE, f16_convolutions, f16_layer, f16_linears, inputs_of
from edgecsi.compress.quantize.fold import fold_batch_norm
from edgecsi.compress.quantize.rounded import four_sides
from edgecsi.compress.recipe import Halve, matches
from edgecsi.compress.size import density
from edgecsi.errors import NoLayer, RecipeError
from edgecsi.models.compressed.layers import DynamicConv2d, Int16Linear
from edgecsi.models.compressed.taken_apart import take_apart

_LARGEST = torch.finfo(torch.float16).max
_MOST_STEPS, _TRANSFORMED_STEPS = 16383, 8191
"""Of a code, and of one whose sums of four are to fit in 16 bits."""
_LONGEST_SUM = 2**31 - 1
_MOST_CODE = 32767
_MOST_WEIGHTS = 4608  # of an output; with more there are too few bits for each
_LEAST_BITS = 9  # of the mean weight; an output with so many that fewer are left has coarser inputs instead


@torch.no_grad()
def halve(module: nn.Module, step: Halve, example: Tensor, samples: Tensor | None = None) -> nn.Module:
    """Round the chosen layers in place: dense layers and the products within attention and recurrent layers, and
    convolutions if they compute in 16 bits.

    Args:
        samples: inputs of the network, to see what layers in half precision are given; without, nothing is subtracted
            from that.

    Raises:
        RecipeError: no layer is chosen, or a weight is larger than half precision goes.
    """
    prepare(module, step, example)
    named = chosen(module, step, example)
    computing = {name: layer for name, layer in _computing(module, step, example).items() if name in named}
    f16 = step.arithmetic == "f16"
    given = inputs_of(module, computing, samples) if f16 and samples is not None else {}
    for name, weight in named.items():
        if name in computing:
            layer = computing[name]
            module.set_submodule(name, f16_layer(layer, given.get(name)) if f16 else int16_layer(layer))
            continue
        if float(weight.abs().max()) > _LARGEST:
            raise RecipeError(
                f"{name} has a weight of {float(weight.abs().max()):.3g}",
                f"half precision goes to {_LARGEST:.0f}",
                "exclude the layer, or use int8-weights, which scales every output",
            )
        weight.copy_(weight.half().float())
    if step.arithmetic != "fp32":
        left = left_in_fp32(module, (nn.Conv2d,), step.exclude)
        say_left("stay in fp32", {name: part for name, part in left.items() if matches(name, step.layers)})
    return module


def prepare(module: nn.Module, step: Halve, example: Tensor) -> None:
    """Give the network the layers that 16-bit arithmetic can take, in place; their names are those of :func:`chosen`."""
    if step.arithmetic != "fp32":
        kept = [name for name, _ in module.named_modules() if matches(name, step.exclude)]
        take_apart(module, example, kept, images=True)
        fold_batch_norm(module, example)


def chosen(module: nn.Module, step: Halve, example: Tensor) -> dict[str, Tensor]:
    """Weights of the layers that a step changes, by the layers' names.

    Raises:
        RecipeError: there is none.
    """
    found: dict[str, Tensor] = {
        name: layer.weight for name, layer in _computing(module, step, example).items()
    }
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            found[name] = part.weight
        elif isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            found[name] = part.in_proj_weight
        elif isinstance(part, nn.RNNBase):
            weights = dict(part.named_parameters())
            found |= {f"{name}.{key}": weight for key, weight in weights.items() if weight.ndim == 2}
    named = {n: w for n, w in found.items() if matches(n, step.layers, step.exclude)}
    if not named:
        raise NoLayer(
            "no dense layer is chosen" + (", nor a convolution" if step.arithmetic != "fp32" else ""),
            f"the network has {', '.join(found) or 'none'}",
            "correct layers and exclude in the recipe",
        )
    return named


def _computing(module: nn.Module, step: Halve, example: Tensor) -> dict[str, nn.Conv2d | nn.Linear]:
    """Layers that compute in 16 bits."""
    if step.arithmetic == "fp32":
        return {}
    if step.arithmetic == "f16":
        return f16_convolutions(module, example) | f16_linears(module, example)
    kinds: tuple[type[nn.Conv2d | nn.Linear], ...] = (nn.Conv2d, nn.Linear)
    return {name: part for name, part in called(module, kinds, example).items() if _fits(part)}


def _fits(layer: nn.Conv2d | nn.Linear) -> bool:
    if layer.weight[0].numel() > _MOST_WEIGHTS:
        return False
    if isinstance(layer, nn.Linear):
        return density(layer.weight) >= DENSE
    return layer.groups == 1 and set(layer.stride) == {1} and layer.padding_mode == "zeros"


def int16_layer(layer: nn.Conv2d | nn.Linear) -> DynamicConv2d | Int16Linear:
    """A layer in int16.

    Codes of weights are as fine as sums of their number allow; where Winograd's form pays, two bits and a sum of four
    codes are left to it.
    """
    bias = None if layer.bias is None else layer.bias.detach().clone()
    if isinstance(layer, nn.Linear):
        codes, scale, steps = _codes(layer.weight[:, None])
        return Int16Linear(codes[:, 0], scale, bias, steps=steps)
    outs, ins, *window = layer.weight.shape
    transforms = window == [3, 3] and set(layer.dilation) == {1} and 8 <= ins <= 128 and outs >= 8
    codes, scale, steps = _codes(layer.weight, transforms)
    left, right, top, bottom = four_sides(layer)
    return DynamicConv2d(
        codes, scale, bias, steps=steps, padding=[top, bottom, left, right], dilation=list(layer.dilation)
    )  # fmt: skip


def _codes(weight: Tensor, transforms: bool = False) -> tuple[Tensor, Tensor, int]:
    """Codes of weights ``[O, C, …]``, int16, their scale, float32 ``[O]``, and the largest code of an input."""
    weight = weight.detach().double()
    steps, longest = (_TRANSFORMED_STEPS, _LONGEST_SUM // 4) if transforms else (_MOST_STEPS, _LONGEST_SUM)
    while steps > 1023 and longest // steps < weight[0].numel() << _LEAST_BITS:
        steps //= 2
    size = weight.abs().flatten(1)
    # A code may be off by one from the nearest.
    room = longest // steps - weight[0].numel()
    scale = torch.maximum(size.amax(1) / (_MOST_CODE // (4 if transforms else 1) - 1), size.sum(1) / room)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    units = scale.double().reshape(-1, *[1] * (weight.ndim - 1))
    return _rounded(weight / units).to(torch.int16), scale, steps


def _rounded(weight: Tensor) -> Tensor:
    """Whole numbers with the sum of every filter kept, as near as can be, so that the answer to an image of one value,
    which most of an image is, is kept too: those that lose most by rounding down are rounded up."""
    flat = weight.flatten(2)
    low = flat.floor()
    lost = flat - low
    ups = lost.sum(-1, keepdim=True).round()
    rank = lost.argsort(-1, descending=True).argsort(-1)
    return (low + (rank < ups)).reshape(weight.shape)
