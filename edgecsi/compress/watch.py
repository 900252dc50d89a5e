"""What the layers of a network see and give while it runs, and how much their outputs weigh in the network's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_BATCH = 100
_GRADIENTS = 500  # samples that say how much an output weighs
_METRIC_SAMPLES = 3000  # the same for all outputs together,
_DIRECTIONS = 4  # times so many directions: more rows than a layer has outputs

Look = Callable[[Tensor, Tensor], None]
"""Is shown an input and the output that belongs to it."""


@contextmanager
def watching(*looks: tuple[nn.Module, Look]) -> Iterator[None]:
    """Show every input and output of some layers, as they run."""
    hooks = [
        layer.register_forward_hook(lambda _layer, inputs, output, look=look: look(inputs[0], output))
        for layer, look in looks
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def in_order(
    module: nn.Module, layers: Iterable[str], example: Tensor
) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Shapes of input and output of layers, in the order in which they run."""
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}

    def note(name: str) -> Look:
        return lambda x, y: shapes.update({name: (x.shape, y.shape)})

    with watching(*((module.get_submodule(name), note(name)) for name in layers)):
        module(example)
    return shapes


def gradients(
    module: nn.Module,
    layers: Iterable[str],
    parts: Iterable[Tensor],
    directions: Callable[[Tensor], Iterable[Tensor]],
) -> Iterator[dict[str, Tensor]]:
    """How the network's output moves with each output of its layers: rows of a Jacobian, mixed.

    Args:
        parts: inputs, part by part.
        directions: from the network's output to what it is multiplied with, D tensors; the sum of each product is
            differentiated.

    Yields:
        for every part, by layer, ``[D, …]``: for every direction a tensor of the shape of the layer's output.
    """
    names = list(layers)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Look:
        return lambda _x, y: seen.update({name: y})

    with watching(*((module.get_submodule(name), keep(name)) for name in names)):
        for part in parts:
            with torch.enable_grad():
                result = module(part.detach().clone().requires_grad_())
                outputs = [seen[name] for name in names]
                rows = [
                    torch.autograd.grad(
                        (result * direction).sum(), outputs, retain_graph=True, materialize_grads=True
                    )
                    for direction in directions(result.detach())
                ]
            yield {
                name: torch.stack(found) for name, found in zip(names, zip(*rows, strict=True), strict=True)
            }


@torch.no_grad()
def output_metric(module: nn.Module, name: str, samples: Tensor) -> Tensor:
    """How much errors of a layer's outputs weigh in the network's output, together: a Gauss-Newton matrix, float64
    ``[O, O]``. What its outputs do not tell apart behind it, such as one error undone by another, weighs little.

    Args:
        samples: inputs of the network, float32 ``[N, …]``.
    """
    generator = torch.Generator().manual_seed(0)

    def directions(y: Tensor) -> Iterator[Tensor]:
        return (torch.randn(y.shape, generator=generator) for _ in range(_DIRECTIONS))

    samples = samples[:_METRIC_SAMPLES]
    metric = torch.zeros((), dtype=torch.float64)
    for rows in gradients(module, [name], torch.split(samples, _BATCH), directions):
        flat = rows[name].flatten(0, -2).double()
        metric = metric + flat.T @ flat / (_DIRECTIONS * len(samples))
    return metric


def output_importance(module: nn.Module, layers: Iterable[str], samples: Tensor) -> dict[str, Tensor]:
    """How much an error of each output of a layer weighs in the network's output, float64 ``[O]``."""
    generator = torch.Generator().manual_seed(0)
    samples = samples[:_GRADIENTS]
    found = dict.fromkeys(layers, torch.zeros(()))
    parts = torch.split(samples, _BATCH)
    for rows in gradients(module, found, parts, lambda y: [torch.randn(y.shape, generator=generator)]):
        for name, row in rows.items():
            found[name] = found[name] + row.square().flatten(0, -2).double().sum(0) / len(samples)
    return found
