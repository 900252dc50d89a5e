# ruff: noqa: E501
"""More networks of the kinds people write, as repositories on CSI feedback, detection and channel estimation have them.

They join those of `tests.lower.idioms`: ``python -m tests.lower.idioms`` builds all.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from tests.lower.idioms import NETWORKS, add, conv, dense, image, made, network, quiet, some

__all__ = ["made"]

_BEFORE = set(NETWORKS)
# These were refused without need once, or wrong.
MENDED = {
    "interpolate_nearest_3_None", "nearest_scale_that_changes_nothing", "bilinear_scale_that_changes_nothing",
    "linear_scale_that_changes_nothing", "interpolate_bilinear_3_None", "mmse_detector", "triangular_solve_upper",
    "complex_inner", "complex_in_double", "correlation", "Prints", "fused_products", "distances", "all_pairs",
    "mode_of_values", "batched_by_vmap", "dataclass_out", "numbers_out", "subtracts_in_place", "bools_compared",
    "adaptive_pool_places", "unpooled_lines_and_volumes", "pairs_of_rows", "integers_scattered", "sums_of_exponents",
    "whole_logarithms", "half_statistics", "norms_in_double", "complex_statistics", "complex_powers", "complex_functions",
}  # fmt: skip
RAISES_FOR_NAN = {"cholesky", "complex_cholesky", "cholesky_solve", "sparsemax"}
HALF_A_NUMBER = {"complex_masked", "complex_powers", "complex_functions"}
"""A real number times a complex one whose one part is NaN: PyTorch makes NaN of both parts."""

_TOKENS = image(1, 8, 16)
_WIDE = image(1, 8, 8, 8)


def _complex(x: Tensor) -> Tensor:
    """[N, 2, H, W] as complex [N, H, W]."""
    return torch.complex(x[:, 0], x[:, 1])


def _halves(z: Tensor) -> Tensor:
    return torch.view_as_real(z)


# ---- resampling ------------------------------------------------------------------------------------------------------

for _n, (_mode, _options) in enumerate({
    "nearest": {"scale_factor": (1.3, 2.0)}, "nearest-exact": {"scale_factor": (1.3, 2.3)},
    "bilinear": {"scale_factor": (1.2, 0.7)}, "bicubic": {"scale_factor": (0.8, 1.1)},
    "area": {"scale_factor": (0.4, 0.9)},
}.items()):  # fmt: skip
    for _rows in (3, 8):
        for _again in (None, True):
            add(
                f"interpolate_{_mode}_{_rows}_{_again}",
                lambda s, x, mode=_mode, options=_options, rows=_rows, again=_again: F.interpolate(
                    torch.cat([x[:, :1], x], 1)[:, :, :rows, :rows], mode=mode, recompute_scale_factor=again, **options
                ),
            )  # fmt: skip
add(
    "nearest_scale_that_changes_nothing",
    lambda s, x: F.interpolate(x[:, :, :3], scale_factor=1.3, mode="nearest"),
)
add(
    "bilinear_scale_that_changes_nothing",
    lambda s, x: F.interpolate(x[:, :, :3, :3], scale_factor=1.2, mode="bilinear"),
)
add(
    "linear_scale_that_changes_nothing",
    lambda s, x: F.interpolate(x[0, :, :3], scale_factor=1.1, mode="linear"),
)
add("nearest_of_one_channel", lambda s, x: F.interpolate(x[:, :1, :2, :3], scale_factor=(2.4, 1.3)))
add("nearest_3d", lambda s, x: F.interpolate(x[:, None], scale_factor=(1.5, 1.3, 2.0)))
add(
    "trilinear_down",
    lambda s, x: F.interpolate(x[:, None], size=(2, 5, 3), mode="trilinear", align_corners=True),
)
add("bilinear_to_one", lambda s, x: F.interpolate(x, size=(1, 1), mode="bilinear", align_corners=True))
add(
    "antialiased_bicubic_scale",
    lambda s, x: F.interpolate(x, scale_factor=0.7, mode="bicubic", antialias=True),
)
add("upsampling_module", lambda s, x: s.u(x), u=lambda: nn.UpsamplingBilinear2d(scale_factor=2))
add("upsampling_to_a_size", lambda s, x: s.u(x), u=lambda: nn.UpsamplingNearest2d(size=(12, 20)))
add(
    "pyramid",
    lambda s, x: sum(
        F.interpolate(s.c(F.avg_pool2d(x, k)), size=x.shape[-2:], mode="bilinear", align_corners=True)
        for k in (2, 4)
    ),
    c=conv(2, 2, 1),
)
add(
    "odd_skip",
    lambda s, x: (
        lambda up: torch.cat([x, F.pad(up, [0, x.size(3) - up.size(3), 0, x.size(2) - up.size(2)])], 1)
    )(F.interpolate(F.max_pool2d(x, 3), scale_factor=2, mode="bilinear", align_corners=True)),
)

# ---- attention over images -------------------------------------------------------------------------------------------

add(
    "eca",
    lambda s, x: (
        x
        * s.c(x.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2))
        .transpose(-1, -2)[..., None]
        .sigmoid()
    ),
    _WIDE,
    c=lambda: nn.Conv1d(1, 1, 3, padding=1, bias=False),
)
add("simam", lambda s, x: (lambda d: x * (d / (4 * (d.sum((2, 3), keepdim=True) / 63 + 1e-4)) + 0.5).sigmoid())(
    (x - x.mean((2, 3), keepdim=True)).pow(2)
))  # fmt: skip
add(
    "non_local",
    lambda s, x: (
        lambda t, p, g: x + s.w((torch.matmul(t.permute(0, 2, 1), p).softmax(-1) @ g.permute(0, 2, 1)).permute(0, 2, 1)
                                .contiguous().view(x.size(0), 4, *x.size()[2:]))
    )(*(layer(x).view(x.size(0), 4, -1) for layer in (s.t, s.p, s.g))),
    _WIDE, t=conv(8, 4, 1), p=conv(8, 4, 1), g=conv(8, 4, 1), w=conv(4, 8, 1),
)  # fmt: skip
add(
    "global_context",
    lambda s, x: x + s.t(torch.matmul(x.flatten(2).unsqueeze(1), s.m(x).flatten(2).softmax(2).unsqueeze(-1)).view(1, 8, 1, 1)),
    _WIDE, m=conv(8, 1, 1), t=lambda: nn.Sequential(nn.Conv2d(8, 2, 1), nn.LayerNorm([2, 1, 1]), nn.ReLU(), nn.Conv2d(2, 8, 1)),
)  # fmt: skip
add(
    "axial",
    lambda s, x: (lambda r: r + s.b(*[r.permute(0, 2, 1, 3).reshape(8, 8, 8)] * 3)[0].reshape(1, 8, 8, 8).permute(0, 2, 1, 3))(
        s.a(*[x.permute(0, 2, 3, 1).reshape(8, 8, 8)] * 3)[0].reshape(1, 8, 8, 8)
    ),
    _WIDE, a=lambda: nn.MultiheadAttention(8, 2, batch_first=True), b=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
)  # fmt: skip
add(
    "transposed_attention",
    lambda s, x: (lambda q, k, v: s.o(((F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * s.heat)
                                      .softmax(-1).matmul(v).view(1, 8, 8, 8)))(
        *(t.reshape(1, 2, 4, 64) for t in s.d(s.qkv(x)).chunk(3, 1))
    ),
    _WIDE, qkv=conv(8, 24, 1), d=conv(24, 24, 3, padding=1, groups=24), o=conv(8, 8, 1), heat=lambda: torch.ones(2, 1, 1),
)  # fmt: skip


@network(_WIDE)
class ShiftedWindows(nn.Module):
    """Swin's block: windows rolled, masked where they meet the other side, unrolled again."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        regions = torch.zeros(1, 8, 8, 1)
        count = 0
        for h in (slice(0, -4), slice(-4, -2), slice(-2, None)):
            for w in (slice(0, -4), slice(-4, -2), slice(-2, None)):
                regions[:, h, w, :] = count
                count += 1
        windows = self.split(regions).view(-1, 16)
        mask = windows.unsqueeze(1) - windows.unsqueeze(2)
        self.register_buffer("mask", mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0))

    @staticmethod
    def split(x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        return x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, c)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = torch.roll(self.norm(x.permute(0, 2, 3, 1)), shifts=(-2, -2), dims=(1, 2))
        q, k, v = self.qkv(self.split(y)).reshape(-1, 16, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        attention = (q * (c // 2) ** -0.5) @ k.transpose(-2, -1)
        count = self.mask.shape[0]
        attention = attention.view(b, count, 2, 16, 16) + self.mask.unsqueeze(1).unsqueeze(0)
        attention = attention.view(-1, 2, 16, 16).softmax(dim=-1)
        y = self.proj((attention @ v).transpose(1, 2).reshape(-1, 16, c))
        y = y.view(b, h // 4, w // 4, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)
        return x + torch.roll(y, shifts=(2, 2), dims=(1, 2)).permute(0, 3, 1, 2)


add("selective_kernel", lambda s, x: (lambda u, a: (u * a.view(1, 2, 8, 1, 1)).sum(1))(
    (u := torch.stack([s.a(x), s.b(x)], dim=1)),
    s.f(u.sum(1).mean(-1).mean(-1)).view(1, 2, 8).softmax(1),
), _WIDE, a=conv(8, 8, 3, padding=1), b=conv(8, 8, 3, padding=2, dilation=2), f=dense(8, 16))  # fmt: skip
add("triplet_gate", lambda s, x: (lambda p: x * s.c(torch.cat((p.max(1)[0].unsqueeze(1), p.mean(1).unsqueeze(1)), 1))
    .sigmoid().permute(0, 2, 1, 3))(x.permute(0, 2, 1, 3).contiguous()), _WIDE, c=conv(2, 1, 7, padding=3, bias=False))  # fmt: skip
add(
    "attention_pooling",
    lambda s, x: torch.einsum("nt,ntd->nd", s.f(x).squeeze(-1).softmax(-1), x),
    _TOKENS,
    f=dense(16, 1),
)
add("additive_attention", lambda s, x: (s.v(torch.tanh(s.q(x[:, -1:]) + s.k(x))).softmax(1) * x).sum(1), _TOKENS,
    q=dense(16, 8), k=dense(16, 8), v=dense(8, 1, bias=False))  # fmt: skip
add("performer", lambda s, x: (lambda q, k: torch.einsum("bne,bed->bnd", q, torch.einsum("bne,bnd->bed", k, x))
    / torch.einsum("bne,be->bn", q, k.sum(1)).unsqueeze(-1))(
        *(torch.exp(y @ s.p - y.square().sum(-1, keepdim=True) / 2) for y in (x * 0.3, x * 0.2))
    ), _TOKENS, p=lambda: (some(16, 12),))  # fmt: skip
add("causal_linear_attention", lambda s, x: (lambda k: torch.einsum("bte,btef->btf", k, torch.einsum("bte,btf->btef", k, x)
    .cumsum(1)) / (k * k.cumsum(1)).sum(-1, keepdim=True))(F.elu(x) + 1), _TOKENS)  # fmt: skip
add(
    "linformer",
    lambda s, x: F.scaled_dot_product_attention(x, s.e @ x, s.e @ x),
    _TOKENS,
    e=lambda: some(4, 8),
)
add("alibi", lambda s, x: ((x @ x.mT) / 4 - s.slope * (torch.arange(8)[None] - torch.arange(8)[:, None]).abs()).softmax(-1) @ x,
    _TOKENS, slope=lambda: torch.tensor(0.5))  # fmt: skip
add("rotary_by_complex_numbers", lambda s, x: torch.view_as_real(
    torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2)) * s.turns).flatten(2).type_as(x), _TOKENS,
    turns=lambda: (torch.polar(torch.ones(8, 8), torch.outer(torch.arange(8.0), 100 ** (-torch.arange(8) / 8.0))),))  # fmt: skip
add("grouped_queries", lambda s, x: F.scaled_dot_product_attention(*(
    t.view(1, 8, -1, 4).transpose(1, 2) for t in (s.q(x), s.k(x).repeat_interleave(2, 2), s.k(x).repeat_interleave(2, 2))
)).transpose(1, 2).flatten(2), _TOKENS, q=dense(16, 16), k=dense(16, 8))  # fmt: skip
add("gated_unit", lambda s, x: (lambda u, v: u * (s.w @ s.n(v) + 1))(*F.gelu(s.f(x)).chunk(2, dim=-1)), _TOKENS,
    f=dense(16, 24), n=lambda: nn.LayerNorm(12), w=lambda: some(8, 8) * 0.1)  # fmt: skip
add(
    "swiglu",
    lambda s, x: s.c(F.silu(s.a(x)) * s.b(x)),
    _TOKENS,
    a=dense(16, 24),
    b=dense(16, 24),
    c=dense(24, 16, bias=False),
)
add(
    "token_shift",
    lambda s, x: s.f(x * s.m + F.pad(x, (0, 0, 1, -1)) * (1 - s.m)),
    _TOKENS,
    f=dense(16, 8),
    m=lambda: some(16),
)
add(
    "fourier_mixing",
    lambda s, x: s.n(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real),
    _TOKENS,
    n=lambda: nn.LayerNorm(16),
)
add("long_convolution", lambda s, x: torch.fft.irfft(torch.fft.rfft(x, n=16, dim=1) * torch.fft.rfft(s.k, n=16, dim=0),
    n=16, dim=1)[:, :8] + x * s.d, _TOKENS, k=lambda: some(8, 16), d=lambda: some(16))  # fmt: skip
add("positions_in_forward", lambda s, x: x + _positions(x.size(1), x.size(2), x.device), _TOKENS)
add(
    "learned_positions",
    lambda s, x: x + s.e(torch.arange(x.shape[1], device=x.device))[None],
    _TOKENS,
    e=lambda: nn.Embedding(8, 16),
)
add(
    "unbatched_attention",
    lambda s, x: s.a(x[0], x[0], x[0])[0],
    _TOKENS,
    a=lambda: nn.MultiheadAttention(16, 2),
)
add("attention_function", lambda s, x: F.multi_head_attention_forward(
    x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1), 16, 2, s.a.in_proj_weight, s.a.in_proj_bias, None, None, False,
    0.0, s.a.out_proj.weight, s.a.out_proj.bias, training=False)[0], _TOKENS, a=lambda: nn.MultiheadAttention(16, 2))  # fmt: skip
add("constant_padding_mask", lambda s, x: s.t(x, src_key_padding_mask=s.m), _TOKENS,
    t=lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), m=lambda: (torch.arange(8)[None] > 5,))  # fmt: skip


