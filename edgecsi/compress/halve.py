"""Sixteen bits where fp32 has thirty-two, without training or data.

Dense weights become numbers that half the bytes hold, and arithmetic stays fp32: the network stays an ordinary one, and
the kernels find such weights by themselves, as they find zeros. And convolutions may compute in int16, whose codes come
of every sample's own range.

Why int16, and neither of the 16-bit floats: it has the digits of fp16 and more, for images lie around a value that is
large against what differs between them; CPUs with VNNI multiply it at twice the rate of fp32, as they do bf16; and sums
are exact. bf16 has eight digits: CsiNet loses 0.15 dB by it, even with every channel's mean taken out first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecsi.compress.choose import called, left_in_fp32, say_left
from edgecsi.compress.quantize.fold import fold_batch_norm
from edgecsi.compress.quantize.rounded import four_sides
from edgecsi.compress.recipe import Halve, matches
from edgecsi.errors import RecipeError
from edgecsi.models.compressed.layers import DynamicConv2d

_LARGEST = torch.finfo(torch.float16).max
_MOST_STEPS, _TRANSFORMED_STEPS = 16383, 8191
"""Of a code, and of one whose sums of four are to fit in 16 bits."""
_LONGEST_SUM = 2**31 - 1
_MOST_CODE = 32767
_MOST_WEIGHTS = 4608  # of an output; with more there are too few bits for each
_LEAST_BITS = (
    9  # of the mean weight; a filter with so many weights that fewer are left has coarser inputs instead
)


@torch.no_grad()
def halve(module: nn.Module, step: Halve, example: Tensor) -> nn.Module:
    """Round the chosen layers in place: dense layers and the products within attention and recurrent layers, and
    convolutions to int16.

    Raises:
        RecipeError: no layer is chosen, or a weight is larger than half precision goes.
    """
    if step.arithmetic == "int16":
        fold_batch_norm(module, example)
    parts = dict(module.named_modules())
    for name, weight in chosen(module, step, example).items():
        part = parts.get(name)
        if isinstance(part, nn.Conv2d):
            module.set_submodule(name, int16_layer(part))
            continue
        if float(weight.abs().max()) > _LARGEST:
            raise RecipeError(
                f"{name} has a weight of {float(weight.abs().max()):.3g}",
                f"half precision goes to {_LARGEST:.0f}",
                "exclude the layer, or use int8-weights, which scales every output",
            )
        weight.copy_(weight.half().float())
    if step.arithmetic == "int16":
        say_left(
            "stay in fp32",
            {
                name: part
                for name, part in left_in_fp32(module, (nn.Conv2d,), step.exclude).items()
                if isinstance(part, nn.modules.conv._ConvNd) and matches(name, step.layers)
            },
        )
    return module


def chosen(module: nn.Module, step: Halve, example: Tensor) -> dict[str, Tensor]:
    """Weights of the layers that a step changes, by the layers' names.

    Raises:
        RecipeError: there is none.
    """
    found: dict[str, Tensor] = {}
    if step.arithmetic == "int16":
        found = {name: conv.weight for name, conv in _convolutions(module, example).items()}
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
        raise RecipeError(
            "no dense layer is chosen" + (", nor a convolution" if step.arithmetic == "int16" else ""),
            f"the network has {', '.join(found) or 'none'}",
            "correct layers and exclude in the recipe",
        )
    return named


def _convolutions(module: nn.Module, example: Tensor) -> dict[str, nn.Conv2d]:
    """Those that kernels take in int16."""
    return {
        name: conv
        for name, conv in called(module, (nn.Conv2d,), example).items()
        if conv.groups == 1
        and set(conv.stride) == {1}
        and conv.padding_mode == "zeros"
        and conv.weight[0].numel() <= _MOST_WEIGHTS
    }


def int16_layer(conv: nn.Conv2d) -> DynamicConv2d:
    """A convolution in int16.

    Codes of weights are as fine as sums of their number allow; where Winograd's form pays, two bits and a sum of four
    codes are left to it.
    """
    weight = conv.weight.detach().double()
    outs, ins, *window = weight.shape
    transforms = window == [3, 3] and set(conv.dilation) == {1} and 8 <= ins <= 128 and outs >= 8
    steps, longest = (_TRANSFORMED_STEPS, _LONGEST_SUM // 4) if transforms else (_MOST_STEPS, _LONGEST_SUM)
    while steps > 1023 and longest // steps < weight[0].numel() << _LEAST_BITS:
        steps //= 2
    size = weight.abs()
    # A code may be off by one from the nearest.
    room = longest // steps - weight[0].numel()
    scale = torch.maximum(
        size.amax((1, 2, 3)) / (_MOST_CODE // (4 if transforms else 1) - 1), size.sum((1, 2, 3)) / room
    )
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    codes = _rounded(weight / scale.double()[:, None, None, None]).to(torch.int16)
    left, right, top, bottom = four_sides(conv)
    bias = None if conv.bias is None else conv.bias.detach().clone()
    return DynamicConv2d(
        codes, scale, bias, steps=steps, padding=[top, bottom, left, right], dilation=list(conv.dilation)
    )  # fmt: skip


def _rounded(weight: Tensor) -> Tensor:
    """Whole numbers with the sum of every filter kept, as near as can be, so that the answer to an image of one value,
    which most of an image is, is kept too: those that lose most by rounding down are rounded up."""
    flat = weight.flatten(2)
    low = flat.floor()
    lost = flat - low
    ups = lost.sum(-1, keepdim=True).round()
    rank = lost.argsort(-1, descending=True).argsort(-1)
    return (low + (rank < ups)).reshape(weight.shape)
