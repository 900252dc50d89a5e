"""Before rounding: batch normalisation goes into the convolution before it, channels are brought to one range."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def fold_batch_norm(module: nn.Module, example: Tensor) -> None:
    """Multiply every batch normalisation behind a convolution into it, in place; an Identity is left.

    Which follows which is seen by running the network once. Where that would change what the network computes (a
    convolution that something else reads too, or that runs twice), the normalisation stays.
    """
    pairs = _pairs(module, example)
    if pairs and not _fold_all(module, pairs, example):
        for name, conv in pairs.items():
            _fold_all(module, {name: conv}, example)


def _fold_all(module: nn.Module, pairs: Mapping[str, nn.Conv2d], example: Tensor) -> bool:
    """Fold these normalisations, or none of them if the network then computes something else."""
    old = {
        name: (copy.deepcopy(conv.state_dict()), module.get_submodule(name)) for name, conv in pairs.items()
    }
    with torch.no_grad():
        before = module(example)
        for name, conv in pairs.items():
            _fold(conv, module.get_submodule(name))  # type: ignore[arg-type]
            module.set_submodule(name, nn.Identity())
        after = module(example)
    if torch.allclose(before, after, rtol=1e-3, atol=1e-4 * max(1.0, float(before.abs().max()))):
        return True
    for name, conv in pairs.items():
        state, norm = old[name]
        module.set_submodule(name, norm)
        if "bias" not in state:
            conv.bias = None
        conv.load_state_dict(state)
    return False


def _pairs(module: nn.Module, example: Tensor) -> dict[str, nn.Conv2d]:
    """Batch normalisations by name, and the convolution whose output each is given."""
    made_by: dict[int, nn.Conv2d] = {}
    kept: list[Tensor] = []  # alive, so that ids are not used again
    pairs: dict[str, nn.Conv2d] = {}

    def after_convolution(conv: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept.append(output)
        made_by[id(output)] = conv  # type: ignore[assignment]

    def before_norm(name: str) -> Callable[..., None]:
        def look(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in made_by:
                pairs[name] = made_by[id(inputs[0])]

        return look

    hooks = [
        part.register_forward_hook(after_convolution)
        for part in module.modules()
        if isinstance(part, nn.Conv2d) and part.weight.dtype == torch.float32
    ] + [
        part.register_forward_pre_hook(before_norm(name))
        for name, part in module.named_modules()
        if isinstance(part, nn.BatchNorm2d) and part.running_var is not None
    ]
    module.eval()
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        factor = torch.rsqrt(norm.running_var.double() + norm.eps)
        shift = -norm.running_mean.double() * factor
        if conv.bias is not None:
            shift += conv.bias.double() * factor
        if norm.affine:
            factor, shift = factor * norm.weight, shift * norm.weight + norm.bias
        conv.weight.copy_(conv.weight * factor[:, None, None, None])
        conv.bias = nn.Parameter(shift.float())


@torch.no_grad()
def equalise(module: nn.Module, layers: Mapping[str, nn.Module], samples: Tensor) -> None:
    """Bring the channels between two convolutions to one range, in place; the network computes the same.

    A step is as fine as the widest channel allows. What a channel is divided by behind one convolution, the next one
    multiplies it with; a (leaky) ReLU between them does not mind (Nagel et al., arXiv 1906.04721).

    Args:
        layers: those that are quantised, by name. samples: inputs, float32 ``[N, …]``.
    """
    kept: list[Tensor] = []  # alive, so that ids are not used again
    made_by: dict[int, str] = {}
    pairs: dict[str, list[str]] = {}
    peaks: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def look(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            kept.append(output)
            source = made_by.get(id(inputs[0]))
            if isinstance(part, nn.Conv2d):
                made_by[id(output)] = name
                if source is not None:
                    pairs.setdefault(source, []).append(name)
                    peaks[source] = inputs[0].abs().amax((0, 2, 3))
            elif source is not None:
                made_by[id(output)] = source

        return look

    hooks = [
        part.register_forward_hook(note(name))
        for name, part in module.named_modules()
        if isinstance(part, nn.ReLU | nn.LeakyReLU | nn.Conv2d)
    ]
    try:
        before = module(samples)
    finally:
        for hook in hooks:
            hook.remove()
    for name, readers in pairs.items():
        first, second = layers.get(name), layers.get(readers[0])
        if not isinstance(first, nn.Conv2d) or not isinstance(second, nn.Conv2d) or len(readers) > 1:
            continue
        if second.groups > 1:
            continue
        peak = peaks[name].clamp_min(1e-6 * float(peaks[name].max()) + 1e-30)
        gain = peak.log().mean().exp() / peak
        _scale_channels(first, second, gain)
        after = module(samples)
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * max(1.0, float(before.abs().max()))):
            _scale_channels(first, second, 1 / gain)  # something else reads them too


def _scale_channels(first: nn.Conv2d, second: nn.Conv2d, gain: Tensor) -> None:
    first.weight.mul_(gain[:, None, None, None])
    if first.bias is not None:
        first.bias.mul_(gain)
    second.weight.div_(gain[:, None, None])