def _positions(length: int, width: int, device: Any) -> Tensor:
    table = torch.zeros(length, width, device=device)
    position = torch.arange(0, length, dtype=torch.float, device=device).unsqueeze(1)
    turn = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10000.0) / width)).to(device)
    table[:, 0::2] = torch.sin(position * turn)
    table[:, 1::2] = torch.cos(position * turn)
    return table.unsqueeze(0)


# ---- recurrence ------------------------------------------------------------------------------------------------------


@network(image(1, 4, 2, 8, 8))
class ConvLSTMCells(nn.Module):
    """Two layers of cells with peepholes and a state that starts as zeros on the input's device."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.Conv2d(2 + 3, 12, 3, padding=1), nn.Conv2d(3 + 3, 12, 3, padding=1)])
        self.peep = nn.Parameter(some(3, 3, 8, 8) * 0.1)
        self.out = nn.Conv2d(3, 2, 1)

    def start(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        weight = self.out.weight
        return torch.zeros(batch, 3, 8, 8, device=device), weight.new_zeros((batch, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        states = [self.start(x.size(0), x.device) for _ in self.cells]
        frames = []
        for frame in torch.unbind(x, dim=1):
            y = frame
            for n, (cell, (h, c)) in enumerate(zip(self.cells, states, strict=True)):
                i, f, g, o = torch.split(cell(torch.cat((y, h), dim=1)), 3, dim=1)
                i, f = torch.sigmoid(i + self.peep[0] * c), torch.sigmoid(f + self.peep[1] * c)
                c = f * c + i * g.tanh()
                h = torch.sigmoid(o + self.peep[2] * c) * c.tanh()
                states[n], y = (h, c), h
            frames.append(frame + self.out(y))
        return torch.stack(frames, dim=1)


add("lstm_codec", lambda s, x: s.o(s.d(s.e(x)[1][0].transpose(0, 1).repeat(1, 8, 1))[0]), _TOKENS,
    e=lambda: nn.LSTM(16, 6, batch_first=True), d=lambda: nn.LSTM(6, 8, batch_first=True), o=dense(8, 16))  # fmt: skip
add(
    "gru_step_by_step",
    lambda s, x: _stepped(s, x),
    _TOKENS,
    g=lambda: nn.GRUCell(16, 16),
    h0=lambda: some(1, 16),
)
add("lstm_of_one_sample", lambda s, x: s.r(x[0])[0], _TOKENS, r=lambda: nn.LSTM(16, 5))
add("lstm_both_ends", lambda s, x: (lambda h: torch.cat((h[-2], h[-1]), dim=1))(s.r(x)[1][0]), _TOKENS,
    r=lambda: nn.LSTM(16, 5, 2, batch_first=True, bidirectional=True, dropout=0.2))  # fmt: skip
add("gru_started_by_a_layer", lambda s, x: s.r(x, s.f(x.mean(1)).tanh().view(1, 2, 5).transpose(0, 1).contiguous())[0], _TOKENS,
    f=dense(16, 10), r=lambda: nn.GRU(16, 5, 2, batch_first=True))  # fmt: skip
add(
    "lstm_with_flattened_weights",
    lambda s, x: (s.r.flatten_parameters(), s.r(x)[0])[1],
    _TOKENS,
    r=lambda: nn.LSTM(16, 5),
)
add("packed", lambda s, x: nn.utils.rnn.pad_packed_sequence(s.r(nn.utils.rnn.pack_padded_sequence(
    x, torch.tensor([8]), batch_first=True))[0], batch_first=True)[0], _TOKENS, r=lambda: nn.LSTM(16, 5, batch_first=True),
    refused="pack_padded_sequence")  # fmt: skip


def _stepped(s: Any, x: Tensor) -> Tensor:
    h, out = s.h0.expand(x.size(0), -1), []
    for t in reversed(range(x.size(1))):
        h = s.g(x[:, t, :], h)
        out.insert(0, h)
    return torch.stack(out).transpose(0, 1)


# ---- complex numbers, angles and delays ------------------------------------------------------------------------------

add("to_delays_and_back", lambda s, x: (lambda h: _halves(torch.fft.fft2(F.pad(torch.fft.ifft2(h, norm="ortho")[:, :5],
    (0, 0, 0, 3)), norm="ortho")))(_complex(x)))  # fmt: skip
add(
    "angles_by_numpys_matrix",
    lambda s, x: _halves(torch.from_numpy(_DFT) @ _complex(x) @ torch.as_tensor(_DFT.conj().T)),
)
add("angles_by_j", lambda s, x: _halves(_complex(x) * torch.exp(1j * 2 * np.pi * torch.arange(8) / 8)))
add("complex_empty_filled", lambda s, x: _filled(x))
add("complex_parts_set", lambda s, x: _parts_set(x))
add("complex_layer", lambda s, x: (lambda r, i: torch.complex(s.r(r) - s.i(i), s.r(i) + s.i(r)).abs())(x[:, 0], x[:, 1]),
    r=dense(8, 5), i=dense(8, 5))  # fmt: skip
add("complex_batch_norm", lambda s, x: _whitened(_complex(x)))
add(
    "complex_normalised",
    lambda s, x: (lambda h: _halves(h / torch.linalg.norm(h, dim=(-2, -1), keepdim=True)))(_complex(x)),
)
add("complex_norm", lambda s, x: _complex(x).norm(dim=-1) + torch.norm(_complex(x)))
add(
    "complex_mean_and_power",
    lambda s, x: (lambda h: (h - h.mean(1, keepdim=True)).abs().pow(2).mean((1, 2)))(_complex(x)),
)
add("complex_gather", lambda s, x: (lambda h: _halves(h.gather(-1, h.abs().topk(3, -1)[1])))(_complex(x)))
add(
    "complex_where",
    lambda s, x: (lambda h: _halves(torch.where(h.abs() > 0.7, h, torch.zeros_like(h))))(_complex(x)),
)
add("complex_masked", lambda s, x: (lambda h: _halves(h * (h.abs() > 0.7)))(_complex(x)))
add(
    "complex_stack",
    lambda s, x: (lambda h: _halves(torch.stack([h, h.conj(), 1j * h], 1).flatten(1, 2)))(_complex(x)),
)
add(
    "complex_softmax",
    lambda s, x: (lambda h: _halves(h.abs().softmax(-1) * torch.exp(1j * h.angle())))(_complex(x)),
)
add("complex_transposed_view", lambda s, x: torch.view_as_real(torch.view_as_complex(
    x.reshape(1, 2, -1).transpose(1, 2).contiguous()).reshape(1, 8, 8).mT.contiguous()))  # fmt: skip
add(
    "complex_outer",
    lambda s, x: (lambda h: _halves(torch.einsum("bi,bj->bij", h[:, 0], h[:, 1].conj())))(_complex(x)),
)
add(
    "complex_inner",
    lambda s, x: (lambda h: _halves(torch.vdot(h[0, 0], h[0, 1]) + torch.inner(h[0, 2], h[0, 3])))(
        _complex(x)
    ),
)
add(
    "complex_kronecker",
    lambda s, x: (lambda h: _halves(torch.kron(h[0, :2, :2], h[0, :3, :3].conj())))(_complex(x)),
)
add(
    "complex_in_double", lambda s, x: _halves(torch.fft.ifft(_complex(x).to(torch.complex128), dim=1)).float()
)
add("complex_from_parts", lambda s, x: (lambda h: torch.cat([h.real, h.imag], 1))((x[:, 0] + 1j * x[:, 1]) @ s.w),
    w=lambda: (some(8, 4, dtype=torch.complex64),))  # fmt: skip
add("complex_scaled", lambda s, x: _halves(_complex(x) * (0.5 + 0.5j) - 2j + s.a * 1j), a=lambda: some(8))
add("complex_comparison", lambda s, x: (_complex(x).abs() > 0.5) & torch.isreal(_complex(x) * 0))
add(
    "fft_shifted_matrix",
    lambda s, x: torch.fft.ifftshift(torch.fft.fft(torch.fft.fftshift(_complex(x), dim=-1)), dim=-1).abs(),
)
add(
    "fft_n_and_frequencies",
    lambda s, x: torch.fft.rfftn(x, s=(6, 10), dim=(-2, -1)).abs() * torch.fft.rfftfreq(10),
)
add("short_time_spectrum", lambda s, x: torch.stft(x.flatten(1), 16, 8, window=s.w, return_complex=True).abs(),
    w=lambda: (torch.hann_window(16),))  # fmt: skip
add("short_time_and_back", lambda s, x: torch.istft(
    torch.stft(x.flatten(1), 16, 4, window=s.w, return_complex=True), 16, 4, window=s.w, length=128),
    w=lambda: (torch.hann_window(16),))  # fmt: skip
add("hilbert", lambda s, x: torch.fft.ifft(torch.fft.fft(x, dim=-1) * s.h, dim=-1).abs(),
    h=lambda: (torch.tensor([1.0, 2, 2, 2, 1, 0, 0, 0]),))  # fmt: skip
add("cosine_transform", lambda s, x: torch.fft.fft(torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1), dim=-1)
    .mul(2 * torch.exp(-1j * np.pi * torch.arange(8) / 16)).real)  # fmt: skip
add(
    "phases_only",
    lambda s, x: torch.stack([s.p.cos(), s.p.sin()]) @ x[:, 0].mT / math.sqrt(8),
    p=lambda: some(3, 8),
)
add("covariance", lambda s, x: (lambda h: _halves(h @ h.conj().transpose(-2, -1) / h.shape[-1]))(_complex(x)))
add("eigenvector_by_power", lambda s, x: _dominant(_complex(x)))
add("circulant", lambda s, x: x @ s.c[(torch.arange(8)[:, None] - torch.arange(8)) % 8], c=lambda: some(8))
add(
    "toeplitz_of_the_input",
    lambda s, x: x[0, 0, 0][(torch.arange(8)[:, None] - torch.arange(8)).abs()] @ x[0, 1],
)
add("array_response", lambda s, x: (lambda a: torch.cat([a.cos(), a.sin()], -1) / 8**0.5)(
    torch.pi * torch.arange(8) * torch.sin(s.f(x.flatten(1)).tanh() * torch.pi / 2).unsqueeze(-1)), f=dense(128, 3))  # fmt: skip

_DFT = np.exp(-2j * np.pi * np.outer(np.arange(8), np.arange(8)) / 8).astype(np.complex64) / np.complex64(
    8**0.5
)


def _filled(x: Tensor) -> Tensor:
    z = torch.empty(x.shape[0], 8, 4, dtype=torch.cfloat, device=x.device)
    z[:, :, ::2] = torch.complex(x[:, 0, :, :2], x[:, 1, :, :2])
    z[:, :, 1::2] = x[:, 0, :, 2:4].to(torch.complex64)
    return _halves(z)


def _parts_set(x: Tensor) -> Tensor:
    z = torch.zeros(1, 8, 8, dtype=torch.complex64)
    z.real = x[:, 0]
    z.imag = x[:, 1]
    return _halves(z * 1j)


def _whitened(z: Tensor) -> Tensor:
    z = z - z.mean((1, 2), keepdim=True)
    a, d = z.real.square().mean() + 1e-4, z.imag.square().mean() + 1e-4
    b = (z.real * z.imag).mean()
    s = (a * d - b * b).sqrt()
    t = (a + d + 2 * s).sqrt()
    return torch.stack(
        [((d + s) * z.real - b * z.imag) / (s * t), ((a + s) * z.imag - b * z.real) / (s * t)], 1
    )


def _dominant(h: Tensor) -> Tensor:
    r = h.mH @ h
    v = torch.ones(1, 8, 1, dtype=h.dtype) / 8**0.5
    for _ in range(4):
        v = r @ v
        v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True)
    return _halves(v * torch.exp(-1j * v[:, :1].angle()))


add(
    "complex_statistics",
    lambda s, x: (lambda h: (h.var(-1), h.std((1, 2)), torch.var_mean(h, 1)[0], h.var(unbiased=False)))(
        _complex(x)
    ),
)
add(
    "complex_powers",
    lambda s, x: (
        lambda h: _halves((h + 0.3) ** 0.5 + (h + 1) ** -2 + h**0 + (h + 1) ** h + 2**h + 1j ** x[:, 0])
    )(_complex(x)),
)
add("complex_functions", lambda s, x: (lambda h: _halves(h.log2() + h.log10() + h.log1p() + h.sinh() + h.cosh() + h.expm1() + h.sigmoid()
    + (h + 1).rsqrt() + F.silu(h) + h.cumprod(1)))(_complex(x)))  # fmt: skip

# ---- solving ---------------------------------------------------------------------------------------------------------

_SMALL = image(1, 2, 6, 4)


def _gram(x: Tensor) -> Tensor:
    """Of a real channel [N, 6, 4]: well conditioned."""
    return x[:, 0].mT @ x[:, 0] + 0.5 * torch.eye(4)


def _complex_gram(x: Tensor) -> Tensor:
    h = _complex(x)
    return h.mH @ h + 0.5 * torch.eye(4)


add("inverse", lambda s, x: torch.linalg.inv(_gram(x)), _SMALL)
add("old_inverse", lambda s, x: torch.inverse(_gram(x)) @ x[:, 1].mT, _SMALL)
add("solve", lambda s, x: torch.linalg.solve(_gram(x), x[:, 1].mT), _SMALL)
add("solve_for_a_vector", lambda s, x: torch.linalg.solve(_gram(x), x[:, 0, 0]), _SMALL)
add(
    "inverse_that_needs_pivots",
    lambda s, x: torch.linalg.inv(x[:, 0, :4].flip(1) - 0.5 + 2 * torch.eye(4).flip(0)),
    _SMALL,
)
add("zero_forcing", lambda s, x: (lambda h: _halves(torch.linalg.inv(h.mH @ h) @ h.mH))(_complex(x)), _SMALL)
add(
    "mmse_detector",
    lambda s, x: (lambda h: _halves(torch.linalg.solve(_complex_gram(x), h.mH)))(_complex(x)),
    _SMALL,
)
add("pseudo_inverse", lambda s, x: torch.linalg.pinv(x[:, 0]), _SMALL, refused="pinv")
add("cholesky", lambda s, x: torch.linalg.cholesky(_gram(x)), _SMALL)
add("complex_cholesky", lambda s, x: _halves(torch.linalg.cholesky(_complex_gram(x))), _SMALL)
add("cholesky_solve", lambda s, x: torch.cholesky_solve(x[:, 1].mT, torch.linalg.cholesky(_gram(x))), _SMALL)
add(
    "triangular_solve",
    lambda s, x: torch.linalg.solve_triangular(_gram(x).tril(), x[:, 1].mT, upper=False),
    _SMALL,
)
add(
    "triangular_solve_upper",
    lambda s, x: torch.linalg.solve_triangular(_gram(x).triu(), x[:, 1], upper=True, left=False),
    _SMALL,
)
add("determinant", lambda s, x: torch.linalg.det(_gram(x)), _SMALL)
add("capacity", lambda s, x: torch.logdet(_gram(x)) + torch.slogdet(_gram(x))[1], _SMALL)
add("complex_determinant", lambda s, x: torch.linalg.det(_complex_gram(x)).abs().log2(), _SMALL)
add("inverse_of_a_large_matrix", lambda s, x: torch.linalg.inv(x[:, 0] @ x[:, 0].mT + torch.eye(96)), image(1, 1, 96, 96),
    refused="inv")  # fmt: skip
add("eigenvalues", lambda s, x: torch.linalg.eigh(_gram(x))[0], _SMALL, refused="eigh")
add("orthogonal_triangular", lambda s, x: torch.linalg.qr(x[:, 0]), _SMALL)
add("wide_triangular", lambda s, x: torch.linalg.qr(x[:, 0].mT), _SMALL)
add(
    "complex_triangular",
    lambda s, x: (lambda q, r: (_halves(q), _halves(r)))(*torch.linalg.qr(_complex(x))),
    _SMALL,
)
add("newton_schulz", lambda s, x: _newton(_gram(x)), _SMALL)
add("chained_products", lambda s, x: torch.linalg.multi_dot([x[0, 0], x[0, 1].T, x[0, 0]]) + torch.chain_matmul(x[0, 0], x[0, 1].T, x[0, 0]),
    _SMALL)  # fmt: skip
add("matrix_norms", lambda s, x: torch.linalg.matrix_norm(x) + torch.norm(x, p=1, dim=(2, 3)) + torch.linalg.norm(x, ord=1, dim=(2, 3)),
    _SMALL)  # fmt: skip
add("conjugate_gradients", lambda s, x: _conjugate(_gram(x), x[:, 1, :4, :1]), _SMALL)


def _newton(a: Tensor) -> Tensor:
    y = a.mT / (a.abs().sum(-1).amax(-1) * a.abs().sum(-2).amax(-1))[:, None, None]
    for _ in range(4):
        y = y @ (2 * torch.eye(4) - a @ y)
    return y


def _conjugate(a: Tensor, b: Tensor) -> Tensor:
    y = torch.zeros_like(b)
    r = p = b
    for _ in range(3):
        ap = a @ p
        step = (r * r).sum((1, 2), keepdim=True) / (p * ap).sum((1, 2), keepdim=True)
        y, left = y + step * p, r - step * ap
        p = left + (left * left).sum((1, 2), keepdim=True) / (r * r).sum((1, 2), keepdim=True) * p
        r = left
    return y


# ---- quantisers ------------------------------------------------------------------------------------------------------


class _ToBits(torch.autograd.Function):
    """Numbers in [0, 1] as bits, the most significant first; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.constant = bits
        number = torch.round(x * 2**bits - 0.5).type(torch.uint8)
        exponents = -torch.arange(-(bits * 2 - 1), 1).type(number.type())
        exponents = exponents.repeat((*number.shape, 1))
        out = number.unsqueeze(-1) // 2**exponents
        return ((out - (out % 1)) % 2)[:, :, bits:].reshape(-1, number.shape[1] * bits).type(torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        return gradient[0], None


def _of_bits(bits: Tensor, count: int) -> Tensor:
    groups = torch.reshape(bits.type(torch.float32), [-1, int(bits.shape[1] / count), count])
    number = torch.zeros(groups[:, :, 1].shape).to(bits.device)
    for i in range(count):
        number = number + groups[:, :, i] * 2 ** (count - 1 - i)
    return (number + 0.5) / 2**count


add("bits_and_back", lambda s, x: s.g(_of_bits(_ToBits.apply(s.f(x.flatten(1)).sigmoid(), 4), 4)).view_as(x),
    f=dense(128, 6), g=dense(6, 128))  # fmt: skip
add("bits_by_loop", lambda s, x: _bits_by_loop(s.f(x.flatten(1)).sigmoid()), f=dense(128, 6))
add("gray_code", lambda s, x: (lambda n: (((n ^ (n >> 1))[..., None] & (1 << torch.arange(3))) != 0).float())(
    (x.clamp(0, 0.99) * 8).to(torch.int64)))  # fmt: skip
add("mu_law", lambda s, x: (lambda y: torch.sign(y) * ((1 + 255) ** y.abs() - 1) / 255)(
    torch.round(x.sign() * torch.log1p(255 * x.abs()) / math.log1p(255) * 7) / 7))  # fmt: skip
add("soft_to_hard", lambda s, x: (lambda d: (torch.softmax(-50 * d, -1) * s.c).sum(-1))((x.unsqueeze(-1) - s.c).abs()),
    c=lambda: torch.linspace(-1, 2, 8))  # fmt: skip
add("finite_scalars", lambda s, x: (lambda z: z + (z.round() - z).detach())(
    torch.tanh(s.f(x.flatten(1))) * (s.levels - 1) / 2), f=dense(128, 4), levels=lambda: (torch.tensor([8, 5, 5, 5]),))  # fmt: skip
add(
    "lookup_free",
    lambda s, x: (lambda z: ((z > 0).long() * 2 ** torch.arange(6)).sum(-1))(s.f(x.flatten(1))),
    f=dense(128, 6),
)
add(
    "binary_sphere",
    lambda s, x: (lambda u: torch.where(u > 0, 1.0, -1.0) * 6**-0.5)(F.normalize(s.f(x.flatten(1)))),
    f=dense(128, 6),
)
add(
    "hard_tanh_binary",
    lambda s, x: s.g(torch.sign(F.hardtanh(s.f(x.flatten(1))))),
    f=dense(128, 8),
    g=dense(8, 128),
)
add(
    "bernoulli_in_training",
    lambda s, x: torch.bernoulli(x.sigmoid()) if s.training else (x.sigmoid() > 0.5).float(),
)
add("gumbel_in_training", lambda s, x: F.gumbel_softmax(x.flatten(1), hard=True) if s.training
    else F.one_hot(x.flatten(1).argmax(-1), 128).float())  # fmt: skip
add("binarised_layer", lambda s, x: F.linear((x.flatten(1) - 0.5).sign(), s.w.sign() * s.w.abs().mean(1, keepdim=True), s.b),
    w=lambda: some(8, 128), b=lambda: some(8))  # fmt: skip
add("xnor_convolution", lambda s, x: F.conv2d(torch.sign(x - 0.5), torch.sign(s.c.weight) * s.c.weight.abs().mean((1, 2, 3), True))
    * x.abs().mean(1, keepdim=True)[..., 1:-1, 1:-1], c=conv(2, 4, 3))  # fmt: skip
add("levels_of_powers", lambda s, x: F.linear(x.flatten(1), s.w.sign() * 2 ** s.w.abs().clamp(min=1e-3).log2().round().clamp(-6, 0)),
    w=lambda: some(8, 128) * 0.3)  # fmt: skip
add(
    "learned_step",
    lambda s, x: torch.clamp(torch.round(x / s.step.abs()), -8, 7) * s.step.abs(),
    step=lambda: torch.tensor(0.13),
)
add("clipped_activation", lambda s, x: 0.5 * (x.abs() - (x - s.a).abs() + s.a), a=lambda: torch.tensor(0.7))


@network()
class ResidualQuantiser(nn.Module):
    """Codebooks one after the other, each on what the last left; indices, loss and perplexity beside the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 6, 4, 4), nn.ConvTranspose2d(6, 2, 4, 4)
        self.books = nn.ModuleList([nn.Embedding(8, 6) for _ in range(3)])
        self.register_buffer("ema_count", torch.zeros(3, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        z = self.down(x).permute(0, 2, 3, 1).contiguous()
        left, total, places = z.view(-1, 6), torch.zeros_like(z).view(-1, 6), []
        for n, book in enumerate(self.books):
            apart = (
                torch.sum(left**2, dim=1, keepdim=True)
                + torch.sum(book.weight**2, dim=1)
                - 2 * torch.matmul(left, book.weight.t())
            )
            place = torch.argmin(apart, dim=1).unsqueeze(1)
            hot = torch.zeros(place.shape[0], 8, device=x.device)
            hot.scatter_(1, place, 1)
            if self.training:
                self.ema_count[n] = self.ema_count[n] * 0.99 + 0.01 * hot.sum(0)
            q = torch.matmul(hot, book.weight)
            left, total = left - q.detach(), total + q
            places.append(place.view(*z.shape[:3]))
        loss = F.mse_loss(total.detach(), z.view(-1, 6)) + 0.25 * F.mse_loss(total, z.view(-1, 6).detach())
        used = torch.mean(hot, dim=0)
        perplexity = torch.exp(-torch.sum(used * torch.log(used + 1e-10)))
        total = z + (total.view_as(z) - z).detach()
        y = self.up(total.permute(0, 3, 1, 2).contiguous())
        return y, loss, {"perplexity": perplexity, "places": torch.stack(places, 1), "book": None}


@network()
class ProductQuantiser(nn.Module):
    """Groups of the codeword with a codebook each, picked by a batched product."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.books = nn.Linear(128, 24), nn.Linear(24, 128), nn.Parameter(some(4, 16, 6))

    def forward(self, x: Tensor) -> Tensor:
        groups = self.down(x.flatten(1)).view(x.size(0), 4, 6).transpose(0, 1)
        place = torch.cdist(groups, self.books).argmin(-1)
        picked = torch.gather(self.books, 1, place.unsqueeze(-1).expand(-1, -1, 6))
        return self.up(picked.transpose(0, 1).reshape(x.size(0), 24)).view_as(x)


def _bits_by_loop(x: Tensor) -> Tensor:
    number = (x * 15.99).to(torch.int32)
    bits = torch.zeros(*x.shape, 4, device=x.device)
    for k in range(4):
        bits[..., 3 - k] = (number // 2**k) % 2
    return bits.flatten(1)


# ---- layers and blocks -----------------------------------------------------------------------------------------------

add("ghost", lambda s, x: (lambda y: torch.cat([y, s.d(y)], dim=1)[:, :7])(F.relu(s.c(x))), c=conv(2, 4, 1),
    d=conv(4, 4, 3, padding=1, groups=4))  # fmt: skip
add("inverted_residual", lambda s, x: x + s.b(x), b=lambda: nn.Sequential(
    nn.Conv2d(2, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True), nn.Conv2d(12, 12, 5, 1, 2, groups=12, bias=False),
    nn.BatchNorm2d(12), nn.Hardswish(inplace=True), nn.Conv2d(12, 2, 1, bias=False), nn.BatchNorm2d(2)))  # fmt: skip
add(
    "re_parametrised",
    lambda s, x: F.relu(s.a(x) + s.b(x) + s.n(x)),
    a=conv(2, 2, 3, padding=1),
    b=conv(2, 2, 1),
    n=lambda: nn.BatchNorm2d(2),
)
add("asymmetric", lambda s, x: F.leaky_relu(s.a(x) + s.b(s.c(x)), 0.3), a=conv(2, 4, (1, 9), padding=(0, 4)),
    b=conv(4, 4, (7, 1), padding=(3, 0)), c=conv(2, 4, (1, 5), padding=(0, 2)))  # fmt: skip
add(
    "res2net",
    lambda s, x: _scales(s, x),
    _WIDE,
    a=conv(2, 2, 3, padding=1),
    b=conv(2, 2, 3, padding=1),
    c=conv(2, 2, 3, padding=1),
)
add("octave", lambda s, x: (lambda low: s.hh(x) + F.interpolate(s.lh(low), scale_factor=2, mode="nearest"))(F.avg_pool2d(x, 2, 2)),
    hh=conv(2, 3, 3, padding=1), lh=conv(2, 3, 3, padding=1))  # fmt: skip
add("atrous_pyramid", lambda s, x: s.o(torch.cat([f(x) for f in s.branches]
    + [F.interpolate(s.p(F.adaptive_avg_pool2d(x, 1)), size=x.shape[2:], mode="bilinear", align_corners=False)], 1)),
    branches=lambda: nn.ModuleList([nn.Conv2d(2, 2, 3, padding=r, dilation=r) for r in (1, 2, 4)]), p=conv(2, 2, 1), o=conv(8, 2, 1))  # fmt: skip
add("blurred_pooling", lambda s, x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), s.k.expand(2, 1, 3, 3), stride=2, groups=x.shape[1]),
    k=lambda: (torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1]))[None, None] / 16,))  # fmt: skip
