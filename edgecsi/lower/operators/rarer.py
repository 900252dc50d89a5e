"""Rarer operators in terms of simpler ones, in PyTorch: special functions, indices of pooling, sampling of volumes.

`edgecsi.lower.decompose` adds them to its table. Special functions are computed in double precision: their sums cancel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# erfc(x) exp(x^2) / t of t = 1 / (1 + x / 2): Numerical Recipes, 3rd edition, 6.2.2; relative error below 1.2e-7.
_ERFC = (
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
    -1.26551223,
)  # fmt: skip
# M. Giles, Approximating the erfinv function, GPU Computing Gems 2 (2011), table 5: near the middle, at the ends.
_ERFINV = (
    (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
     0.246640727, 1.50140941),
    (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
     1.00167406, 2.83297682),
)  # fmt: skip
# Lanczos' approximation, g = 7 (P. Godfrey, 2001); relative error below 1e-14.
_LANCZOS = (
    0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
    12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
)  # fmt: skip
# Bernoulli's numbers over 2n: what is left of digamma behind its logarithm, in powers of 1 / z^2.
_DIGAMMA = (1 / 240, -1 / 252, 1 / 120, -1 / 12, 0.0)


def _horner(coefficients: Sequence[float], x: Tensor) -> Any:
    y: Any = coefficients[0]
    for c in coefficients[1:]:
        y = y * x + c
    return y


def _in_double(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
    def computed(x: Tensor) -> Tensor:
        import torch

        return function(x.double()).to(x.dtype if x.is_floating_point() else torch.float32)

    return computed


def _erfcx_of_positive(x: Tensor) -> Any:
    t = 1 / (1 + 0.5 * x)
    return t * _horner(_ERFC, t).exp()


def _erfc(x: Tensor) -> Tensor:
    import torch

    tail = _erfcx_of_positive(x.abs()) * (-x * x).exp()
    return torch.where(x < 0, 2 - tail, tail)


def _erfcx(x: Tensor) -> Tensor:
    import torch

    tail = _erfcx_of_positive(x.abs())
    return torch.where(x < 0, 2 * (x * x).exp() - tail, tail)


def _erfinv(x: Tensor) -> Tensor:
    import torch

    w = -((1 - x) * (1 + x)).log()
    middle, end = _horner(_ERFINV[0], w - 2.5), _horner(_ERFINV[1], w.clamp(min=0).sqrt() - 3)
    return torch.where(x.abs() == 1, x * math.inf, torch.where(w < 5, middle, end) * x)


def _lgamma(x: Tensor) -> Tensor:
    import torch

    low = x < 0.5
    y = torch.where(low, 1 - x, x) - 1
    total: Any = _LANCZOS[0]
    for n, c in enumerate(_LANCZOS[1:], 1):
        total = total + c / (y + n)
    t = y + 7.5
    above = 0.5 * math.log(2 * math.pi) + (y + 0.5) * t.log() - t + total.log()
    mirrored = (math.pi / ((x - x.floor()) * math.pi).sin().abs()).log() - above
    return torch.where(x.isinf(), math.inf, torch.where(low, mirrored, above))


def _digamma(x: Tensor) -> Tensor:
    import torch

    low = x < 0.5
    y = torch.where(low, 1 - x, x)
    steps: Any = sum(1 / (y + k) for k in range(8))
    z = y + 8
    above = z.log() - 0.5 / z + _horner(_DIGAMMA, 1 / (z * z)) - steps
    turn = (x - x.floor()) * math.pi
    poles = torch.where((x < 0) & (x == x.floor()), math.nan, turn.sin() / turn.cos())
    return torch.where(low, above - math.pi / poles, above)


def _reflected(c: Tensor, size: int, aligned: bool) -> Tensor:
    """Coordinates mirrored at the edges, as often as it takes."""
    import torch

    low, span = (0.0, float(size - 1)) if aligned else (-0.5, float(size))
    if span == 0:
        return torch.zeros_like(c)
    c = (c - low).abs()
    flips = (c / span).floor()
    rest = c - flips * span
    return torch.where(flips.remainder(2) == 0, rest, span - rest) + low


def _grid_sampler_3d(x: Tensor, grid: Tensor, mode: int, padding: int, aligned: bool) -> Tensor:
    """Every point is a sum over its corners: eight, or the nearest one."""
    n, channels, *sizes = x.shape
    whole = grid.shape[1:4]
    flat = x.reshape(n, channels, -1)
    corners: list[list[tuple[Tensor, Tensor]]] = []
    for axis, size in enumerate(sizes):
        g = grid[..., 2 - axis]
        c = (g + 1) / 2 * (size - 1) if aligned else ((g + 1) * size - 1) / 2
        if padding == 2:
            c = _reflected(c, size, aligned)
        if padding:
            c = c.clamp(0, size - 1)
        first = c.round() if mode == 1 else c.floor()
        sides = [(first, first * 0 + 1)] if mode == 1 else [(first, first + 1 - c), (first + 1, c - first)]
        corners.append([(at, weight * ((at >= 0) & (at < size))) for at, weight in sides])
    total: Any = 0
    for corner in itertools.product(*corners):
        place, weight = 0, 1.0
        for (at, part), size in zip(corner, sizes, strict=True):
            place = place * size + at.clamp(0, size - 1).nan_to_num().long()  # type: ignore[assignment]
            weight = weight * part  # type: ignore[assignment]
        index = place.reshape(n, 1, -1).expand(n, channels, -1)  # type: ignore[attr-defined]
        total = total + flat.gather(2, index).reshape(n, channels, *whole) * weight.unsqueeze(1)  # type: ignore[attr-defined]
    return total  # type: ignore[no-any-return]


def _embedding_bag(
    weight: Tensor, indices: Tensor, offsets: Tensor, _scale: bool = False, mode: int = 0, _sparse: bool = False,
    per_sample_weights: Any = None, include_last_offset: bool = False, padding_idx: int = -1,
) -> Any:  # fmt: skip
    """Sums (0), means (1) or maxima (2) of rows, bag by bag: every bag looks at all rows for its own."""
    import torch

    starts = offsets[:-1] if include_last_offset else offsets
    places = torch.arange(indices.shape[0])
    bag = (starts.unsqueeze(0) <= places.unsqueeze(1)).sum(1) - 1
    mine = bag.unsqueeze(0) == torch.arange(starts.shape[0]).unsqueeze(1)
    if padding_idx >= 0:
        mine = mine & (indices != padding_idx)
    rows = weight.index_select(0, indices)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(1)
    count = mine.sum(1)
    if mode == 2:
        most = torch.where(mine.unsqueeze(2), rows, -math.inf).amax(1)
        y = torch.where(count.unsqueeze(1) > 0, most, 0.0)
    else:
        y = mine.to(rows.dtype) @ rows
        y = y / count.clamp(min=1).unsqueeze(1) if mode == 1 else y
    return y, bag, count, torch.zeros_like(count)


def _masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """The n-th place that the mask has set takes the n-th number."""
    import torch

    wide = mask.expand(torch.broadcast_shapes(x.shape, mask.shape))  # type: ignore[no-untyped-call]
    number = wide.reshape(-1).to(torch.int64).cumsum(0) - 1
    found = source.reshape(-1).index_select(0, number.clamp(0, source.numel() - 1))
    return torch.where(wide, found.reshape(wide.shape), x)


def _mode(x: Tensor, dim: int = -1, keepdim: bool = False) -> Any:
    """The smallest of the most frequent values, and the last place where it stands."""
    import torch

    rows = x.movedim(dim, -1)
    equal = rows.unsqueeze(-1) == rows.unsqueeze(-2)
    count = equal.sum(-1)
    often = count == count.amax(-1, keepdim=True)
    last = torch.iinfo(x.dtype).max if not x.is_floating_point() else math.inf
    value = torch.where(often, rows, last).amin(-1, keepdim=True)
    place = torch.where(rows == value, torch.arange(rows.shape[-1]), -1).amax(-1, keepdim=True)
    found = (t.movedim(-1, dim) for t in (value, place))
    return tuple(t if keepdim else t.squeeze(dim) for t in found)


def _histc(x: Tensor, bins: int = 100, low: Any = 0, high: Any = 0) -> Any:
    import torch

    if low == high:
        return NotImplemented
    flat = x.reshape(-1)
    place = ((flat - low) * (bins / (high - low))).floor().clamp(max=bins - 1)
    here = (place.unsqueeze(1) == torch.arange(bins)) & ((flat >= low) & (flat <= high)).unsqueeze(1)
    return here.to(x.dtype).sum(0)


def rarer(of_torch: Callable[[str], Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """A table for ``ExportedProgram.run_decompositions``.

    Args:
        of_torch: gives PyTorch's own decomposition of an operator.
    """
    import torch

    aten = torch.ops.aten

    def grid_sampler_2d(x: Tensor, grid: Tensor, mode: int, padding: int, aligned: bool) -> Tensor:
        """A place that is no number gives none; where places are moved into the image it is that of the first pixel."""
        moves = mode != 2 and padding > 0
        if moves:
            first = torch.stack(
                [torch.full((), -1.0 if aligned else 1 / n - 1) for n in (x.shape[3], x.shape[2])]
            )
            grid = torch.where(grid.isfinite() if padding == 2 else ~grid.isnan(), grid, first)
        y: Tensor = of_torch("grid_sampler_2d")(x, grid, mode, padding, aligned)
        if mode == 1 or moves:
            return y
        return torch.where(grid.isfinite().all(-1).unsqueeze(1), y, math.nan)

    def max_unpool(x: Tensor, indices: Tensor, size: list[int], *_steps: Any) -> Tensor:
        lead, axes = x.shape[: x.dim() - len(size)], len(size)
        flat = x.new_zeros([*lead, math.prod(size)]).scatter(-1, indices.flatten(-axes), x.flatten(-axes))
        return flat.reshape([*lead, *size])

    def nanmedian(x: Tensor, dim: int, keepdim: bool = False) -> Any:
        values, order = aten.sort.stable(x, stable=True, dim=dim, descending=False)
        middle = (((~x.isnan()).sum(dim, keepdim=True) - 1) // 2).clamp(min=0)
        found = [t.gather(dim, middle) for t in (values, order)]
        return tuple(t if keepdim else t.squeeze(dim) for t in found)

    def var_mean(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
        axes = list(dim) if dim else list(range(x.dim()))
        return aten.var.correction(x, dim, correction=correction, keepdim=keepdim), x.mean(
            axes, keepdim=keepdim
        )

    def logcumsumexp(x: Tensor, dim: int) -> Any:
        """Each sum by its own largest term: by that of all, early sums would vanish."""
        rows = x.movedim(dim, -1)
        n = rows.shape[-1]
        seen = torch.arange(n)[None, :] <= torch.arange(n)[:, None]
        return torch.where(seen, rows.unsqueeze(-2), -math.inf).logsumexp(-1).movedim(-1, dim)

    def pdist(x: Tensor, p: float = 2) -> Any:
        first, second = torch.triu_indices(x.shape[0], x.shape[0], 1)
        return torch.linalg.vector_norm(x[first] - x[second], p, -1)

    def conv_tbc(x: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
        image, taps = x.permute(1, 2, 0), weight.permute(2, 1, 0)
        y = aten.convolution(image, taps, bias, [1], [pad], [1], False, [0], 1)
        return y.permute(2, 0, 1)  # type: ignore[no-any-return]

    return {
        aten.grid_sampler_2d.default: grid_sampler_2d,
        aten.grid_sampler_3d.default: _grid_sampler_3d,
        aten.max_unpool2d.default: max_unpool,
        aten.max_unpool3d.default: max_unpool,
        aten.nanmedian.dim: nanmedian,
        aten.nanmedian.default: lambda x: nanmedian(x.reshape(-1), 0)[0],
        aten.var_mean.correction: var_mean,
        aten.conv_tbc.default: conv_tbc,
        aten._pdist_forward.default: pdist,
        aten.logcumsumexp.default: logcumsumexp,
        aten._embedding_bag.default: _embedding_bag,
        aten._embedding_bag_forward_only.default: _embedding_bag,
        aten.masked_scatter.default: _masked_scatter,
        aten.histc.default: _histc,
        aten.mode.default: _mode,
        aten.dist.default: lambda a, b, p=2: torch.linalg.vector_norm(a - b, p),
        aten.erfc.default: _in_double(_erfc),
        aten.special_erfcx.default: _in_double(_erfcx),
        aten.erfinv.default: _in_double(_erfinv),
        aten.lgamma.default: _in_double(_lgamma),
        aten.digamma.default: _in_double(_digamma),
    }
