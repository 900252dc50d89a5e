"""What the layers of a network see and give while it runs, and how much their outputs weigh in the network's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgecsi.models.rows import one_tensor

_BATCH = 100
_GRADIENTS = 500  # samples that say how much an output weighs
_METRIC_SAMPLES = 3000  # the same for all outputs together,
_DIRECTIONS = 4  # times so many directions: more rows than a layer has outputs

Tell = Callable[[str, int, int], None]
"""Is told what a step does now, and how much of that is done: (phase, done, total)."""
Look = Callable[[Tensor, Tensor], None]
"""Is shown an input and the output that belongs to it."""


def say_nothing(phase: str, done: int, total: int) -> None:
    """For those who do not ask."""


@contextmanager
def watching(*looks: tuple[nn.Module, Look]) -> Iterator[None]:
    """Show every input and output of some layers, as they run. They are the look's own: networks that compute in
    place, as ``nn.ReLU(inplace=True)`` does, change others."""

    def show(look: Look) -> Callable[..., Tensor]:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            look(inputs[0].clone(), output)
            return output.clone()

        return hook

    hooks = [layer.register_forward_hook(show(look)) for layer, look in looks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rows_of_sequences(parts: Sequence[Tensor]) -> int:
    """How many rows a dense layer was given, if as sequences, ``[N, T, I]``; else 0: then each sample is one."""
    return sum(part.numel() // part.shape[-1] for part in parts if part.ndim > 2)


@torch.no_grad()
def in_order(
    module: nn.Module, layers: Iterable[str], example: Tensor
) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Shapes of input and output of layers, in the order in which they run; of one that runs again the last."""
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
        directions: from the network's output, float32 ``[N, …]``, to what it is multiplied with, D tensors; the sum of
            each product is differentiated.

    Yields:
        for every part, by layer, ``[D, …]``: for every direction a tensor of the shape of the layer's output; of a layer
        that runs several times, all its outputs one after the other.
    """
    names = list(layers)
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Look:
        return lambda _x, y: seen[name].append(y)

    with watching(*((module.get_submodule(name), keep(name)) for name in names)):
        for part in parts:
            seen.update({name: [] for name in names})
            with torch.enable_grad():
                result = one_tensor(module(part.detach().clone().requires_grad_()))
                outputs = [y for name in names for y in seen[name]]
                rows = [_row(result, direction, outputs) for direction in directions(result.detach())]
            every = iter(zip(*rows, strict=True))
            yield {
                name: torch.cat([torch.stack(next(every)) for _ in seen[name]], 1).nan_to_num(0, 0, 0)
                for name in names
            }


def _row(result: Tensor, direction: Tensor, outputs: list[Tensor]) -> Sequence[Tensor]:
    try:
        return torch.autograd.grad(
            (result * direction).sum(), outputs, retain_graph=True, materialize_grads=True
        )
    except RuntimeError:  # not differentiable, or overwrites what the gradient needs: nothing is known
        return [torch.ones_like(y) for y in outputs]


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