add("haar", lambda s, x: (lambda a, b, c, d: torch.cat((a + b + c + d, -a - b + c + d, -a + b - c + d, a - b - c + d), 1))(
    *(x[:, :, i::2, j::2] / 2 for j in (0, 1) for i in (0, 1))))  # fmt: skip
add("haar_and_back", lambda s, x: _unhaar(x.repeat(1, 2, 1, 1)))
add("condensed", lambda s, x: F.conv2d(x.view(1, -1, 8, 8), (s.r(x.mean((2, 3))).sigmoid() @ s.w.view(3, -1)).view(-1, 2, 3, 3),
    padding=1, groups=x.size(0)), r=dense(2, 3), w=lambda: some(3, 4, 2, 3, 3))  # fmt: skip
add(
    "matched_filter",
    lambda s, x, h: F.conv1d(x.flatten(1)[:, None], h[:, None].flip(-1), padding=3),
    image(),
    image(1, 7),
)
add("correlated", lambda s, x: F.conv2d(x, x[:, :, 2:5, 2:5].contiguous(), padding=1))
add(
    "dynamic_transposed",
    lambda s, x: F.conv_transpose2d(x, s.f(x.mean((2, 3))).view(2, 3, 2, 2), stride=2),
    f=dense(2, 24),
)
add("dynamic_relu", lambda s, x: (lambda p: torch.max(x.unsqueeze(-1) * p[..., 0] + p[..., 1], dim=-1)[0])(
    (2 * s.f(x.mean((2, 3))).sigmoid() - 1).view(-1, 2, 1, 1, 2, 2)), f=dense(2, 8))  # fmt: skip
