"""Functions that torch.export cannot trace, by others that answer the same.

They look at values where shapes would do, or hide what they do from the exporter.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch._functorch.vmap import _process_batched_inputs
from torch.utils import _pytree

from edgecsi.errors import ModelError


def _covariance(
    x: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None
) -> Tensor:
    """torch.cov, which looks at the values of its weights even if there are none."""
    if fweights is not None or aweights is not None:
        return torch.cov(x, correction=correction, fweights=fweights, aweights=aweights)
    rows = x.reshape(1, -1) if x.dim() < 2 else x
    apart = rows - rows.mean(1, keepdim=True)
    found = apart @ apart.mH / max(rows.shape[1] - correction, 0)
    return found.squeeze() if x.dim() < 2 else found


def _correlation(x: Tensor) -> Tensor:
    found = _covariance(x)
    if x.dim() < 2:
        return found / found
    spread = found.diagonal().real.sqrt() if found.is_complex() else found.diagonal().sqrt()
    found = found / spread[:, None] / spread
    return found if found.is_complex() else found.clip(-1, 1)


def _combinations(x: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """torch.combinations, which masks where it could count."""
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    return x[torch.tensor(list(choose(range(len(x)), r)), dtype=torch.int64).reshape(-1, r)]


def _packed(*_args: Any, **_options: Any) -> Any:
    raise ModelError(
        "the network packs its sequences (pack_padded_sequence)",
        "how much is computed then depends on their lengths, and shapes are compiled in",
        "give whole sequences to the recurrent layer, and mask what it answers behind their ends",
    )


def in_turns(
    func: Any, in_dims: Any, out_dims: Any, _randomness: str, _chunk_size: Any, *args: Any, **kwargs: Any
) -> Any:
    """torch.vmap, sample by sample: what it does with all at once cannot be exported."""
    count, dims, flat, spec = _process_batched_inputs(in_dims, args, func)
    answers = []
    for number in range(int(count)):
        one = [x if d is None else x.select(d, number) for x, d in zip(flat, dims, strict=True)]
        answers.append(_pytree.tree_flatten(func(*_pytree.tree_unflatten(one, spec), **kwargs)))
    shape = answers[0][1]
    places = _pytree._broadcast_to_and_flatten(out_dims, shape)
    assert places is not None
    columns = zip(*(leaves for leaves, _ in answers), strict=True)
    stacked = [torch.stack(ys, d) for ys, d in zip(columns, places, strict=True)]
    return _pytree.tree_unflatten(stacked, shape)


REPLACED: dict[Any, Any] = {
    torch.cov: _covariance, Tensor.cov: _covariance, torch.corrcoef: _correlation, Tensor.corrcoef: _correlation,
    torch.combinations: _combinations, Tensor.data.__get__: Tensor.detach, torch._VF._pack_padded_sequence: _packed,  # type: ignore[attr-defined]
}  # fmt: skip
