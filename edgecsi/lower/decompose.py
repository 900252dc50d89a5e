"""Operators in terms of simpler ones, in PyTorch: what runs fast here is not what runs fast there.

PyTorch's own decompositions come first. Ours follow: normalisations become rows for our layer-normalisation kernel,
transposed convolutions become convolutions of a spread image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi.lower.operators.rarer import rarer
from edgecsi.lower.operators.resample import resampling
from edgecsi.lower.operators.solve import solving

if TYPE_CHECKING:
    from torch import Tensor

# Of PyTorch's own decompositions, those that its default table leaves out.
OF_TORCH = (
    "upsample_bilinear2d", "upsample_linear1d", "upsample_trilinear3d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_bicubic2d",
    "grid_sampler_2d", "hardtanh", "col2im", "im2col", "reflection_pad1d", "reflection_pad2d",
    "replication_pad1d", "replication_pad2d", "affine_grid_generator", "logaddexp", "isin", "nan_to_num", "take",
)  # fmt: skip
# Kept as they are, because a kernel of ours or a pass knows them.
KEPT = ("_prelu_kernel", "silu", "gelu", "leaky_relu", "elu", "celu", "softplus")


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """The table for ``ExportedProgram.run_decompositions``."""
    import torch
    from torch._decomp import get_decompositions
    from torch.export import default_decompositions

    aten = torch.ops.aten
    table: dict[Any, Callable[..., Any]] = dict(default_decompositions())
    for name in OF_TORCH:
        table |= get_decompositions([getattr(aten, name)])
    own = _own()
    for op in [op for op in table if getattr(op, "_opname", "") in KEPT]:
        del table[op]
    rare = rarer(lambda name: next(iter(get_decompositions([getattr(aten, name)]).values())))
    return table | rare | resampling() | solving() | own


def _own() -> dict[Any, Callable[..., Any]]:
    import torch

    aten = torch.ops.aten

    def widened(x: Tensor) -> Tensor:
        """Half precision as single: PyTorch rounds once, behind the sum."""
        return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

    def ends(x: Tensor) -> tuple[Any, Any]:
        """The least and the largest number of a type."""
        if x.is_floating_point():
            return -math.inf, math.inf
        return (
            (False, True) if x.dtype == torch.bool else (torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max)
        )

    def exactly(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Through double precision: where the result is a whole number, people round it down."""

        def computed(x: Tensor) -> Tensor:
            if x.is_complex():
                return function(x)
            return function(x.double()).to(x.dtype if x.is_floating_point() else torch.float32)

        return computed

    def layer_norm(x: Tensor, shape: list[int], weight: Any, bias: Any, eps: float) -> Any:
        """Over several axes: over one long one. The kernel's sums do not cancel, so nothing is lost."""
        if len(shape) == 1 and x.dtype == torch.float64:  # which TVM's own does not take
            apart, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
            rstd = (apart + eps).rsqrt()
            y = (x - mean) * rstd * (1 if weight is None else weight)
            return y + (0 if bias is None else bias), mean, rstd
        if len(shape) == 1:
            return NotImplemented
        length = math.prod(shape)
        rows = x.reshape(*x.shape[: x.dim() - len(shape)], length)
        gamma, beta = (None if v is None else v.reshape(length) for v in (weight, bias))
        y, mean, rstd = aten.native_layer_norm(rows, [length], gamma, beta, eps)
        return y.reshape(x.shape), mean, rstd

    def group_norm(
        x: Tensor, weight: Any, bias: Any, n: int, c: int, _size: int, groups: int, eps: float
    ) -> Any:
        length = x.numel() // (n * groups)
        y, mean, rstd = aten.native_layer_norm(x.reshape(n * groups, length), [length], None, None, eps)
        return _affine(y.reshape(x.shape), weight, bias), mean.reshape(n, groups), rstd.reshape(n, groups)

    def batch_stats(x: Tensor, weight: Any, bias: Any, _training: bool, _momentum: float, eps: float) -> Any:
        """Batch normalisation without running statistics: over the samples and pixels of every channel."""
        n, c = x.shape[:2]
        rows = x.reshape(n, c, -1).transpose(0, 1).reshape(c, -1)
        y, mean, rstd = aten.native_layer_norm(rows, [rows.shape[1]], None, None, eps)
        y = y.reshape(c, n, -1).transpose(0, 1).reshape(x.shape)
        return _affine(y, weight, bias), mean.reshape(c), rstd.reshape(c)

    def batch_norm(
        x: Tensor, weight: Any, bias: Any, mean: Tensor, variance: Tensor, _momentum: float, eps: float
    ) -> Any:
        """On images; other shapes are seen as images, so that the layer in front takes it in."""
        if x.dim() == 4:
            return NotImplemented
        image = x.reshape(x.shape[0], x.shape[1], 1, -1)
        y, a, b = aten._native_batch_norm_legit_no_training(image, weight, bias, mean, variance, 0.0, eps)
        return y.reshape(x.shape), a, b

    def prelu(x: Tensor, weight: Tensor) -> Any:
        if x.dim() == 4 or weight.numel() == 1 or x.dim() < 3:
            return NotImplemented
        image = x.reshape(x.shape[0], x.shape[1], 1, -1)
        return aten._prelu_kernel(image, weight.reshape(1, -1, 1, 1)).reshape(x.shape)

    def convolution(
        x: Tensor, weight: Tensor, bias: Any, stride: list[int], padding: list[int], dilation: list[int],
        transposed: bool, output_padding: list[int], groups: int,
    ) -> Any:  # fmt: skip
        """A transposed convolution is one of the image with stride - 1 zeros between its pixels, weights flipped."""
        if not transposed:
            return NotImplemented
        spatial = x.dim() - 2
        size = list(weight.shape[2:])
        if spatial == 1 and list(x.shape[2:]) == [1] and size == [1] and groups == 1 and padding[0] == 0:
            return _dense(x, weight, bias)
        inside = []
        for axis in reversed(range(spatial)):
            reach = dilation[axis % len(dilation)] * (size[axis] - 1) - padding[axis % len(padding)]
            inside += [reach, reach + output_padding[axis % len(output_padding)]]
        steps = [int(stride[axis % len(stride)]) for axis in range(spatial)]
        even = all(n >= 0 for n in inside) and inside[::2] == inside[1::2] and set(steps) == {1}
        if not even:
            x = _spread(x, steps, inside)
        around = list(reversed(inside[::2])) if even else [0] * spatial
        inputs, each = weight.shape[0] // groups, weight.shape[1]
        flipped = weight.flip(list(range(2, x.dim()))).reshape(groups, inputs, each, *size)
        flipped = flipped.transpose(1, 2).reshape(groups * each, inputs, *size)
        ones = [1] * spatial
        return aten.convolution(x, flipped, bias, ones, around, list(dilation), False, [0] * spatial, groups)

    def adaptive_average(x: Tensor, size: list[int]) -> Any:
        """Windows of one size are ordinary pooling."""
        shape = list(x.shape[-len(size) :])
        if any(n % m for n, m in zip(shape, size, strict=True)):
            return NotImplemented
        if all(m == 1 for m in size):
            return x.mean(list(range(x.dim() - len(size), x.dim())), keepdim=True)
        window = [n // m for n, m in zip(shape, size, strict=True)]
        return aten.avg_pool2d(x, window, window)

    def attention_free_rrelu(
        x: Tensor, _noise: Any, lower: float = 0.125, upper: float = 1 / 3, training: bool = False, *_: Any
    ) -> Any:
        return aten.leaky_relu(x, (lower + upper) / 2), x

    def copysign(x: Tensor, sign: Any) -> Any:
        sign = torch.as_tensor(sign, dtype=x.dtype)
        negative = torch.where(sign == 0, 1 / sign < 0, sign < 0)
        return torch.where(negative, -x.abs(), x.abs())

    def cdist(a: Tensor, b: Tensor, p: float, _mode: Any) -> Any:
        return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)

    def trilinear(
        a: Tensor,
        b: Tensor,
        c: Tensor,
        ea: list[int],
        eb: list[int],
        ec: list[int],
        dims: list[int],
        _unroll: int = 1,
    ) -> Any:
        for added, which in ((ea, 0), (eb, 1), (ec, 2)):
            for axis in sorted(added):
                a, b, c = (t.unsqueeze(axis) if i == which else t for i, t in enumerate((a, b, c)))
        return (a * b * c).sum(dims)

    def vector_norm(
        x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Any:
        x = x.abs() if x.is_complex() else x
        x = x.to(dtype) if dtype is not None else x
        if widened(x) is not x:
            return vector_norm(widened(x), p, dim, keepdim).to(x.dtype)
        axes = list(range(x.dim())) if dim is None else list(dim) if isinstance(dim, list | tuple) else [dim]
        if p == 2:
            return (x * x).sum(axes, keepdim=keepdim).sqrt()
        if p == 1:
            return x.abs().sum(axes, keepdim=keepdim)
        if p == math.inf:
            return x.abs().amax(axes, keepdim=keepdim)
        if p == -math.inf:
            return x.abs().amin(axes, keepdim=keepdim)
        if p == 0:
            return (x != 0).to(x.dtype).sum(axes, keepdim=keepdim)
        return x.abs().pow(p).sum(axes, keepdim=keepdim).pow(1 / p)

    def spread(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
        """The variance, in single precision at least."""
        x = widened(x)
        axes = list(range(x.dim())) if not dim else [d % x.dim() for d in dim]
        count = math.prod(x.shape[d] for d in axes)
        apart = x - x.mean(axes, keepdim=True)
        apart = torch.view_as_real(apart).square().sum(-1) if x.is_complex() else apart * apart
        return apart.sum(axes, keepdim=keepdim) / max(0.0, count - (1 if correction is None else correction))

    def variance(x: Tensor, dim: Any = None, **options: Any) -> Any:
        return spread(x, dim, **options).to(x.dtype.to_real())

    def one_hot(x: Tensor, classes: int = -1) -> Any:
        if classes < 0:
            return NotImplemented
        return (x.unsqueeze(-1) == torch.arange(classes)).to(torch.int64)

    def median(x: Tensor, dim: int, keepdim: bool = False) -> Any:
        """NaN, which sorts to the end, if there is one."""
        middle, last = (kthvalue(x, k, dim, keepdim) for k in ((x.shape[dim] + 1) // 2, x.shape[dim]))
        if not x.is_floating_point():
            return middle
        return tuple(torch.where(last[0].isnan(), b, a) for a, b in zip(middle, last, strict=True))

    def median_all(x: Tensor) -> Any:
        return median(x.reshape(-1), 0)[0]

    def kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
        values, order = aten.sort.stable(x, stable=True, dim=dim, descending=False)
        picked = (t.select(dim, k - 1) for t in (values, order))
        return tuple(t.unsqueeze(dim) if keepdim else t for t in picked)

    def sort(x: Tensor, dim: int = -1, descending: bool = False) -> Any:
        return aten.sort.stable(x, stable=True, dim=dim, descending=descending)

    def bucketize(x: Any, edges: Tensor, *, out_int32: bool = False, right: bool = False) -> Any:
        """How many edges lie below; NaN lies behind all."""
        x = torch.as_tensor(x).unsqueeze(-1)
        below = (edges <= x if right else edges < x) | x.isnan()
        return below.sum(-1).to(torch.int32 if out_int32 else torch.int64)

    def searchsorted(
        edges: Tensor,
        x: Any,
        *,
        out_int32: bool = False,
        right: bool = False,
        side: Any = None,
        sorter: Any = None,
    ) -> Any:
        if sorter is not None:
            edges = edges.gather(-1, sorter)
        wide = edges if edges.dim() == 1 else edges.unsqueeze(-2)
        return bucketize(x, wide, out_int32=out_int32, right=right or side == "right")

    def index_put(x: Tensor, indices: list[Any], values: Tensor, accumulate: bool = False) -> Any:
        """One value, or one row, where a mask is set; other masks give as many elements as the data says."""
        used = [i for i in indices if i is not None]
        if len(used) != 1 or used[0].dtype != torch.bool or accumulate:
            return NotImplemented
        (mask,) = used
        rest = x.dim() - len(indices) + 1 - mask.dim()
        if values.numel() != 1 and (len(indices) > 1 or values.dim() > rest):
            return NotImplemented
        mask = mask.reshape([*[1] * (len(indices) - 1), *mask.shape, *[1] * rest])
        return torch.where(mask, values.reshape(()) if values.numel() == 1 else values, x)

    def scatter_reduce(
        x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
    ) -> Any:
        """Every element looks at all of `source` along the axis for those that go to it."""
        dim %= x.dim()
        if any(a != b for n, (a, b) in enumerate(zip(x.shape, index.shape, strict=True)) if n != dim):
            return NotImplemented
        if source.shape != index.shape:
            source = source[tuple(slice(n) for n in index.shape)]
        places, given, old = (t.movedim(dim, -1) for t in (index, source, x))
        here = places.unsqueeze(-2) == torch.arange(x.shape[dim]).unsqueeze(-1)
        nothing = {"sum": 0, "mean": 0, "prod": 1}.get(reduce, ends(x)[int(reduce == "amin")])
        taken = torch.where(here, given.unsqueeze(-2), nothing)
        found = getattr(taken, {"mean": "sum"}.get(reduce, reduce))(-1)
        if include_self:
            join = {"prod": torch.mul, "amax": torch.maximum, "amin": torch.minimum}.get(reduce, torch.add)
            found = join(found, old)
        if reduce == "mean":
            count = (here.sum(-1) + int(include_self)).clamp(min=1)
            found = found / count if x.is_floating_point() else found // count
        return (found if include_self else torch.where(here.any(-1), found, old)).movedim(-1, dim)

    def fake_quantize(x: Tensor, scale: Any, zero: Any, low: int, high: int) -> Any:
        inverse = scale.reciprocal() if isinstance(scale, torch.Tensor) else float(1 / np.float32(scale))
        steps = torch.round(x * inverse) + zero
        return (steps.clamp(low, high) - zero) * scale, (steps >= low) & (steps <= high)

    def fake_quantize_channels(x: Tensor, scale: Tensor, zero: Tensor, axis: int, low: int, high: int) -> Any:
        shape = [-1 if n == axis else 1 for n in range(x.dim())]
        return fake_quantize(x, scale.reshape(shape), zero.reshape(shape), low, high)

    def but_for_nan(pick: Any) -> Any:
        return lambda a, b: torch.where(a.isnan(), b, torch.where(b.isnan(), a, pick(a, b)))

    def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, _sorted: bool = True) -> Any:
        if k == 1:  # the usual one: a maximum and where it is
            return (aten.max.dim if largest else aten.min.dim)(x, dim, True)
        values, order = aten.sort.stable(x, stable=True, dim=dim, descending=largest)
        return values.narrow(dim, 0, k), order.narrow(dim, 0, k)

    def max_dim(x: Tensor, dim: int, keepdim: bool = False) -> Any:
        return x.amax(dim, keepdim=keepdim), x.argmax(dim, keepdim=keepdim)

    def min_dim(x: Tensor, dim: int, keepdim: bool = False) -> Any:
        return x.amin(dim, keepdim=keepdim), x.argmin(dim, keepdim=keepdim)

    def std(x: Tensor, dim: Any = None, **options: Any) -> Any:
        return spread(x, dim, **options).sqrt().to(x.dtype.to_real())

    def cumulative_most(x: Tensor, dim: int, pick: Any) -> Any:
        """Value and place of the largest so far: the triangle of what came before, and its largest."""
        rows = x.movedim(dim, -1)
        n = rows.shape[-1]
        seen = torch.arange(n)[None, :] <= torch.arange(n)[:, None]
        limit = ends(x)[int(pick is not torch.amax)]
        table = torch.where(seen, rows.unsqueeze(-2), limit)
        values = pick(table, -1)
        last = torch.where((table == values.unsqueeze(-1)) & seen, torch.arange(n), -1).amax(-1)
        return values.movedim(-1, dim), last.movedim(-1, dim)

    def addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
        if beta == 1 and alpha == 1:
            return NotImplemented
        return beta * c + alpha * aten.mm(a, b)

    def baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
        product = aten.bmm(a, b)
        return (product if alpha == 1 else alpha * product) + (c if beta == 1 else beta * c)

    def addmv(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
        return beta * c + alpha * aten.mv(a, b)

    def addbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
        return beta * c + alpha * aten.bmm(a, b).sum(0)

    return {
        aten.native_layer_norm.default: layer_norm,
        aten.native_group_norm.default: group_norm,
        aten._native_batch_norm_legit.no_stats: batch_stats,
        aten._native_batch_norm_legit_no_training.default: batch_norm,
        aten._prelu_kernel.default: prelu,
        aten.convolution.default: convolution,
        aten._adaptive_avg_pool2d.default: adaptive_average,
        aten.rrelu_with_noise_functional.default: attention_free_rrelu,
        aten.copysign.Tensor: copysign,
        aten.copysign.Scalar: copysign,
        aten._cdist_forward.default: cdist,
        aten._trilinear.default: trilinear,
        aten.linalg_vector_norm.default: vector_norm,
        aten.var.correction: variance,
        aten.std.correction: std,
        aten.one_hot.default: one_hot,
        torch.ops.prims.copy_strided.default: lambda x, _strides: aten.clone(x),
        aten.median.dim: median,
        aten.median.default: median_all,
        aten.kthvalue.default: kthvalue,
        aten.sort.default: sort,
        aten.index_put.default: index_put,
        aten.scatter_reduce.two: scatter_reduce,
        aten.fake_quantize_per_tensor_affine_cachemask.default: fake_quantize,
        aten.fake_quantize_per_channel_affine_cachemask.default: fake_quantize_channels,
        aten._convolution.default: lambda *given: aten.convolution(*given[:9]),  # of torch.jit.trace
        aten.fmax.default: but_for_nan(torch.maximum),
        aten.fmin.default: but_for_nan(torch.minimum),
        aten.signbit.default: lambda x: (x < 0) | (1 / x == -math.inf),
        aten.ldexp.Tensor: lambda x, n: x * torch.pow(2.0, n),
        aten.bucketize.Tensor: bucketize,
        aten.bucketize.Scalar: bucketize,
        aten.searchsorted.Tensor: searchsorted,
        aten.searchsorted.Scalar: searchsorted,
        aten.topk.default: topk,
        aten.max.dim: max_dim,
        aten.min.dim: min_dim,
        aten.cummax.default: lambda x, dim: cumulative_most(x, dim, torch.amax),
        aten.cummin.default: lambda x, dim: cumulative_most(x, dim, torch.amin),
        aten.hypot.default: lambda a, b: (a * a + b * b).sqrt(),
        aten.exp2.default: exactly(lambda x: (x * math.log(2)).exp()),
        aten.addmm.default: addmm,
        aten.baddbmm.default: baddbmm,
        aten.addmv.default: addmv,
        aten.addbmm.default: addbmm,
        aten.square.default: lambda x: x * x,
        aten.sinh.default: lambda x: 0.5 * (x.expm1() - (-x).expm1()),
        aten.cosh.default: lambda x: 0.5 * (x.exp() + (-x).exp()),
        aten.tan.default: lambda x: x.sin() / x.cos(),
        aten.asinh.default: lambda x: x.sign() * (x.abs() + x * x / (1 + (x * x + 1).sqrt())).log1p(),
        aten.acosh.default: lambda x: (x + (x * x - 1).sqrt()).log(),
        aten.atanh.default: lambda x: 0.5 * ((2 * x / (1 - x)).log1p()),
        aten.reciprocal.default: lambda x: torch.ones((), dtype=torch.result_type(x, 1.0)) / x,
        aten.max.default: lambda x: x.amax(list(range(x.dim()))),
        aten.min.default: lambda x: x.amin(list(range(x.dim()))),
        aten.log2.default: exactly(lambda x: x.log() / math.log(2)),
        aten.log10.default: exactly(lambda x: x.log() / math.log(10)),
    }


def _affine(x: Tensor, weight: Any, bias: Any) -> Tensor:
    """Per channel, axis 1."""
    shape = [1, -1, *[1] * (x.dim() - 2)]
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _spread(x: Tensor, steps: list[int], around: list[int]) -> Tensor:
    """``step - 1`` zeros between neighbours along the last axes, and an edge of zeros (cut off where negative).

    One table says where each pixel comes from; behind the last pixel there is a zero.
    """
    import torch

    sizes = list(x.shape[2:])
    count = math.prod(sizes)
    places = torch.arange(1, count + 1).reshape(sizes)
    for axis, step in enumerate(steps):
        wide = torch.zeros(
            [*places.shape[:axis], (places.shape[axis] - 1) * step + 1, *places.shape[axis + 1 :]]
        )
        wide = wide.to(places.dtype).index_copy(axis, torch.arange(places.shape[axis]) * step, places)
        places = wide
    places = torch.nn.functional.pad(places, around)
    table = torch.where(places == 0, count, places - 1)
    flat = torch.nn.functional.pad(x.reshape(*x.shape[:2], count), [0, 1])
    return flat.index_select(2, table.flatten()).reshape(*x.shape[:2], *table.shape)


def _dense(x: Tensor, weight: Tensor, bias: Any) -> Tensor:
    """One pixel and one tap: a fully connected layer."""
    y = x.reshape(x.shape[0], -1) @ weight.reshape(weight.shape[:2])
    return (y if bias is None else y + bias).unsqueeze(-1)