add(
    "funnel_relu",
    lambda s, x: torch.max(x, s.b(s.c(x))),
    c=conv(2, 2, 3, padding=1, groups=2),
    b=lambda: nn.BatchNorm2d(2),
)
add(
    "learned_slopes",
    lambda s, x: torch.maximum(x * s.a, x * s.b),
    a=lambda: some(2, 1, 1),
    b=lambda: some(2, 1, 1),
)
add("acon", lambda s, x: (lambda d: d * (s.b * d).sigmoid() + s.q * x)((s.p - s.q) * x), p=lambda: some(1, 2, 1, 1),
    q=lambda: some(1, 2, 1, 1, seed=3), b=lambda: torch.ones(1, 2, 1, 1))  # fmt: skip
add(
    "splines",
    lambda s, x: _spline(s, x.flatten(1)[:, :12]),
    grid=lambda: (torch.arange(-3.0, 9) * 0.4 - 1,),
    w=lambda: some(5, 12, 8),
)
add("radial_basis", lambda s, x: s.f(torch.exp(-(((x.flatten(1)[..., None] - torch.linspace(-2, 2, 4)) / 1.3) ** 2)).flatten(1)),
    f=dense(512, 4))  # fmt: skip
add("chebyshev", lambda s, x: torch.einsum("bid,iod->bo", torch.cos(torch.acos(torch.tanh(x.flatten(1))[..., None].expand(-1, -1, 4)
    .clamp(-0.999, 0.999)) * torch.arange(4)), s.w), w=lambda: some(128, 3, 4))  # fmt: skip
