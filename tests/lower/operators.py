"""Operators as people write them, by theme: functions of one image, float32 [1, 4, 8, 8], and the module's parts.

Each theme is one network that returns the answers of all its functions (`network`), so that building all of them stays
quick. `docs/supported.md` is made of these by ``python -m tests.lower.supported``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

Function = Callable[[Any, Tensor], Tensor]


def _random(*shape: int, seed: int = 2, **options: Any) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def _uniform(module: nn.Module) -> nn.Module:
    """Every parameter and statistic away from its default."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                low = 0.5 if name.endswith("running_var") else -0.5
                tensor.uniform_(low, 1, generator=generator)
    return module


class Parts(nn.Module):
    """Layers and tensors that the functions use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.dense, self.mix = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(256, 16), nn.Linear(4, 4)
        self.norm1, self.norm2 = _uniform(nn.BatchNorm1d(4)), _uniform(nn.BatchNorm2d(4))
        self.norm16, self.norm3 = _uniform(nn.BatchNorm1d(16)), _uniform(nn.BatchNorm3d(2))
        self.group, self.instance = nn.GroupNorm(4, 8), nn.InstanceNorm2d(8, affine=True)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.slopes, self.slope, self.rows = _uniform(nn.PReLU(4)), nn.PReLU(), nn.LayerNorm(8)
        self.image = _uniform(nn.LayerNorm((4, 8, 8)))
        for mode in ("reflect", "replicate", "circular"):
            setattr(self, mode, nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode))
        self.same, self.cube = nn.Conv2d(4, 4, (4, 3), padding="same"), nn.Conv3d(1, 3, 3, padding=1)
        self.up, self.up_groups = (
            nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
            nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2),
        )
        self.up_wide, self.up_line = (
            nn.ConvTranspose2d(4, 6, 3, dilation=2),
            nn.ConvTranspose1d(4, 6, 3, stride=2),
        )
        self.up_one, self.twice = (
            nn.ConvTranspose2d(4, 6, 1, stride=2, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
        )
        self.maker, self.table = nn.Linear(4, 144), nn.Embedding(5, 3)
        self.weight_normed = parametrizations.weight_norm(nn.Conv2d(4, 8, 3, padding=1))
        self.spectral = parametrizations.spectral_norm(nn.Linear(256, 16))
        self.orthogonal = parametrizations.orthogonal(nn.Linear(256, 16))
        self.pruned = prune.random_unstructured(nn.Linear(256, 16), "weight", 0.5)
        self.low, self.high = nn.Linear(2, 16, bias=False), nn.Linear(256, 2, bias=False)
        self.halved, self.brained = nn.Linear(256, 8).half(), nn.Linear(256, 8).bfloat16()
        self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.gru, self.rnn = nn.GRU(8, 6, num_layers=2, batch_first=True), nn.RNN(8, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.complex_dense = nn.Linear(8, 3, dtype=torch.complex64)
        for name, tensor in {
            "plane": _random(8, 8), "row": _random(8), "channels": _random(4, 1, 1), "doubles": _random(8).double(),
            "mask": _random(8, 8) > 0, "nothing": torch.zeros(8, 8, dtype=torch.bool),
            "causal": torch.triu(torch.full((8, 8), -math.inf), 1), "order": torch.tensor([2, 0, 3]),
            "spectrum": _random(5, dtype=torch.complex64), "turn": _random(8, 8, dtype=torch.complex64),
        }.items():  # fmt: skip
            self.register_buffer(name, tensor)


def _of_three(name: str) -> Function:
    return lambda s, x: getattr(F, name)(x * 3)


def _padded(mode: str) -> Function:
    return lambda s, x: F.pad(x, (1, 2, 3, 1), mode=mode)


def _part(name: str) -> Function:
    return lambda s, x: getattr(s, name)(x)


def _put(x: Tensor, place: Any, value: Any) -> Tensor:
    y = x.clone()
    y[place] = value
    return y


def _c(x: Tensor) -> Tensor:
    return torch.complex(x, x.flip(-1))


def _gram(x: Tensor) -> Tensor:
    """A matrix that is not singular."""
    return x[0, 0, :3] @ x[0, 0, :3].mH + 4 * torch.eye(3)


def _assigned(x: Tensor) -> Tensor:
    """As Fourier layers fill the lowest frequencies of their result."""
    y = torch.zeros(1, 2, 8, 8, dtype=torch.complex64)
    y[:, :, :3] = x[:, :2, 2:5] * 1j
    y[..., -1] = 2.0
    return y


def _halves(x: Tensor) -> Tensor:
    return torch.view_as_real(x)


THEMES: dict[str, dict[str, Function]] = {
    "activations": {
        **{n: _of_three(n) for n in (
            "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "softplus",
            "softsign", "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink", "logsigmoid", "tanhshrink",
        )},
        "gelu(tanh)": lambda s, x: F.gelu(x, approximate="tanh"),
        "threshold": lambda s, x: F.threshold(x, 0.1, 0.2),
        "glu": lambda s, x: F.glu(x, 1),
        "rrelu": lambda s, x: F.rrelu(x),
        "prelu": lambda s, x: s.slope(x) + s.slopes(x),
        "prelu of [N, C, L]": lambda s, x: s.slopes(x.flatten(2)),
        "where(x > 0, x, x m), m a plane": lambda s, x: torch.where(x > 0, x, x * s.plane),
        "where(x > 0, x, x m), m a row": lambda s, x: torch.where(x > 0, x, x * s.row),
        "where(x > 0, x, x m), m of channels": lambda s, x: torch.where(x > 0, x, x * s.channels),
        "softmax": lambda s, x: x.softmax(1) + x.softmax(-1) + F.softmin(x, -1),
        "log_softmax": lambda s, x: x.log_softmax(2),
    },
    "normalisation": {
        "batch_norm of [N, C, L]": lambda s, x: s.norm1(x.flatten(2)),
        "batch_norm of [N, C]": lambda s, x: s.norm16(s.dense(x.flatten(1))),
        "batch_norm of [N, C, D, H, W]": lambda s, x: s.norm3(x.reshape(1, 2, 2, 8, 8)),
        "batch_norm behind a viewed dense layer": lambda s, x: s.norm2(s.dense(x.flatten(1)).view(1, 4, 2, 2)),
        "batch_norm without statistics": lambda s, x: s.batch(x),
        "group_norm": lambda s, x: s.group(s.conv(x)),
        "instance_norm": lambda s, x: s.instance(s.conv(x)),
        "layer_norm": lambda s, x: s.rows(x) * s.channels + s.channels,
        "layer_norm over an image": lambda s, x: s.image(x),
        "rms_norm": lambda s, x: F.rms_norm(x, (8,)),
        "local_response_norm": lambda s, x: F.local_response_norm(x, 2),
        "normalize": lambda s, x: F.normalize(x, dim=1),
        "division by a sum": lambda s, x: x / torch.sqrt(x.pow(2).sum()),
    },
    "pooling": {
        "avg_pool2d": lambda s, x: F.avg_pool2d(x, 2),
        "avg_pool2d(ceil_mode)": lambda s, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        "avg_pool2d(count_include_pad=False)": lambda s, x: F.avg_pool2d(x, (2, 3), (1, 2), 1, count_include_pad=False),
        "avg_pool2d(divisor_override)": lambda s, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=4),
        "max_pool2d": lambda s, x: F.max_pool2d(x, 2),
        "max_pool2d(ceil_mode)": lambda s, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        "max_pool2d(dilation)": lambda s, x: F.max_pool2d(x, 2, dilation=2),
        "max_pool1d, avg_pool1d": lambda s, x: F.max_pool1d(x[0], 3, 2, 1) + F.avg_pool1d(x[0], 3, 2, 1),
        "max_pool3d, avg_pool3d": lambda s, x: F.max_pool3d(x[:, None], 2) + F.avg_pool3d(x[:, None], 2),
        "adaptive pooling": lambda s, x: F.adaptive_avg_pool2d(x, 3) + F.adaptive_max_pool2d(x, 3),
        "adaptive_avg_pool2d(1)": lambda s, x: F.adaptive_avg_pool2d(x, 1) * F.adaptive_avg_pool2d(x, (4, 2)),
        "lp_pool2d": lambda s, x: F.lp_pool2d(x.abs(), 2, 2),
        "max_pool2d(indices)": lambda s, x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[1],
        "max_unpool2d": lambda s, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    },
    "resampling and padding": {
        "interpolate(nearest) by 2": lambda s, x: F.interpolate(x, scale_factor=2),
        "interpolate(nearest) by 1.5": lambda s, x: F.interpolate(x, scale_factor=1.5),
        "interpolate(nearest) to a size": lambda s, x: F.interpolate(x, size=(11, 5)),
        "interpolate(nearest-exact)": lambda s, x: F.interpolate(x, scale_factor=1.7, mode="nearest-exact"),
        "interpolate(linear)": lambda s, x: F.interpolate(x[0], scale_factor=2, mode="linear"),
        "interpolate(bilinear)": lambda s, x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
        "interpolate(bilinear, align_corners)": lambda s, x: F.interpolate(
            x, size=(13, 5), mode="bilinear", align_corners=True
        ),
        "interpolate(bicubic)": lambda s, x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        "interpolate(trilinear)": lambda s, x: F.interpolate(x[:, None], scale_factor=2, mode="trilinear"),
        "interpolate(area)": lambda s, x: F.interpolate(x, size=(3, 3), mode="area"),
        "pixel_shuffle, channel_shuffle": lambda s, x: F.pixel_unshuffle(F.pixel_shuffle(F.channel_shuffle(x, 2), 2), 2),
        "grid_sample": lambda s, x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False),
        "grid_sample of volumes": lambda s, x: F.grid_sample(
            x.reshape(1, 2, 2, 8, 8), x[:, :3].permute(0, 2, 3, 1).unsqueeze(1).tanh(), padding_mode="reflection",
            align_corners=True,
        ),
        "interpolate(antialias)": lambda s, x: F.interpolate(x, (3, 5), mode="bilinear", antialias=True).mean()
        + F.interpolate(x, (5, 3), mode="bicubic", antialias=True),
        **{f"pad({m})": _padded(m) for m in (
            "reflect", "replicate", "circular", "constant",
        )},
        "pad, cutting": lambda s, x: F.pad(x, (-1, 2, 3, -1), value=3.0),
        "unfold, fold": lambda s, x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1) + x.unfold(2, 8, 1)[:, :, 0],
    },
    "layers": {
        **{f"conv2d({m})": _part(m) for m in ("reflect", "replicate", "circular")},
        "conv2d(same)": lambda s, x: s.same(x),
        "conv2d twice": lambda s, x: s.twice(s.twice(x)),
        "conv2d with computed weights": lambda s, x: F.conv2d(x, s.maker(x.mean((2, 3))).view(4, 4, 3, 3), padding=1),
        "conv3d": lambda s, x: s.cube(x[:, None]),
        "conv_transpose2d": lambda s, x: s.up(x),
        "conv_transpose2d(groups)": lambda s, x: s.up_groups(x),
        "conv_transpose2d(dilation)": lambda s, x: s.up_wide(x),
        "conv_transpose2d(padding beyond the kernel)": lambda s, x: s.up_one(x),
        "conv_transpose1d": lambda s, x: s.up_line(x.flatten(2)),
        "conv_tbc": lambda s, x: torch.conv_tbc(x.flatten(2), s.maker.weight.reshape(3, 64, 3), torch.ones(3), 1),
        "linear behind a transpose": lambda s, x: x.flatten(2) + s.mix(x.flatten(2).transpose(1, 2)).transpose(1, 2),
    },
    "computed weights": {
        "weight_norm": lambda s, x: s.weight_normed(x),
        "spectral_norm": lambda s, x: s.spectral(x.flatten(1)),
        "orthogonal": lambda s, x: s.orthogonal(x.flatten(1)),
        "pruned": lambda s, x: s.pruned(x.flatten(1)),
        "LoRA": lambda s, x: F.linear(x.flatten(1), s.dense.weight + s.low.weight @ s.high.weight, s.dense.bias),
        "binary weights": lambda s, x: F.linear(x.flatten(1), s.dense.weight.sign() * s.dense.weight.abs().mean()),
        "standardised weights": lambda s, x: F.conv2d(
            x, (s.conv.weight - s.conv.weight.mean((1, 2, 3), keepdim=True)) / s.conv.weight.std((1, 2, 3), keepdim=True)
        ),
    },
    "products and precision": {
        "part of a dense layer as an image": lambda s, x: s.twice(s.dense(x.flatten(1))[:, 4:].reshape(1, 4, 1, 3)),
        "embedding": lambda s, x: s.table((x * 3).long().abs() % 5),
        "embedding_bag": lambda s, x: F.embedding_bag((x[0, 0] * 3).long().abs() % 5, s.table.weight, mode="max"),
        "matmul": lambda s, x: x @ x + (x @ s.plane) + torch.matmul(x, s.row)[..., None],
        "einsum": lambda s, x: torch.einsum("bchw,bdhw->bcd", x, x),
        "cdist": lambda s, x: torch.cdist(x[0], x[0]) + F.cosine_similarity(x, x + 1)[0, 0, 0],
        "half precision": lambda s, x: (F.relu(s.halved(x.half().flatten(1))) * 2 + 1).float(),
        "bfloat16": lambda s, x: (s.brained(x.bfloat16().flatten(1)).softmax(-1) * 3).float(),
        "double precision": lambda s, x: (x.double() * s.doubles + x.double().sin()).float(),
    },
    "attention and recurrence": {
        "attention": lambda s, x: F.scaled_dot_product_attention(x, x, x),
        "attention(bool mask)": lambda s, x: F.scaled_dot_product_attention(x, x, x, attn_mask=s.mask),
        "attention(added mask)": lambda s, x: F.scaled_dot_product_attention(x, x, x, attn_mask=s.plane),
        "attention(-inf mask)": lambda s, x: F.scaled_dot_product_attention(x, x, x, attn_mask=s.causal),
        "attention(all masked)": lambda s, x: F.scaled_dot_product_attention(x, x, x, attn_mask=s.nothing),
        "attention(causal)": lambda s, x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3),
        "attention(grouped)": lambda s, x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True),
        "MultiheadAttention": lambda s, x: s.attention(x[0], x[0], x[0])[0],
        "MultiheadAttention weights": lambda s, x: s.attention(x[0], x[0], x[0])[1],
        "TransformerDecoderLayer": lambda s, x: s.decoder(x[0], x[0]),
        "LSTM": lambda s, x: s.lstm(x[0])[0],
        "GRU": lambda s, x: s.gru(x[0])[0],
        "RNN": lambda s, x: s.rnn(x[0])[0],
    },
    "axes and indices": {
        "negative axes": lambda s, x: x.narrow(-1, -3, 2).select(-3, -2).permute(0, -1, -2).transpose(-1, -2),
        "gather": lambda s, x: x.gather(3, (x * 2).long().abs() % 8) + x.gather(3, torch.full((1, 4, 8, 8), 3)),
        "index of two tensors": lambda s, x: x[:, [0, 1], :, [1, 2]],
        "index by rows and columns": lambda s, x: x[:, [0, 1]][:, :, [[1, 2], [3, 4]]],
        "index by a computed place": lambda s, x: x[:, torch.arange(4)[:, None], x[0].flatten(1).argmax(1)[:, None] % 8],
        "index_select": lambda s, x: x.index_select(1, s.order),
        "masks": lambda s, x: x * (x > 0.2) + x.masked_fill(x < -0.5, -1) + torch.where(x > 0, 1, 0),
        "flip, roll": lambda s, x: x.flip(1, -1) + x.roll((1, -2), (2, 3)),
        "cumsum, cumprod, cummax": lambda s, x: x.cumsum(-1) + x.cumprod(1) + x.cummax(-1)[0] + x.cummax(-1)[1],
        "logsumexp": lambda s, x: x.logcumsumexp(1) + x.logsumexp(1, keepdim=True),
        "sort": lambda s, x: x.sort(-1)[0] + x.sort(1, descending=True)[1] + x.argsort(2),
        "topk": lambda s, x: x.topk(2)[0] + x.topk(2, largest=False, dim=-1)[1] + x.topk(1, 1)[0][..., :2],
        "argmax, argmin": lambda s, x: x.argmax(1, keepdim=True) + x.argmin(-1, keepdim=True) + x.argmax(),
        "max, min": lambda s, x: x.max(1)[0] + x.min(1)[1] + x.max() + x.amax((2, 3))[:, :1, None],
        "median, kthvalue": lambda s, x: x.median(-1)[0] + x.kthvalue(2, -1)[0] + x.median(),
        "nanmedian": lambda s, x: x.log().nanmedian(-1)[0].nan_to_num(),
        "masked_scatter": lambda s, x: x.masked_scatter(x > 0, x.flip(1)),
        "scatter": lambda s, x: torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0),
        "scatter_add": lambda s, x: torch.zeros_like(x).scatter_add(1, (x * 3).long().abs() % 4, x),
        "scatter_reduce": lambda s, x: torch.zeros_like(x).scatter_reduce(3, (x * 3).long().abs() % 8, x, "amax")
        + x.scatter_reduce(1, (x > 0).long(), x, "mean", include_self=False),
        "assignment where a mask is set": lambda s, x: _put(_put(x, x > 0.5, 0.1), (0, 0, s.mask), -1.0),
        "index by a mask of the network's own": lambda s, x: x[..., s.row > 0].sum() + x[:, :, s.mask].sum(-1),
        "scatter to constant places": lambda s, x: x.scatter(1, torch.tensor([[[[1, 2], [0, 3]]]]), x * 2),
        "assignment": lambda s, x: _put(_put(x, (slice(None), [0, 2]), 1.5), (..., slice(1, 3)), x[..., 3:5] * 2),
        "index_add, index_copy, index_fill": lambda s, x: x.index_add(1, torch.tensor([0, 0]), x[:, :2])
        + x.index_fill(1, torch.tensor([0]), 2.0) + x.index_copy(1, torch.tensor([2]), x[:, :1]),
        "one_hot": lambda s, x: F.one_hot(x.argmax(1), 4),
        "tril, triu, diagonal": lambda s, x: x.tril() + x.triu(1) + x.diagonal(dim1=2, dim2=3)[..., None],
        "repeat, tile": lambda s, x: x.repeat(1, 2, 1, 1) + x.repeat_interleave(2, 1) + torch.cat([x, x], 1).tile(1),
        "bucketize, searchsorted": lambda s, x: torch.bucketize(x, torch.tensor([-1.0, 0, 1]))
        + torch.searchsorted(torch.tensor([-1.0, 0, 1]), x),
        "split, chunk, unbind": lambda s, x: x.split(3, -1)[2] + x.chunk(4, -1)[0] + torch.stack(x.unbind(1), 1)[..., :2],
        "arange, meshgrid": lambda s, x: x + torch.stack(
            torch.meshgrid(torch.arange(8.0), torch.linspace(0, 1, 8), indexing="ij")
        ).sum(0),
    },
    "arithmetic": {
        "integers": lambda s, x: (x * 10).int() // 3 + (x * 10).int() % 4 + (x * 10).long() / 4,
        "bits": lambda s, x: (((x * 100).int() >> 1) & 7 | 8) ^ ((x > 0).int() << 2),
        "booleans": lambda s, x: ((x > 0) & (x < 1) | ~(x > -1)) ^ (x > 0.5),
        "int8, uint8": lambda s, x: (x * 50).to(torch.int8) + (x.abs() * 50).to(torch.uint8),
        "remainders": lambda s, x: x // 0.3 + x % 0.7 + torch.fmod(x, 0.3) + torch.div(x, 0.3, rounding_mode="trunc"),
        "rounding": lambda s, x: (x * 2).round() / 2 + x.round(decimals=1) + x.floor() + x.ceil() + x.trunc() + x.sign(),
        "powers": lambda s, x: x.pow(2) + x**3 + x.abs() ** 0.7 + 2**x + x.abs().sqrt() + (x.abs() + 1) ** -1.5 + x**0,
        "trigonometry": lambda s, x: x.sin() + x.cos() + x.atan() + x.tanh().asin() + torch.atan2(x, x + 0.1) + x.sinh(),
        "logarithms": lambda s, x: x.abs().log() + x.abs().log1p() + x.abs().log2() + x.expm1() + x.erf(),
        "small log1p": lambda s, x: (x.abs() * 1e-5).log1p(),
        "small expm1": lambda s, x: (x * 1e-5).expm1(),
        "rarer": lambda s, x: torch.hypot(x, x) + torch.logaddexp(x, x) + torch.copysign(x, -x) + x.lerp(x * 2, 0.5),
        "fmax, fmin": lambda s, x: torch.fmax(x.log(), x) + torch.fmin(x.log(), x) + torch.signbit(x),
        "fake_quantize": lambda s, x: torch.fake_quantize_per_tensor_affine(x, 0.1, 3, 0, 15)
        + torch.fake_quantize_per_channel_affine(x, s.row[:4].abs(), torch.arange(4).int(), 1, -8, 7),
        "clamp": lambda s, x: x.clamp(min=x.mean()) + x.clamp(max=0.1) + torch.maximum(x, -x) + x.clip(-1, 1),
        "statistics": lambda s, x: x.std(1, keepdim=True) + x.var((2, 3), keepdim=True, unbiased=False) + x.norm(),
        "any, all": lambda s, x: x.any(1).int() + (x > 0).all().int() + (x > 3).any((2, 3), keepdim=True)[0].int(),
        "scalars": lambda s, x: x.mean() + x.sum(),
        "division by a plane": lambda s, x: x / (s.plane.abs() + 1) + s.plane / (x.abs() + 1),
        "not numbers": lambda s, x: F.max_pool2d(F.relu(x.log()), 2) + (x.log().amax((2, 3), keepdim=True) > 0),
        "infinities": lambda s, x: (x / 0).clamp(-1, 1) + (x / 0).isinf() + (x.log()).isnan(),
        "functions in double precision": lambda s, x: (x.double().exp() + x.double().tanh() + x.double().erf()).float()
        + F.silu(x.double()).softmax(-1).float(),
        "special functions": lambda s, x: x.erfc() + x.tanh().erfinv() + x.abs().lgamma() + torch.special.erfcx(x.abs())
        + x.abs().digamma(),
        "mode": lambda s, x: (x * 2).round().mode(-1)[0],
        "cov, corrcoef": lambda s, x: x[0, 0].cov() + torch.corrcoef(x[0, 1]),
        "dist, pairwise_distance": lambda s, x: torch.dist(x, x.flip(1)) + F.pairwise_distance(x[0, 0], x[0, 1]),
        "histc": lambda s, x: x.histc(6, -1, 2),
    },
    "systems of equations": {
        "inv, solve": lambda s, x: torch.linalg.inv(_gram(x).flip(0)) + torch.linalg.solve(_gram(x), x[0, 0, :3, 5:]),
        "cholesky, solve_triangular": lambda s, x: torch.cholesky_solve(x[0, 0, :3], torch.linalg.cholesky(_gram(x))),
        "det, slogdet": lambda s, x: torch.linalg.det(_gram(x)) / 100 + torch.logdet(_gram(x)),
        "qr of complex numbers": lambda s, x: _halves(torch.linalg.qr(_c(x)[0, 0, :4, :3])[1]),
    },
    "complex numbers": {
        "fft": lambda s, x: _halves(torch.fft.fft(_c(x), dim=1)),
        "fft2": lambda s, x: torch.fft.fft2(x).abs(),
        "rfft, irfft": lambda s, x: torch.fft.irfft(torch.fft.rfft(x, norm="ortho") * s.spectrum),
        "ifft, fftshift": lambda s, x: torch.fft.ifft(_c(x), dim=1).imag + torch.fft.fftshift(x),
        "products": lambda s, x: _halves(_c(x) * _c(x).conj() * (1 + 2j) / (_c(x) + 3)),
        "matmul": lambda s, x: (_c(x) @ s.turn).abs() + torch.einsum("bchw,hk->bckw", _c(x), s.turn).real,
        "polar, angle": lambda s, x: torch.polar(x.abs(), x).angle().cos() + _c(x).exp().real + (_c(x) ** 2).imag,
        "sums": lambda s, x: _halves(torch.cat([_c(x), _c(-x)], 1).sum(1).mean(-1)),
        "complex buffer, real result": lambda s, x: x * s.turn.abs() + _halves(x * s.turn).sum(-1),
        "complex linear": lambda s, x: _halves(s.complex_dense(_c(x))),
        "assignment to a part": lambda s, x: _halves(_assigned(_c(x))),
        "functions": lambda s, x: _halves(_c(x).sqrt() + _c(x).log() + _c(x).tanh() + _c(x).sin() * _c(x).cumsum(1)),
        "norm, prod": lambda s, x: torch.linalg.vector_norm(_c(x), dim=1) + _c(x)[:, :3].prod(1).abs(),
    },
}  # fmt: skip


class Theme(nn.Module):
    """All functions of one theme, as float32."""

    def __init__(self, functions: dict[str, Function]) -> None:
        super().__init__()
        self.parts = Parts()
        self.functions = functions

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(self.parts, x).float() for function in self.functions.values())


def network(theme: str, only: str | None = None) -> tuple[nn.Module, Tensor]:
    """A theme, or one function of it, and its input."""
    functions = THEMES[theme] if only is None else {only: THEMES[theme][only]}
    return Theme(functions).eval(), _random(1, 4, 8, 8, seed=1)
