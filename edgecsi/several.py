"""Entries that take or give several tensors, or integers: their inputs and PyTorch's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from edgecsi.models.entries import Part
    from edgecsi.models.load import LoadedModel


def golden(model: LoadedModel, entry: str, count: int) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Inputs of `count` calls and PyTorch's outputs, one array a tensor, ``[count, *shape]``; float32 or int32."""
    import torch

    from edgecsi.reference import outputs_of

    calls = []
    with torch.no_grad():
        for given in _calls(model, count):
            x = outputs_of(model.entries["encoder"], given) if entry == "decoder" else given
            calls.append((x, outputs_of(model.entries[entry], x)))
    inputs, outputs = ([list(call[side]) for call in calls] for side in (0, 1))
    return _stacked(inputs), _stacked(outputs)


def as_given(entry: Part, inputs: list[NDArray[Any]]) -> list[tuple[Tensor, ...]]:
    """The inputs of :func:`golden`, call by call, in the types that an entry's module takes."""
    import torch

    return [
        tuple(
            torch.from_numpy(np.asarray(x)).to(like.dtype) for x, like in zip(call, entry.inputs, strict=True)
        )
        for call in zip(*inputs, strict=True)
    ]


def check_inputs(model: LoadedModel, samples: int) -> tuple[NDArray[Any], str]:
    """Inputs to check with: shipped channels if the model takes channels, else seeded random numbers.

    Returns:
        float32 ``[samples, *shape]``, and what they are.
    """
    shape = tuple(model.example_input.shape)
    samples = -(-samples // shape[0]) * shape[0]
    if shape[1:] == (2, 32, 32):
        from edgecsi.channels.shipped import test_set

        return test_set(samples), "shipped UMi channels"
    numbers = np.random.default_rng(0).standard_normal((samples, *shape[1:]), np.float32)
    return numbers, "normally distributed numbers"


def _calls(model: LoadedModel, count: int) -> list[tuple[Tensor, ...]]:
    """Channels where the first input takes them, else seeded numbers; integers are the example's, shuffled."""
    import torch

    examples = model.inputs
    generator = torch.Generator().manual_seed(0)
    first = examples[0]
    channels = None
    if first.is_floating_point() and first.dim() > 0:
        numbers, _ = check_inputs(model, count * len(first))
        channels = torch.from_numpy(numbers).reshape(count, *first.shape).to(first.dtype)
    calls = []
    for number in range(count):
        given = [channels[number]] if channels is not None else []
        for x in examples[len(given) :]:
            if x.is_floating_point():
                given.append(torch.randn(x.shape, generator=generator).to(x.dtype))
            else:
                given.append(x.flatten()[torch.randperm(x.numel(), generator=generator)].reshape(x.shape))
        calls.append(tuple(given))
    return calls


def _stacked(calls: list[list[Tensor]]) -> list[NDArray[Any]]:
    return [
        np.stack(
            [
                t.detach().float().numpy() if t.is_floating_point() else t.numpy().astype(np.int32)
                for t in tensors
            ]
        )
        for tensors in zip(*calls, strict=True)
    ]