add("siren", lambda s, x: torch.sin(30 * s.f(x.flatten(1) * 0.1)), f=dense(128, 8))
add(
    "fourier_features",
    lambda s, x: (lambda p: torch.cat([p.sin(), p.cos()], -1))(2 * math.pi * x.mean(2) @ s.b),
    b=lambda: (some(8, 6),),
)
add("squash", lambda s, x: _routed(x.view(1, 4, 32) @ s.w, s), w=lambda: some(4, 32, 3 * 4) * 0.1)
add("euler", lambda s, x: functools.reduce(lambda y, t: y + 0.1 * torch.tanh(s.f(torch.cat([y, y.new_full((1, 1), t)], 1))),
    (0.0, 0.1, 0.2), x.flatten(1)), f=dense(129, 128))  # fmt: skip
add("diffusion_step", lambda s, x, t: (lambda a: (x - (1 - a).sqrt() * s.c(x) * s.e(t).view(-1, 2, 1, 1)) / a.sqrt())(
    s.alphas.gather(-1, t).reshape(-1, *((1,) * (len(x.shape) - 1)))), image(), torch.tensor([3]),
    alphas=lambda: (torch.linspace(0.99, 0.1, 10),), c=conv(2, 2, 3, padding=1), e=lambda: nn.Embedding(10, 2))  # fmt: skip
add("time_embedding", lambda s, x, t: (lambda a: torch.cat([a.sin(), a.cos()], -1))(
    t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(4) / 3)[None, :]) + x[:, 0, :1], image(), torch.tensor([7]))  # fmt: skip
add("adaptive_norm", lambda s, x: (lambda a, b, g: x + g.unsqueeze(1) * (F.layer_norm(x, (16,)) * (1 + a.unsqueeze(1)) + b.unsqueeze(1)))(
    *s.f(F.silu(x.mean(1))).chunk(3, dim=1)), _TOKENS, f=dense(16, 48))  # fmt: skip
add("sinkhorn", lambda s, x: functools.reduce(lambda p, _: p - p.logsumexp(-1, keepdim=True) - (p - p.logsumexp(-1, keepdim=True))
    .logsumexp(-2, keepdim=True), range(3), x[0, 0]).exp())  # fmt: skip
add("sparsemax", lambda s, x: _sparsemax(x.flatten(2) * 3))
add("soft_argmax", lambda s, x: (x.flatten(2).mul(10).softmax(-1).view_as(x) * torch.arange(8.0)).sum((2, 3)))
add(
    "hard_concrete",
    lambda s, x: x * (s.a.sigmoid() * 1.2 - 0.1).clamp(0, 1).view(1, 2, 1, 1),
    a=lambda: some(2),
)
add("toeplitz_layer", lambda s, x: F.linear(x, s.c.unfold(0, 8, 1).flip(0)), c=lambda: some(15))
add(
    "kronecker_layer",
    lambda s, x: torch.einsum("bchw,hi,wj->bcij", x, s.a, s.b),
    a=lambda: some(8, 3),
    b=lambda: some(8, 5),
)
add(
    "compressed_sensing",
    lambda s, x: (lambda y: (y @ s.a).view_as(x))(F.linear(x.flatten(1), s.a)),
    a=lambda: (some(32, 128) / 128**0.5,),
)
add("ista_net", lambda s, x: _ista(s, x.flatten(1)), a=lambda: (some(32, 128) / 128**0.5,), c=conv(1, 4, 3, padding=1), d=conv(4, 1, 3, padding=1),
    step=lambda: torch.tensor(0.5), t=lambda: torch.tensor(0.01))  # fmt: skip
add("amp", lambda s, x: _amp(s.a, x.flatten(1)[:, :16]), a=lambda: (some(16, 24) / 4,))
add("graph_attention", lambda s, x: (lambda h: (lambda e: torch.where(s.adj > 0, e, -9e15 * torch.ones_like(e)).softmax(1) @ h)(
    F.leaky_relu(h @ s.a[:4] + (h @ s.a[4:]).T, 0.2)))(s.w(x[0, 0])), adj=lambda: ((some(8, 8) > 0).float() + torch.eye(8),),
    w=dense(8, 4), a=lambda: some(8, 1))  # fmt: skip
add("messages_along_edges", lambda s, x: torch.zeros(8, 4).index_add_(0, s.edges[1], s.w(x[0, 0])[s.edges[0]]),
    edges=lambda: (torch.randint(0, 8, (2, 20), generator=torch.Generator().manual_seed(1)),), w=dense(8, 4))  # fmt: skip
add("messages_scattered", lambda s, x: x.new_zeros(8, 8).scatter_add_(0, s.edges[1][:, None].expand(-1, 8), x[0, 0][s.edges[0]]),
    edges=lambda: (torch.randint(0, 8, (2, 20), generator=torch.Generator().manual_seed(1)),))  # fmt: skip
add("experts_by_mask", lambda s, x: _routed_by_mask(s, x[0, 0]), f=dense(8, 8), g=dense(8, 2), refused="mask")
add("top_one_expert", lambda s, x: (lambda w: (torch.stack([e(x.flatten(1)) for e in s.e], 1) * w.unsqueeze(-1)).sum(1))(
    (lambda g: g * F.one_hot(g.argmax(-1), 3))(s.g(x.flatten(1)).softmax(-1))), e=lambda: nn.ModuleList([nn.Linear(128, 4)] * 3), g=dense(128, 3))  # fmt: skip
add("pairs_of_users", lambda s, x: s.f(torch.cat([x[:, 0].unsqueeze(2).expand(-1, -1, 8, -1), x[:, 0].unsqueeze(1).expand(-1, 8, -1, -1)], -1))
    .squeeze(-1).masked_fill(torch.eye(8, dtype=torch.bool), 0), f=dense(16, 1))  # fmt: skip
add("sum_rate", lambda s, x: (lambda p: torch.log2(1 + p.diagonal(dim1=1, dim2=2) / (p.sum(2) - p.diagonal(dim1=1, dim2=2) + 0.1)).sum(1))(
    (_complex(x) @ F.normalize(_complex(x).mH.abs(), dim=1).to(torch.complex64)).abs() ** 2))  # fmt: skip
add(
    "power_allocation",
    lambda s, x: (lambda p: p * torch.minimum(torch.ones(1), 1.0 / p.sum(-1, keepdim=True)))(
        F.softplus(s.f(x.flatten(1)))
    ),
    f=dense(128, 4),
)
add("soft_bits", lambda s, x: (lambda d: torch.logsumexp(-d.masked_fill(s.one, math.inf), -1) - torch.logsumexp(-d.masked_fill(~s.one, math.inf), -1))(
    (x[:, 0, :4, :1] - s.points).square() * 3), points=lambda: (torch.tensor([-3.0, -1, 1, 3]),), one=lambda: (torch.tensor([True, False, False, True]),))  # fmt: skip
add(
    "least_squares_on_pilots",
    lambda s, x: F.interpolate((x[:, :, ::2] * s.p).unfold(-1, 2, 2).mean(-1), size=(8, 8), mode="bicubic"),
    p=lambda: (some(8).sign(),),
)
add(
    "nmse_out",
    lambda s, x: (lambda y: (y, 10 * torch.log10((y - x).pow(2).sum((1, 2, 3)) / x.pow(2).sum((1, 2, 3)))))(
        s.c(x)
    ),
    c=conv(2, 2, 3, padding=1),
)
add("losses_out", lambda s, x: (lambda y: torch.stack([F.mse_loss(y, x), F.l1_loss(y, x), F.smooth_l1_loss(y, x), F.huber_loss(y, x),
    F.kl_div(y.log_softmax(-1), x.softmax(-1), reduction="batchmean"), F.cross_entropy(y.flatten(2)[0], torch.tensor([3, 4])),
    F.binary_cross_entropy_with_logits(y, x), 1 - F.cosine_similarity(y.flatten(1), x.flatten(1)).mean()]))(s.c(x)), c=conv(2, 2, 3, padding=1))  # fmt: skip
add("unbatched_convolution", lambda s, x: s.c(x[0]), c=conv(2, 3, 3, padding=1))
add("norm_without_affine", lambda s, x: s.b(x), b=lambda: nn.BatchNorm2d(2, affine=False))
add(
    "norm_of_rows", lambda s, x: s.b(x.transpose(1, 2)).transpose(1, 2), _TOKENS, b=lambda: nn.BatchNorm1d(16)
)
add("norm_synchronised", lambda s, x: s.b(x), b=lambda: nn.SyncBatchNorm(2))
add(
    "lazy_layers",
    lambda s, x: s.n(x),
    n=lambda: _run_once(
        nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5))
    ),
)
add(
    "embedding_of_directions",
    lambda s, x: F.embedding((x.flatten(1).abs() * 9).long().clamp(0, 9), s.w, max_norm=None).mean(1),
    w=lambda: some(10, 4),
)
add(
    "alpha_dropout_off",
    lambda s, x: s.d(x),
    d=lambda: nn.Sequential(nn.AlphaDropout(0.3), nn.Dropout2d(0.2), nn.Identity(), nn.FeatureAlphaDropout()),
)
add("stochastic_depth", lambda s, x: x + _drop_path(s.c(x), 0.2, s.training), c=conv(2, 2, 1))
add(
    "padded_layers",
    lambda s, x: s.p(x),
    p=lambda: nn.Sequential(
        nn.ZeroPad2d((1, 0, 2, 1)), nn.ConstantPad2d(1, 0.7), nn.ReflectionPad2d(1), nn.Conv2d(2, 2, 3)
    ),
)
add("reflected_volume", lambda s, x: F.pad(x[:, None], (1, 1, 0, 2, 1, 0), mode="replicate"))
add("folded_overlap", lambda s, x: F.fold(s.f(F.unfold(x, 4, stride=2).mT).mT, (8, 8), 4, stride=2) / s.n, f=dense(32, 32), n=lambda: (
    F.fold(F.unfold(torch.ones(1, 1, 8, 8), 4, stride=2), (8, 8), 4, stride=2),))  # fmt: skip


def _scales(s: Any, x: Tensor) -> Tensor:
    parts = list(torch.split(x, 2, 1))
    out, y = [parts[0]], 0.0
    for layer, part in zip((s.a, s.b, s.c), parts[1:], strict=True):
        y = F.relu(layer(part + y))
        out.append(y)
    return torch.cat(out, 1)


def _unhaar(x: Tensor) -> Tensor:
    b, c, h, w = x.size()
    c //= 4
    a, d, e, f = (x[:, i * c : (i + 1) * c] / 2 for i in range(4))
    y = torch.zeros([b, c, h * 2, w * 2]).float().to(x.device)
    y[:, :, 0::2, 0::2] = a - d - e + f
    y[:, :, 1::2, 0::2] = a - d + e - f
    y[:, :, 0::2, 1::2] = a + d - e - f
    y[:, :, 1::2, 1::2] = a + d + e + f
    return y


def _spline(s: Any, x: Tensor) -> Tensor:
    """B-splines of order three, as Kolmogorov-Arnold networks have them."""
    grid, x = s.grid, x.unsqueeze(-1)
    bases = ((x >= grid[:-1]) & (x < grid[1:])).to(x.dtype)
    for k in range(1, 4):
        bases = ((x - grid[: -(k + 1)]) / (grid[k:-1] - grid[: -(k + 1)]) * bases[:, :, :-1]) + (
            (grid[k + 1 :] - x) / (grid[k + 1 :] - grid[1:(-k)]) * bases[:, :, 1:]
        )
    return F.linear(bases.reshape(x.size(0), -1), s.w.view(5, -1))


def _routed(votes: Tensor, s: Any) -> Tensor:
    votes = votes.view(1, 4, 4, 3, 4)[:, 0]
    logits = torch.zeros(1, 4, 3, device=votes.device)
    v = votes[:, 0]
    for n in range(3):
        y = (logits.softmax(dim=2).unsqueeze(-1) * votes).sum(1)
        size = y.norm(dim=-1, keepdim=True)
        v = size**2 / (1 + size**2) * y / (size + 1e-8)
        if n < 2:
            logits = logits + (votes * v.unsqueeze(1)).sum(-1)
    return v


def _sparsemax(x: Tensor) -> Tensor:
    ordered, _ = torch.sort(x, dim=-1, descending=True)
    rank = torch.arange(1, x.size(-1) + 1, dtype=x.dtype)
    sums = ordered.cumsum(-1)
    count = (1 + rank * ordered > sums).sum(-1, keepdim=True)
    return torch.clamp(x - (sums.gather(-1, count - 1) - 1) / count.to(x.dtype), min=0)


def _ista(s: Any, x: Tensor) -> Tensor:
    phi, y = s.a.T @ s.a, x @ s.a.T
    b, z = y @ s.a, torch.mm(y, s.a)
    for _ in range(2):
        z = z - s.step * torch.mm(z, phi) + s.step * b
        f = s.c(z.view(-1, 1, 8, 16))
        f = torch.mul(torch.sign(f), F.relu(torch.abs(f) - s.t))
        z = (z.view(-1, 1, 8, 16) + s.d(f)).view(-1, 128)
    return z


def _amp(a: Tensor, y: Tensor) -> Tensor:
    x, r = y.new_zeros(y.size(0), 24), y
    for _ in range(3):
        t = r.norm(dim=1, keepdim=True) / 4
        v = x + r @ a
        x = v.sign() * (v.abs() - t).clamp_min(0)
        r = y - x @ a.t() + r * (x != 0).float().sum(1, keepdim=True) / 16
    return x


def _routed_by_mask(s: Any, x: Tensor) -> Tensor:
    out, best = torch.zeros_like(x), s.g(x).argmax(-1)
    mask = best == 1
    out[mask] = s.f(x[mask])
    return out


def _run_once(module: nn.Module) -> nn.Module:
    with quiet():
        module.eval()(image())
    return module


def _drop_path(x: Tensor, p: float, training: bool) -> Tensor:
    if p == 0.0 or not training:
        return x
    return x * (torch.rand(x.shape[0], 1, 1, 1) > p) / (1 - p)


# ---- functions -------------------------------------------------------------------------------------------------------

add(
    "joined",
    lambda s, x: torch.dstack(
        [torch.hstack([x[0, 0], x[0, 1]]), torch.vstack([x[0], x[0]]).flatten(0, 1).reshape(8, 32)[:, :16]]
    ),
)
add(
    "tensor_split_and_rot90",
    lambda s, x: (
        torch.cat(torch.tensor_split(x, (3, 5), dim=2), 1 + 1).rot90(1, (2, 3))
        + x.swapaxes(2, 3).movedim(1, 0).transpose(0, 1)
    ),
)
add(
    "diagonals",
    lambda s, x: (
        torch.diag_embed(x[0, 0])
        + torch.diag(x[0, 0, 0])
        + torch.block_diag(x[0, 0, :4, :4], x[0, 1, :4, :4])
        + x[0, 0].trace()
    ),
)
add(
    "cross_and_outer",
    lambda s, x: (
        torch.cross(x[0, 0, :, :3], x[0, 1, :, :3], dim=-1)
        + torch.outer(x[0, 0, 0], x[0, 0, 1])[:, :3]
        + torch.ger(x[0, 0, 0], x[0, 1, 0])[:, :3]
    ),
)
add(
    "differences",
    lambda s, x: (
        torch.diff(x, dim=-1, prepend=x[..., :1])
        + torch.gradient(x, dim=-1)[0]
        + torch.trapezoid(x, dim=-1).unsqueeze(-1)
    ),
)
add("cumulative_integral", lambda s, x: torch.cumulative_trapezoid(x, dx=0.5))
add("correlation", lambda s, x: torch.corrcoef(x[0, 0]) + torch.cov(x[0, 1]))
add(
    "quantiles",
    lambda s, x: (
        torch.quantile(x, torch.tensor([0.1, 0.5]), dim=-1)
        + torch.quantile(x.flatten(2), 0.25, dim=2).unsqueeze(-1)
    ),
)
add(
    "extremes",
    lambda s, x: (
        (lambda lo, hi: (x - lo) / (hi - lo))(*torch.aminmax(x))
        + torch.std_mean(x, dim=-1, keepdim=True)[0]
        + torch.var_mean(x)[1]
    ),
)
add(
    "counted",
    lambda s, x: (
        torch.count_nonzero(x > 0.5, dim=-1)
        + (x > 0.5).sum(-1)
        + (x > 0.5).float().mean(-1)
        + (x > 0.5).long().argmax(-1)
    ),
)
add(
    "nan_statistics",
    lambda s, x: (
        torch.nanmean(torch.where(x > 0.5, x, torch.nan), dim=-1)
        + torch.nansum(x, dim=-1)
        + x.nan_to_num().mean(-1)
    ),
)
add(
    "distances",
    lambda s, x: (
        torch.dist(x[0, 0], x[0, 1])
        + F.pairwise_distance(x[0, 0], x[0, 1])
        + torch.cdist(x[0, 0], x[0, 1], p=1).mean(-1)
    ),
)
add("fused_products", lambda s, x: torch.addcmul(x, x, x, value=0.5) + torch.addcdiv(x, x, x + 2) + torch.lerp(x, x * x, x) + torch.addmv(x[0, 0, 0], x[0, 0], x[0, 1, 0])
    + torch.addbmm(x[0, 0], x[:, 0], x[:, 1]) + torch.addr(x[0, 0], x[0, 0, 0], x[0, 0, 1]))  # fmt: skip
add("numbers_rounded", lambda s, x: x.frac() + torch.heaviside(x - 0.5, torch.tensor(0.5)) + torch.sinc(x) + torch.logit(x.sigmoid()) + torch.xlogy(x.abs(), x.abs())
    + x.float_power(2).float() + torch.special.expit(x) + torch.deg2rad(x) + torch.logaddexp2(x, x) + x.abs().rsqrt() + x.sgn() + x.positive())  # fmt: skip
add(
    "closeness",
    lambda s, x: torch.isclose(x, x.flip(-1), atol=0.1) | torch.isin((x * 4).long(), torch.tensor([1, 3])),
)
add("integers_divided", lambda s, x: torch.floor_divide((x * 20).int(), 3) + torch.remainder((x * 20).int() - 15, 4) + torch.true_divide((x * 20).int(), 7)
    + torch.div((x * 20).long() - 12, 5, rounding_mode="trunc") + torch.fmod((x * 20).int() - 12, 5) + ((x * 20).int() - 12) // 5)  # fmt: skip
add(
    "types_promoted",
    lambda s, x: (
        (x > 0.5)
        + (x * 3).to(torch.int16) * 2
        + torch.arange(8) * 0.5
        + (x > 0.2).sum(1, keepdim=True) / 3
        + 2 ** (x * 3).int().clamp(0, 4)
    ),
)
add(
    "gcd_and_bits",
    lambda s, x: torch.gcd((x * 20).int().abs() + 1, torch.tensor(6, dtype=torch.int32)),
    refused="gcd",
)
add(
    "repeated",
    lambda s, x: (
        x.repeat_interleave(torch.tensor([1, 2, 0, 1, 3, 0, 1, 2]), dim=2)
        + torch.tile(x, (1, 1, 2, 1))[:, :, :10]
    ),
)
add(
    "grid_of_places",
    lambda s, x: torch.cat(
        [
            x,
            torch.stack(
                torch.meshgrid(
                    torch.linspace(-1, 1, x.size(2)), torch.linspace(-1, 1, x.size(3)), indexing="xy"
                )
            )[None],
        ],
        1,
    ),
)
add(
    "all_pairs",
    lambda s, x: (
        torch.cartesian_prod(x[0, 0, 0], x[0, 1, 0])
        + torch.combinations(x[0, 0, 0])[:1]
        + torch.vander(x[0, 0, 0], 2).mean()
    ),
)
add(
    "triangle_as_vector",
    lambda s, x: x[:, :, *torch.triu_indices(8, 8, 1)] + x[:, :, *torch.tril_indices(8, 8, -1)],
)
add("vector_as_triangle", lambda s, x: _triangle(x.flatten(1)[:, :28]))
add("unflattened", lambda s, x: x.unflatten(-1, (2, -1)).flatten(0, 2).unsqueeze(0).squeeze().T + 1)
add("mode_of_values", lambda s, x: torch.mode((x * 3).round(), dim=-1)[0])
add("ordered_twice", lambda s, x: x.flatten(2).argsort(dim=-1, stable=True).argsort(dim=-1) / 64)
add("einsum_forms", lambda s, x: torch.einsum("bij,bjk,bkl->bil", x[:, 0], x[:, 1], x[:, 0]) + torch.einsum("bii->bi", x[:, 0])[:, None]
    + torch.einsum("bii->b", x[:, 1])[:, None, None] + torch.einsum("i,j->ij", x[0, 0, 0], x[0, 0, 1]) + torch.einsum("...c,c->...", x[:, 0], s.w)[..., None]
    + torch.einsum(x, [0, 1, 2, 3], [0, 3])[:, None] + torch.einsum("bchw->bwh", x) + torch.einsum("bcij,bcij->b", x, x), w=lambda: some(8))  # fmt: skip
add(
    "special_values",
    lambda s, x: (
        x.clamp(torch.tensor(0.2), s.high)
        + x.clamp_min(0.1).clamp_max(0.9)
        + torch.clip(x, 0.3)
        + x.relu().clamp(max=0.5).neg().abs()
    ),
    high=lambda: some(8).abs(),
)
add("assigned_pieces", lambda s, x: _assigned(x))
add("renormalised", lambda s, x: torch.renorm(x[0, 0], 2, 0, 1.0))
add("unfolded_windows", lambda s, x: x.unfold(2, 3, 2).unfold(3, 3, 2).contiguous().view(1, 2, -1, 9).std(-1))
add("sliding_maximum", lambda s, x: x == F.max_pool2d(x, 3, 1, 1))
add(
    "strided_view",
    lambda s, x: torch.as_strided(x.contiguous(), (1, 2, 4, 4), (128, 64, 16, 1), 3) + x[..., 1::2, ::2],
)
add("bits_in_numbers", lambda s, x: x.view(torch.int32), refused="view")
add("bessel_correlation", lambda s, x: x * torch.special.bessel_j0(torch.arange(8.0)))
add(
    "batched_by_vmap",
    lambda s, x: torch.vmap(lambda h: h @ h.T)(x[0]) + torch.func.vmap(torch.trace)(x[0])[:, None, None],
)
add(
    "gradient_in_forward",
    lambda s, x: x - 0.1 * torch.func.grad(lambda y: ((y @ s.a) ** 2).sum())(x),
    a=lambda: some(8, 4),
    refused="gradients",
)
add("gradient_by_autograd", lambda s, x: _descended(s, x), a=lambda: some(8, 4))


def _triangle(v: Tensor) -> Tensor:
    m = v.new_zeros(v.size(0), 8, 8)
    i, j = torch.triu_indices(8, 8, 1)
    m[:, i, j] = v
    return m + m.transpose(1, 2)


def _assigned(x: Tensor) -> Tensor:
    y = torch.empty_like(x).fill_(0.5)
    y[:, 0] = x[:, 1]
    y[:, 1, 2:5, ::2] = 0
    y[..., -1] += x[..., 0]
    y[:, :, 0, :] *= 2
    y[0, 0, 1, 1] = x.mean()
    y[:, [1], [5, 6]] = x[:, :1, 0]
    y[:, :, x.shape[2] // 2 :].add_(1)
    y.transpose(2, 3)[..., 0] = -1
    return y


def _descended(s: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = x.detach().clone().requires_grad_(True)
        (g,) = torch.autograd.grad(((y @ s.a) ** 2).sum(), y)
    return x - 0.1 * g


add("bools_compared", lambda s, x: (lambda a, b: (torch.stack([a == b, a != b, a > b, a <= b, a * b, torch.maximum(a, b),
    torch.minimum(a, b), a.eq(1), a.masked_fill(b, False), a.logical_not() == b]), (a == b).all(-1), a.amax(-1), b.amin(1)))(
    x > 0.5, x.flip(-1) > 0.4))  # fmt: skip
add("adaptive_pool_places", lambda s, x: (
    F.adaptive_max_pool2d(x, (3, 5), return_indices=True), F.adaptive_max_pool2d((x * 4).round(), 3, return_indices=True),
    F.adaptive_max_pool1d(x[0, :, 0], 3, return_indices=True), F.max_unpool2d(*F.adaptive_max_pool2d(x, 4, return_indices=True), 2)))  # fmt: skip
add("unpooled_lines_and_volumes", lambda s, x: F.max_unpool1d(*F.max_pool1d(x.flatten(2), 2, return_indices=True), 2).view_as(x)
    + F.max_unpool3d(*F.max_pool3d(x[:, None], (1, 2, 2), return_indices=True), (1, 2, 2))[:, 0])  # fmt: skip
add("pairs_of_rows", lambda s, x: F.pdist(x[0, 0]))
add("integers_scattered", lambda s, x: (lambda i: (
    torch.zeros_like(i).scatter_reduce(-1, i % 8, i, "amax"), torch.ones_like(i).scatter_reduce(3, i % 8, i % 3 + 1, "prod"),
    i.scatter_reduce(3, i % 8, i % 3 + 1, "mean"), i.scatter_reduce(3, i % 8, i % 3 + 1, "amin", include_self=False),
    i.cummax(-1)[0], i.cummin(1)[0]))((x * 30).long().abs()))  # fmt: skip
add(
    "sums_of_exponents", lambda s, x: torch.logcumsumexp(x * 100, -1) - torch.logcumsumexp(x.flip(1) * 200, 1)
)
add("norms_in_double", lambda s, x: (lambda d: [y.float() for y in (F.layer_norm(d, (8,)), F.group_norm(d, 2, s.w), F.instance_norm(d),
    F.layer_norm(d, (8, 8), s.p, s.p))])(x.double()), w=lambda: (some(2).double(),), p=lambda: (some(8, 8).double(),))  # fmt: skip
add("whole_logarithms", lambda s, x: (x.log2().floor().int(), x.log10().floor().int(), x.log2().floor().exp2().int(), x.log2()),
    torch.tensor([[2.0**n for n in range(11)] + [10.0**n for n in range(7)]]))  # fmt: skip
add(
    "half_statistics",
    lambda s, x: (lambda h: (h.norm(dim=-1), h.std(-1), h.var((2, 3)), F.normalize(h, dim=1)))(
        x.half() * 300
    ),
)

# ---- Python ----------------------------------------------------------------------------------------------------------


@dataclass
class _Answer:
    y: Tensor
    power: Tensor
    note: str = "csi"


Answered = namedtuple("Answered", ["codeword", "mask"])


class _Residual(nn.Sequential):
    """A list of layers with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@network()
class Builder(nn.Module):
    """Layers by name, activations by a table and as partial functions, shared layers, state in attributes."""

    def __init__(self, widths: tuple[int, ...] = (4, 4), act: str = "leaky") -> None:
        super().__init__()
        table = {"leaky": functools.partial(F.leaky_relu, negative_slope=0.3), "relu": nn.ReLU}
        self.act, self.depth = table[act], len(widths)
        width = 2
        for n, out in enumerate(widths):
            setattr(self, f"conv{n}", nn.Conv2d(width, out, 3, padding=1))
            self.add_module(f"norm{n}", nn.BatchNorm2d(out))
            width = out
        self.shared = _Residual(OrderedDict(conv=nn.Conv2d(4, 4, 1), act=nn.Tanh()))
        self.heads = nn.ModuleDict([("re", nn.Conv2d(4, 1, 1)), ("im", nn.Conv2d(4, 1, 1))])
        self.register_parameter("bias", None)
        self.register_buffer("unused", None)
        self.calls, self.kept = 0, None

    def forward(self, x: Tensor, return_all: bool = False, mask: Tensor | None = None) -> Any:
        assert x.shape[1:] == (2, 8, 8), f"expected channels, got {tuple(x.shape)}"
        for n in range(self.depth):
            x = self.act(getattr(self, f"norm{n}")(getattr(self, f"conv{n}")(x)))
        x = self.shared(self.shared(x))
        if mask is not None:
            x = x * mask
        y = torch.cat([self.heads[k](x) for k in ("re", "im")], 1)
        return (y, x) if return_all else y


@network()
class KeepsAttention(nn.Module):
    """Leaves what it computed on the way in attributes, for pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention, self.calls = nn.Conv2d(2, 2, 1), None, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.attention = torch.sigmoid(self.conv(x))
        self.last_shape = x.shape
        return x * self.attention


@network()
class Prints(nn.Module):
    """Leftovers of debugging."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.isnan(torch.zeros(1)).any():
            raise ValueError("diverged")
        with warnings.catch_warnings():
            warnings.warn("not trained", stacklevel=1)
        y = torch.autograd.Variable(x.data)
        return y.to(next(self.parameters(), x).device).type_as(x).cpu().float() * len(x.size())


@network()
class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.conv.register_forward_hook(lambda module, given, out: out * 2)
        self.conv.register_forward_pre_hook(lambda module, given: (given[0] - 0.5,))
        self.register_forward_hook(lambda module, given, out: {"y": out})

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@network(image(), torch.tensor([[0.3, 0.7]]))
class Arguments(nn.Module):
    """Arguments with defaults behind a star."""

    def forward(self, *inputs: Tensor, scale: float = 2.0, **options: Any) -> list[Tensor]:
        return [t * scale for t in inputs]


@network()
class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = torch.utils.checkpoint.checkpoint_sequential(self.layers, 2, x, use_reentrant=False)
        return torch.utils.checkpoint.checkpoint(self.layers, x, use_reentrant=True)


add("dataclass_out", lambda s, x: _Answer(x * 2, x.square().mean()))
add("own_named_tuple_out", lambda s, x: Answered(x.mean(1), x > 0.5))
add("numbers_out", lambda s, x: {"y": x * 2, "n": 3, "rate": 0.25, "name": "csi", "flag": True})
add("list_of_lists_out", lambda s, x: [[x.mean(-1)], [x.amax(-1), [x.sum()]]])
add("generator_of_parts", lambda s, x: tuple(p.mean() for p in x.split(1, 1)))
add("half_out", lambda s, x: x.half() * 2)
add("double_out", lambda s, x: x.double().exp())
add("long_out", lambda s, x: (x * 100).long())
add(
    "byte_and_bool_in",
    lambda s, b, m: b.float() * m + (b >> 1),
    torch.arange(8, dtype=torch.uint8)[None],
    (torch.arange(8) % 2 == 0)[None],
)
add("one_row_in", lambda s, x: s.f(x), image(16), f=dense(16, 4))
add("image_without_batch", lambda s, x: s.c(x).flatten(1).mean(1), image(2, 8, 8), c=conv(2, 3, 3))
add("batch_of_four", lambda s, x: s.c(x), image(4, 2, 8, 8), c=conv(2, 3, 3))
add("modules_wrapped", lambda s, x: s.d(x), d=lambda: nn.DataParallel(nn.Conv2d(2, 2, 1)))
add("averaged", lambda s, x: s.m(x), m=lambda: torch.optim.swa_utils.AveragedModel(nn.Conv2d(2, 2, 1)))
add(
    "compiled_part",
    lambda s, x: s.m[0](x),
    m=lambda: [torch.compile(nn.Conv2d(2, 2, 1), backend="eager")][:1],
)
add(
    "channels_last",
    lambda s, x: s.c(x.contiguous(memory_format=torch.channels_last)),
    c=lambda: nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last),
)
add(
    "functional_call",
    lambda s, x: torch.func.functional_call(s.c, {"weight": s.w * 2}, (x,)),
    c=conv(2, 2, 1),
    w=lambda: some(2, 2, 1, 1),
)
add(
    "weights_shared",
    lambda s, x: F.conv_transpose2d(F.relu(s.c(x)), s.c.weight, padding=1),
    c=conv(2, 4, 3, padding=1, bias=False),
)
add("writes_to_the_front", lambda s, x: F.relu(x, inplace=True).add(1))
add("subtracts_in_place", lambda s, x: _centred(x))
add(
    "mask_by_old_type",
    lambda s, x: (
        x.masked_fill(torch.ByteTensor([0, 1] * 4).bool(), 0)
        + torch.FloatTensor([1.0, 2]).view(1, 2, 1, 1)
        + torch.Tensor(8).fill_(3)
    ),
)
add(
    "numpy_scalars", lambda s, x: x / np.sqrt(8) + np.float32(2) * x + np.pi + np.int64(3) + float(np.log(10))
)
add("attention_backend", lambda s, x: _math_attention(x), _TOKENS)
add("inference_mode", lambda s, x: _inferred(s.c, x), c=conv(2, 2, 1))
add(
    "pruned_and_normed",
    lambda s, x: s.c(x),
    c=lambda: prune.l1_unstructured(parametrizations.weight_norm(nn.Conv2d(2, 4, 3)), "bias", 0.5),
)
add("parametrised_recurrence", lambda s, x: s.r(x)[0], _TOKENS, r=lambda: _weight_normed_gru())
add("unused_branch", lambda s, x: s.a(x) if not s.training else s.missing(x), a=conv(2, 2, 1))
add(
    "fake_quantised_modules",
    lambda s, x: s.d(s.c(s.q(x))),
    q=lambda: torch.ao.quantization.QuantStub(),
    c=conv(2, 2, 1),
    d=lambda: torch.ao.quantization.DeQuantStub(),
)
add(
    "float_functional",
    lambda s, x: s.f.add(x, s.f.mul_scalar(x, 2.0)),
    f=lambda: torch.ao.nn.quantized.FloatFunctional(),
)
add(
    "quantised_dynamically",
    lambda s, x: s.f(x.flatten(1)),
    f=lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(128, 8)), {nn.Linear}),
    refused="quantized",
)
add(
    "noise_in_training",
    lambda s, x: x + 0.1 * torch.randn(x.shape, device=x.device) if s.training else x * 1.0,
)
add("channel_noise", lambda s, x: x + torch.normal(0, 0.1, x.shape), refused="random")
add("random_projection", lambda s, x: x @ torch.randn(8, 4), refused="random")
add("layer_made_in_forward", lambda s, x: nn.Conv2d(2, 2, 1)(x), refused="random")
add("while_by_values", lambda s, x: _until(x), refused="values")
add("python_from_values", lambda s, x: x[:, :, : int(x.abs().max())], refused="values")
add("values_in_a_list", lambda s, x: x * torch.tensor(x.mean().tolist()), refused="item()")
add("assertion_on_values", lambda s, x: _asserted(x), refused="values")
add("nonzero_places", lambda s, x: torch.where(x > 0.5)[0].float().mean(), refused="nonzero")
add("bincounted", lambda s, x: torch.bincount((x.flatten() * 3).long().clamp(0)), refused="bincount")


def _centred(x: Tensor) -> Tensor:
    x -= 0.5
    x[:, 0] *= 2
    return x


def _math_attention(x: Tensor) -> Tensor:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(x, x, x)


def _inferred(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return layer(x)


def _weight_normed_gru() -> nn.Module:
    layer = nn.GRU(16, 5, batch_first=True)
    return parametrizations.weight_norm(layer, "weight_hh_l0")


def _until(x: Tensor) -> Tensor:
    while x.norm() > 1:
        x = x / 2
    return x


def _asserted(x: Tensor) -> Tensor:
    assert (x < 100).all()
    return x * 2


class _Clamped(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.clamp(-0.1, 0.1)


add(
    "clamped_weights",
    lambda s, x: s.c(x),
    c=lambda: parametrize.register_parametrization(nn.Conv2d(2, 4, 3), "weight", _Clamped()),
)
add(
    "old_norm_of_a_line", lambda s, x: s.c(x.flatten(2)), c=lambda: nn.utils.spectral_norm(nn.Conv1d(2, 4, 3))
)

OWN = set(NETWORKS) - _BEFORE
