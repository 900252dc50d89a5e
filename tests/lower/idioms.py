"""Small networks of the kinds people write, one function each: radio networks and the idioms of PyTorch.

    NETWORKS["name"]() -> module in eval mode, its inputs     REFUSED["name"] -> (the same, a word of the refusal)

``python -m tests.lower.idioms`` builds every one by the public API, which compares it with
PyTorch, and calls it between guard pages.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

Made = tuple[nn.Module, tuple[Tensor, ...]]
NETWORKS: dict[str, Callable[[], Made]] = {}
REFUSED: dict[str, tuple[Callable[[], Made], str]] = {}


@contextmanager
def quiet() -> Iterator[None]:
    """People use what PyTorch deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def image(*shape: int) -> Tensor:
    """Numbers around 0.5, as scaled channels are; float32 [1, 2, 8, 8] by default."""
    return torch.randn(*(shape or (1, 2, 8, 8)), generator=torch.Generator().manual_seed(1)) * 0.3 + 0.5


def some(*shape: int, seed: int = 2, **options: Any) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


class Net(nn.Module):
    """A forward function with modules, parameters (tensors) and buffers ((tensor,))."""

    def __init__(self, function: Callable[..., Any], parts: dict[str, Any]) -> None:
        super().__init__()
        self._function = function
        for name, part in parts.items():
            if isinstance(part, tuple):
                self.register_buffer(name, part[0])
            else:
                setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, *x: Tensor) -> Any:
        return self._function(self, *x)


def lively(module: nn.Module) -> nn.Module:
    """Statistics and affine parameters of norms away from their defaults, as after training."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.PReLU):
                for name, tensor in [*part.named_parameters(), *part.named_buffers()]:
                    if tensor.is_floating_point():
                        tensor.uniform_(
                            0.5 if "var" in name or name == "weight" else -0.5, 1.5, generator=generator
                        )
    return module.eval()


def add(
    name: str, function: Callable[..., Any], *inputs: Tensor, refused: str = "", **parts: Callable[[], Any]
) -> None:
    """Enter a network of a function and what makes its parts; `refused`: a word of its refusal."""

    def make() -> Made:
        torch.manual_seed(0)
        with quiet():
            return lively(Net(function, {k: part() for k, part in parts.items()})), inputs or (image(),)

    enter(name, make, refused)


def enter(name: str, make: Callable[[], Made], refused: str = "") -> None:
    assert name not in {*NETWORKS, *REFUSED}, name
    if refused:
        REFUSED[name] = make, refused
    else:
        NETWORKS[name] = make


def network(*inputs: Tensor, refused: str = "") -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Enter a class by its name."""

    def entered(kind: type[nn.Module]) -> type[nn.Module]:
        def make() -> Made:
            torch.manual_seed(0)
            return lively(kind()), inputs or (image(),)

        enter(kind.__name__, make, refused)
        return kind

    return entered


def conv(*a: Any, **k: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*a, **k)


def dense(*a: Any, **k: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(*a, **k)


# ---- weights computed in forward -----------------------------------------------------------------------------------

add("weight_norm", lambda s, x: s.c(x), c=lambda: parametrizations.weight_norm(nn.Conv2d(2, 4, 3, padding=1)))
add("old_weight_norm", lambda s, x: s.c(x), c=lambda: nn.utils.weight_norm(nn.Conv2d(2, 4, 3, padding=1)))
add(
    "weight_norm_of_dim_none",
    lambda s, x: s.f(x.flatten(1)),
    f=lambda: parametrizations.weight_norm(nn.Linear(128, 8), dim=None),
)
add(
    "spectral_norm",
    lambda s, x: s.f(x.flatten(1)),
    f=lambda: parametrizations.spectral_norm(nn.Linear(128, 8)),
)
add("old_spectral_norm", lambda s, x: s.f(x.flatten(1)), f=lambda: nn.utils.spectral_norm(nn.Linear(128, 8)))
add(
    "spectral_norm_of_a_transposed_convolution",
    lambda s, x: s.c(x),
    c=lambda: parametrizations.spectral_norm(
        nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1)
    ),
)
add("orthogonal", lambda s, x: s.f(x.flatten(1)), f=lambda: parametrizations.orthogonal(nn.Linear(128, 8)))
add(
    "pruned_mask",
    lambda s, x: s.f(x.flatten(1)),
    f=lambda: prune.l1_unstructured(nn.Linear(128, 16), "weight", 0.7),
)
add(
    "pruned_channels",
    lambda s, x: s.c(x),
    c=lambda: prune.ln_structured(nn.Conv2d(2, 8, 3), "weight", 0.5, 2, 0),
)
add(
    "own_mask",
    lambda s, x: F.linear(x.flatten(1), s.w * s.mask),
    w=lambda: some(16, 128) * 0.1,
    mask=lambda: (some(16, 128, seed=4) > 0.5,),
)
add(
    "weight_standardised",
    lambda s, x: F.conv2d(
        x, (s.w - s.w.mean((1, 2, 3), keepdim=True)) / (s.w.std((1, 2, 3), keepdim=True) + 1e-5), padding=1
    ),
    w=lambda: some(4, 2, 3, 3),
)
add(
    "quantised_weights",
    lambda s, x: F.linear(
        x.flatten(1),
        (s.w / s.w.abs().amax(1, keepdim=True) * 7).round() / 7 * s.w.abs().amax(1, keepdim=True),
    ),
    w=lambda: some(8, 128),
)
add(
    "ternary_weights",
    lambda s, x: F.linear(
        x.flatten(1), torch.where(s.w.abs() > 0.7 * s.w.abs().mean(), s.w.sign(), torch.zeros_like(s.w))
    ),
    w=lambda: some(8, 128),
)
add(
    "tied_weights",
    lambda s, x: F.linear(torch.tanh(F.linear(x.flatten(1), s.w)), s.w.t()).view_as(x),
    w=lambda: some(16, 128) * 0.1,
)
add(
    "equalised_rate",
    lambda s, x: F.conv2d(x, s.w * (2 / (s.w[0].numel())) ** 0.5, s.b, padding=1),
    w=lambda: some(4, 2, 3, 3),
    b=lambda: some(4),
)


@network()
class LoRA(nn.Module):
    """Low-rank updates beside frozen weights, as adapters are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.scale = nn.Linear(128, 32), 0.5
        self.lora_a, self.lora_b = nn.Parameter(some(4, 128) * 0.1), nn.Parameter(some(32, 4) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.base(x) + (x @ self.lora_a.t() @ self.lora_b.t()) * self.scale


class _Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2)


def _parametrised() -> nn.Module:
    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "weight", _Symmetric())
    return layer


add("own_parametrisation", lambda s, x: s.f(x), f=_parametrised)
add(
    "softplus_parameter",
    lambda s, x: x * F.softplus(s.scale, beta=2).view(1, -1, 1, 1),
    scale=lambda: some(2),
)
add(
    "hyper_weights",
    lambda s, x: F.linear(x.flatten(1), s.f(s.z).view(4, 128)),
    f=dense(3, 512),
    z=lambda: some(3),
)


@network()
class Lists(nn.Module):
    """Parameters and layers in lists and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(some(2, 1, 1, seed=n)) for n in range(3)])
        self.branches = nn.ModuleDict({"a": nn.Conv2d(2, 2, 1), "b": nn.Conv2d(2, 2, 3, padding=1)})
        self.named = nn.ParameterDict({"shift": nn.Parameter(some(1, 2, 1, 1))})

    def forward(self, x: Tensor) -> Tensor:
        for scale in self.scales:
            x = x + torch.tanh(x * scale)
        return sum((branch(x) for branch in self.branches.values()), self.named["shift"])


# ---- complex numbers and Fourier transforms ------------------------------------------------------------------------

add(
    "fft_of_delays",
    lambda s, x: torch.view_as_real(
        torch.fft.fft(torch.view_as_complex(x.permute(0, 2, 3, 1).contiguous()), dim=1)
    ),
)
add("ifft2_magnitude", lambda s, x: torch.fft.ifft2(torch.complex(x[:, 0], x[:, 1])).abs())
add(
    "rfft_filter",
    lambda s, x: torch.fft.irfft(torch.fft.rfft(x, dim=-1) * s.h, n=8, dim=-1),
    h=lambda: some(2, 1, 5, dtype=torch.complex64),
)
add(
    "fno_layer",
    lambda s, x: torch.fft.irfft2(torch.einsum("bixy,ioxy->boxy", torch.fft.rfft2(x), s.w), s=(8, 8)),
    w=lambda: some(2, 3, 8, 5, dtype=torch.complex64) * 0.2,
)
add(
    "fft_padded", lambda s, x: torch.fft.fft(torch.complex(x[:, 0], x[:, 1]), n=12, dim=-1, norm="ortho").real
)
add(
    "fftshift",
    lambda s, x: torch.fft.fftshift(torch.fft.fft2(torch.complex(x[:, 0], x[:, 1])), dim=(-2, -1)).imag,
)
add("hfft", lambda s, x: torch.fft.hfft(torch.complex(x[:, 0], x[:, 1]), dim=-1))
add(
    "complex_buffer",
    lambda s, x: torch.einsum("bchw,hk->bckw", x, s.dft.real) + x * s.dft.imag,
    dft=lambda: (torch.fft.fft(torch.eye(8)),),
)
add(
    "complex_parameter",
    lambda s, x: torch.view_as_real(torch.complex(x[:, 0], x[:, 1]) @ s.w),
    w=lambda: some(8, 4, dtype=torch.complex64),
)
add(
    "beamformer",
    lambda s, x: (torch.einsum("na,ban->bn", s.book, torch.complex(x[:, 0], x[:, 1])).abs() ** 2).softmax(-1),
    book=lambda: (torch.exp(1j * some(8, 8)),),
)
add(
    "steering",
    lambda s, x: (torch.exp(1j * math.pi * s.n * torch.sin(x.mean((1, 2, 3)))[:, None])).real,
    n=lambda: (torch.arange(8.0),),
)
add("hermitian", lambda s, x: (lambda h: torch.view_as_real(h @ h.mH))(torch.complex(x[:, 0], x[:, 1])))
add(
    "complex_division",
    lambda s, x: torch.view_as_real(
        torch.complex(x[:, 0], x[:, 1]) / (torch.complex(x[:, 1], x[:, 0]).abs() + 0.1)
    ),
)
add("phase", lambda s, x: torch.angle(torch.complex(x[:, 0] + 1, x[:, 1])).cos())
add("polar", lambda s, x: torch.polar(x[:, 0].abs(), x[:, 1]).imag)
add(
    "complex_convolution",
    lambda s, x: torch.stack([s.re(x[:, :1]) - s.im(x[:, 1:]), s.re(x[:, 1:]) + s.im(x[:, :1])], 2).flatten(
        1, 2
    ),
    re=conv(1, 3, 3, padding=1),
    im=conv(1, 3, 3, padding=1),
)
add(
    "complex_conv2d",
    lambda s, x: torch.view_as_real(s.c(torch.complex(x[:, :1], x[:, 1:]))),
    c=conv(1, 2, 3, padding=1, dtype=torch.complex64),
)
add(
    "crelu",
    lambda s, x: (lambda z: torch.complex(z.real.relu(), z.imag.relu()).abs())(
        torch.complex(x[:, 0] - 0.5, x[:, 1] - 0.5)
    ),
)
add(
    "modrelu",
    lambda s, x: (lambda z: (F.relu(z.abs() + s.b) * z / (z.abs() + 1e-3)).real)(
        torch.complex(x[:, 0], x[:, 1])
    ),
    b=lambda: some(8),
)
add(
    "real_and_imag_stack",
    lambda s, x: (lambda z: torch.cat([z.real, z.imag], -1))(torch.fft.fft(x.flatten(1))),
)
add("spectrum_in_decibels", lambda s, x: 10 * torch.log10(torch.fft.fft(x[:, 0]).abs().square() + 1e-3))
add(
    "stft_by_unfold",
    lambda s, x: (lambda f: torch.fft.rfft(f * s.win).abs())(x.flatten(1).unfold(1, 16, 8)),
    win=lambda: (torch.hann_window(16),),
)
add("complex_output", lambda s, x: torch.complex(x[:, 0], x[:, 1]), refused="complex")

# ---- masks, indices, orders ------------------------------------------------------------------------------------------

add(
    "masked_mean",
    lambda s, x: (lambda m: (x * m).sum((2, 3)) / m.sum((2, 3)).clamp(min=1))((x > 0.5).float()),
)
add("where_scalar", lambda s, x: torch.where(x > 0.5, x, 0.1) + torch.where(x < 0, -1.0, x))
add("masked_fill_inf", lambda s, x: x.masked_fill(s.m, -math.inf).softmax(-1), m=lambda: (some(8, 8) > 1.0,))
add("assign_by_a_constant_mask", lambda s, x: _assigned(x, s.m), m=lambda: (some(8, 8) > 0.3,))
add("assign_by_a_computed_mask", lambda s, x: _assigned(x, x > 0.6))
add("constant_mask_index", lambda s, x: x[..., s.m], m=lambda: (torch.arange(8) % 3 == 0,))
add("constant_mask_of_a_plane", lambda s, x: x[:, :, s.m], m=lambda: (some(8, 8) > 0.3,))
add("mask_index", lambda s, x: x[x > 0.5].sum(), refused="mask")
add("nonzero", lambda s, x: x.flatten()[torch.nonzero(x.flatten() > 0.5)[:, 0]].sum(), refused="nonzero")
add("scatter_mask", lambda s, x: torch.zeros_like(x).scatter(-1, x.topk(3, -1)[1], 1.0) * x)
add(
    "scatter_reduce",
    lambda s, x: torch.zeros(1, 2, 8, 3).scatter_reduce(
        -1, s.i.expand(1, 2, 8, 8), x, "amax", include_self=False
    ),
    i=lambda: (torch.arange(8) % 3,),
)
add(
    "scatter_add_buckets", lambda s, x: torch.zeros(1, 2, 8, 4).scatter_add(-1, (x * 3).long().clamp(0, 3), x)
)
add(
    "index_put_accumulate",
    lambda s, x: torch.zeros(1, 2, 8, 3).index_put(
        (torch.tensor(0), torch.tensor([0, 1, 1])), x[0, :1, :, :3].expand(3, 8, 3), accumulate=True
    ),
)
add("roll_flip", lambda s, x: x.roll(3, -1) + x.flip((2, 3)).roll((1, -1), (1, 2)))
add("cumsum", lambda s, x: x.cumsum(-1) - x.flip(-1).cumsum(2).flip(-1))
add("topk_values", lambda s, x: x.flatten(1).topk(5)[0])
add("topk_indices", lambda s, x: x.flatten(1).topk(5)[1])
add("keep_topk", lambda s, x: x * (x >= x.flatten(1).topk(20)[0][:, -1].view(-1, 1, 1, 1)))
add(
    "sort_by_power",
    lambda s, x: (lambda p: x.gather(3, p.argsort(-1, descending=True)[:, None, None].expand(1, 2, 8, 8)))(
        x.square().sum((1, 2))
    ),
)
add("argmax_beam", lambda s, x: s.f(x.flatten(1)).argmax(-1), f=dense(128, 16))
add("beam_and_confidence", lambda s, x: s.f(x.flatten(1)).softmax(-1).max(-1), f=dense(128, 16))
add("one_hot_beam", lambda s, x: F.one_hot(s.f(x.flatten(1)).argmax(-1), 16).float(), f=dense(128, 16))
add("take_along", lambda s, x: torch.take_along_dim(x, x.argmin(1, keepdim=True), 1))
add("quantile_clip", lambda s, x: x.clamp(max=x.flatten(1).kthvalue(100)[0].view(-1, 1, 1, 1)))
add(
    "advanced_index",
    lambda s, x: x[:, [0, 1, 1], [2, 3, 4]] + x[:, s.i, 0],
    i=lambda: (torch.tensor([1, 0, 1]),),
)
add("ellipsis_none", lambda s, x: x[..., None, ::2] * x[:, :, None, :, 1::2].transpose(2, 3))
add("interleave", lambda s, x: torch.stack([x[..., ::2], x[..., 1::2]], -1).flatten(-2))
add("lookup", lambda s, x: s.e((x.clamp(0, 0.99) * 8).long()), e=lambda: nn.Embedding(8, 3))
add(
    "embedding_bag",
    lambda s, x: s.e((x[0, 0].clamp(0, 0.99) * 8).long()),
    e=lambda: nn.EmbeddingBag(8, 3),
)
add(
    "searchsorted_quantiser",
    lambda s, x: s.levels[torch.bucketize(x, s.edges)],
    levels=lambda: (torch.linspace(-1, 2, 9),),
    edges=lambda: (torch.linspace(-0.9, 1.9, 8),),
)
add(
    "tril_mask", lambda s, x: (x @ x.transpose(-1, -2)).masked_fill(~torch.tril(torch.ones(8, 8)).bool(), 0.0)
)
add("unique", lambda s, x: torch.unique((x * 3).round()), refused="unique")
add("multinomial", lambda s, x: torch.multinomial(x.flatten(1).softmax(-1), 3), refused="random")

# ---- pieces and pictures ---------------------------------------------------------------------------------------------

add("patches", lambda s, x: s.f(F.unfold(x, 4, stride=4).transpose(1, 2)), f=dense(32, 8))
add("unfold_fold", lambda s, x: F.fold(F.unfold(x, 3, padding=1, stride=2), (8, 8), 3, padding=1, stride=2))
add("unfold_dilated", lambda s, x: F.unfold(x, (2, 3), dilation=(2, 1), padding=(0, 1)))
add("bicubic_1_5", lambda s, x: F.interpolate(x, scale_factor=1.5, mode="bicubic", align_corners=False))
add("bicubic_corners", lambda s, x: F.interpolate(x, size=(5, 11), mode="bicubic", align_corners=True))
add(
    "bilinear_down_antialias",
    lambda s, x: F.interpolate(x, size=(5, 3), mode="bilinear", antialias=True),
)
add("nearest_1_7", lambda s, x: F.interpolate(x, scale_factor=1.7, mode="nearest"))
add(
    "nearest_recomputed",
    lambda s, x: F.interpolate(x, scale_factor=1.3, mode="nearest", recompute_scale_factor=True),
)
add("bilinear_0_6", lambda s, x: F.interpolate(x, scale_factor=(0.6, 1.4), mode="bilinear"))
add("linear_1d", lambda s, x: F.interpolate(x.flatten(2), size=37, mode="linear", align_corners=True))
add(
    "upsample_module",
    lambda s, x: s.c(s.u(x)),
    u=lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    c=conv(2, 2, 3),
)
add("pixel_shuffle", lambda s, x: F.pixel_shuffle(s.c(x), 2), c=conv(2, 8, 3, padding=1))
add("pixel_unshuffle", lambda s, x: s.c(F.pixel_unshuffle(x, 2)), c=conv(8, 4, 1))
add("space_to_depth", lambda s, x: x.view(1, 2, 4, 2, 4, 2).permute(0, 3, 5, 1, 2, 4).reshape(1, 8, 4, 4))
add(
    "affine_grid",
    lambda s, x: F.grid_sample(
        x,
        F.affine_grid(s.f(x.flatten(1)).view(1, 2, 3).tanh(), [1, 2, 6, 6], align_corners=True),
        align_corners=True,
        padding_mode="border",
    ),
    f=dense(128, 6),
)
add("reflection_pad", lambda s, x: s.c(s.p(x)), p=lambda: nn.ReflectionPad2d((2, 1, 0, 3)), c=conv(2, 3, 3))
add("replication_pad", lambda s, x: s.c(s.p(x)), p=lambda: nn.ReplicationPad2d(1), c=conv(2, 3, 3))
add("circular_pad", lambda s, x: s.c(s.p(x)), p=lambda: nn.CircularPad2d((1, 1, 2, 0)), c=conv(2, 3, 3))
add("circular_antennas", lambda s, x: s.c(F.pad(x, (1, 1, 0, 0), mode="circular")), c=conv(2, 4, (1, 3)))
add("constant_pad_value", lambda s, x: F.pad(x, (1, 2, 1, 0), value=-0.5) * 2)
add("crop_pad", lambda s, x: s.c(F.pad(x, (-1, -2, 1, 1))), c=conv(2, 3, 3))

# ---- convolutions and pooling ----------------------------------------------------------------------------------------

add(
    "depthwise_separable",
    lambda s, x: s.p(F.relu6(s.d(x))),
    d=conv(2, 8, 3, padding=1, groups=2),
    p=conv(8, 4, 1),
)
add(
    "dilated_grouped",
    lambda s, x: s.c(x),
    image(1, 4, 8, 8),
    c=conv(4, 8, 3, padding=2, dilation=2, groups=2),
)
add("strided_same", lambda s, x: s.c(x), c=conv(2, 4, (5, 2), stride=(2, 3), padding=(2, 1)))
add("padding_same_dilated", lambda s, x: s.c(x), c=conv(2, 4, (4, 3), padding="same", dilation=(1, 2)))
add(
    "transposed_output_padding",
    lambda s, x: s.c(x),
    c=lambda: nn.ConvTranspose2d(2, 3, (3, 4), stride=(2, 3), padding=1, output_padding=(1, 2)),
)
add(
    "transposed_grouped",
    lambda s, x: s.c(x),
    c=lambda: nn.ConvTranspose2d(2, 4, 4, stride=2, padding=1, groups=2, bias=False),
)
add(
    "transposed_output_size",
    lambda s, x: s.c(x, output_size=[16, 15]),
    c=lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1),
)
add(
    "conv3d",
    lambda s, x: s.b(s.c(x)),
    image(1, 2, 3, 6, 6),
    c=lambda: nn.Conv3d(2, 4, (2, 3, 3), stride=(1, 2, 1)),
    b=lambda: nn.BatchNorm3d(4),
)
add(
    "conv3d_grouped_dilated",
    lambda s, x: s.c(x),
    image(1, 2, 4, 6, 6),
    c=lambda: nn.Conv3d(2, 4, 3, padding=2, dilation=2, groups=2),
)
add(
    "transposed_3d",
    lambda s, x: s.c(x),
    image(1, 2, 3, 4, 4),
    c=lambda: nn.ConvTranspose3d(2, 3, 2, stride=2),
)
add(
    "transposed_1d",
    lambda s, x: s.c(x.flatten(2)),
    c=lambda: nn.ConvTranspose1d(2, 3, 5, stride=3, padding=2, output_padding=1, dilation=2),
)
add("causal_conv1d", lambda s, x: s.c(F.pad(x.flatten(2), (4, 0))), c=lambda: nn.Conv1d(2, 4, 3, dilation=2))
add(
    "fold_batch_norm",
    lambda s, x: F.leaky_relu(s.b(s.c(x)), 0.3),
    c=conv(2, 8, 3, padding=1, bias=False),
    b=lambda: nn.BatchNorm2d(8),
)
add(
    "norm_before_conv",
    lambda s, x: s.c(F.relu(s.b(x))),
    b=lambda: nn.BatchNorm2d(2),
    c=conv(2, 4, 3, padding=1),
)
add("adaptive_uneven", lambda s, x: F.adaptive_avg_pool2d(x, (3, 5)) + F.adaptive_max_pool2d(x, (3, 5)))
add("adaptive_none", lambda s, x: F.adaptive_avg_pool2d(x, (None, 1)))
add("adaptive_1d", lambda s, x: s.f(F.adaptive_avg_pool1d(x.flatten(2), 7)), f=dense(7, 3))
add("adaptive_3d", lambda s, x: F.adaptive_avg_pool3d(x, (2, 3, 5)), image(1, 2, 3, 7, 8))
add("lp_pool", lambda s, x: s.p(x), p=lambda: nn.LPPool2d(2, (2, 3), stride=2))
add("lp_pool_3", lambda s, x: F.lp_pool1d(x.flatten(2).abs(), 3, 4))
add(
    "max_pool_indices",
    lambda s, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
)
add(
    "max_pool_everything",
    lambda s, x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0), dilation=(1, 2), ceil_mode=True),
)
add(
    "avg_pool_everything",
    lambda s, x: F.avg_pool2d(x, (3, 2), 2, (1, 1), ceil_mode=True, count_include_pad=False),
)
add("avg_pool_divisor", lambda s, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=4))
add("pool_3d", lambda s, x: F.max_pool3d(x, 2, 1, 1) + F.avg_pool3d(x, 2, 1, 1), image(1, 2, 3, 6, 6))
add("fractional_pool", lambda s, x: F.fractional_max_pool2d(x, 2, output_size=4), refused="random")
add(
    "involution",
    lambda s, x: (F.unfold(x, 3, padding=1).view(1, 2, 9, 64) * s.k(x).view(1, 1, 9, 64)).sum(2).view_as(x),
    k=conv(2, 9, 1),
)
add(
    "dynamic_convolution",
    lambda s, x: F.conv2d(x, (s.a(x.mean((2, 3))).softmax(-1).view(3, 1, 1, 1, 1) * s.w).sum(0), padding=1),
    a=dense(2, 3),
    w=lambda: some(3, 4, 2, 3, 3),
)

# ---- norms and activations -------------------------------------------------------------------------------------------

add("group_norm", lambda s, x: s.n(s.c(x)), c=conv(2, 8, 3), n=lambda: nn.GroupNorm(4, 8))
add("instance_norm", lambda s, x: s.n(s.c(x)), c=conv(2, 8, 3), n=lambda: nn.InstanceNorm2d(8, affine=True))
add("instance_norm_tracked", lambda s, x: s.n(x), n=lambda: nn.InstanceNorm2d(2, track_running_stats=True))
add("instance_norm_1d", lambda s, x: s.n(x.flatten(2)), n=lambda: nn.InstanceNorm1d(2))
add(
    "layer_norm_channels",
    lambda s, x: s.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    n=lambda: nn.LayerNorm(2),
)
add("layer_norm_no_affine", lambda s, x: F.layer_norm(x, (2, 8, 8)))
add("rms_norm", lambda s, x: s.n(x), n=lambda: nn.RMSNorm(8))
add(
    "own_layer_norm", lambda s, x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5)
)
add(
    "own_rms_norm",
    lambda s, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * s.w,
    w=lambda: some(8),
)
add("local_response", lambda s, x: s.n(x), n=lambda: nn.LocalResponseNorm(2))
add("l2_normalised", lambda s, x: F.normalize(s.f(x.flatten(1)), dim=-1), f=dense(128, 8))
add(
    "power_constraint",
    lambda s, x: (lambda z: z / z.norm(dim=(1, 2), keepdim=True) * 8**0.5)(s.f(x.flatten(2))),
    f=dense(64, 8),
)
add(
    "min_max_scaled",
    lambda s, x: (
        (x - x.amin((1, 2, 3), keepdim=True))
        / (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True) + 1e-6)
    ),
)
add(
    "batch_norm_on_batch_statistics",
    lambda s, x: s.n(x),
    n=lambda: nn.BatchNorm2d(2, track_running_stats=False),
)
for _name, _module in {
    "selu": nn.SELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "mish": nn.Mish(),
    "softplus_beta": nn.Softplus(3, 4),
    "celu": nn.CELU(0.7),
    "elu": nn.ELU(0.5),
    "hardtanh": nn.Hardtanh(-0.3, 0.6),
    "hardshrink": nn.Hardshrink(0.4),
    "softshrink": nn.Softshrink(0.2),
    "threshold": nn.Threshold(0.4, 7.0),
    "glu": nn.GLU(1),
    "log_sigmoid": nn.LogSigmoid(),
    "softmin": nn.Softmin(-1),
    "softmax2d": nn.Softmax2d(),
    "log_softmax": nn.LogSoftmax(1),
    "tanhshrink": nn.Tanhshrink(),
    "relu6": nn.ReLU6(),
    "rrelu": nn.RReLU(),
    "prelu": nn.PReLU(2, 0.3),
    "hardswish": nn.Hardswish(),
    "inplace": nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(inplace=True), nn.LeakyReLU(0.1, inplace=True)),
}.items():
    add(_name, lambda s, x: s.a((x - 0.5) * 12), a=lambda m=_module: m)
add("snake", lambda s, x: x + torch.sin(s.a * x).square() / s.a, a=lambda: some(1, 2, 1, 1).abs() + 0.5)
add("swish_beta", lambda s, x: x * torch.sigmoid(s.beta * x), beta=lambda: torch.tensor(1.5))
add("maxout", lambda s, x: s.f(x.flatten(1)).view(1, 8, 3).max(-1)[0], f=dense(128, 24))

# ---- attention, transformers, recurrence ------------------------------------------------------------------------------

_TOKENS = image(1, 8, 16)


def attention(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.MultiheadAttention(16, 4, batch_first=True, **options)


add("mha", lambda s, x: s.a(x, x, x, need_weights=False)[0], _TOKENS, a=attention())
add("mha_and_weights", lambda s, x: s.a(x, x, x), _TOKENS, a=attention())
add("mha_weights_per_head", lambda s, x: s.a(x, x, x, average_attn_weights=False)[1], _TOKENS, a=attention())
add(
    "mha_bool_mask",
    lambda s, x: s.a(x, x, x, attn_mask=s.m)[0],
    _TOKENS,
    a=attention(),
    m=lambda: (torch.triu(torch.ones(8, 8), 1).bool(),),
)
add(
    "mha_added_mask",
    lambda s, x: s.a(x, x, x, attn_mask=s.m)[0],
    _TOKENS,
    a=attention(),
    m=lambda: (some(8, 8),),
)
add(
    "mha_causal",
    lambda s, x: s.a(x, x, x, attn_mask=nn.Transformer.generate_square_subsequent_mask(8), is_causal=True)[0],
    _TOKENS,
    a=attention(),
)
add(
    "mha_padding_mask",
    lambda s, x: s.a(x, x, x, key_padding_mask=x.mean(-1) > 0.55)[0],
    _TOKENS,
    a=attention(),
)
add(
    "mha_cross",
    lambda s, x: s.a(s.q.expand(1, -1, -1), x, x)[0],
    _TOKENS,
    a=attention(),
    q=lambda: some(1, 3, 16),
)
add("mha_other_widths", lambda s, x: s.a(x, x[..., :6], x[..., :9])[0], _TOKENS, a=attention(kdim=6, vdim=9))
add("mha_bias_kv", lambda s, x: s.a(x, x, x)[0], _TOKENS, a=attention(add_bias_kv=True, add_zero_attn=True))
add(
    "mha_sequence_first",
    lambda s, x: s.a(x, x, x)[0],
    image(8, 1, 16),
    a=lambda: nn.MultiheadAttention(16, 2),
)
add("sdpa_causal", lambda s, x: F.scaled_dot_product_attention(x, x, x, is_causal=True), image(1, 2, 8, 16))
add("sdpa_scale", lambda s, x: F.scaled_dot_product_attention(x, x, x, scale=0.7), image(1, 2, 8, 16))
add(
    "sdpa_bool",
    lambda s, x: F.scaled_dot_product_attention(x, x, x, attn_mask=s.m),
    image(1, 2, 8, 16),
    m=lambda: (some(8, 8) > 0,),
)
add(
    "sdpa_dropout",
    lambda s, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
    image(1, 2, 8, 16),
    refused="dropout",
)
add(
    "encoder_stack",
    lambda s, x: s.t(x),
    _TOKENS,
    t=lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu"), 2, norm=nn.LayerNorm(16)
    ),
)
add(
    "encoder_mask",
    lambda s, x: s.t(x, mask=s.m),
    _TOKENS,
    t=lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True),
        1,
        enable_nested_tensor=False,
    ),
    m=lambda: (nn.Transformer.generate_square_subsequent_mask(8),),
)
add(
    "decoder_stack",
    lambda s, x: s.t(x, x.flip(1), tgt_mask=s.m),
    _TOKENS,
    t=lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 2),
    m=lambda: (nn.Transformer.generate_square_subsequent_mask(8),),
)
add(
    "whole_transformer",
    lambda s, x: s.t(x, x[:, :5]),
    _TOKENS,
    t=lambda: nn.Transformer(16, 2, 1, 1, 32, batch_first=True),
)
add(
    "linear_attention",
    lambda s, x: (lambda q, k: q @ (k.transpose(1, 2) @ x) / (q @ k.sum(1)[..., None]))(
        F.elu(s.q(x)) + 1, F.elu(s.k(x)) + 1
    ),
    _TOKENS,
    q=dense(16, 16),
    k=dense(16, 16),
)
add(
    "rotary",
    lambda s, x: (lambda a, b, t: torch.cat([a * t.cos() - b * t.sin(), a * t.sin() + b * t.cos()], -1))(
        *x.chunk(2, -1), torch.outer(torch.arange(8.0), 100 ** (-torch.arange(8) / 8.0))
    ),
    _TOKENS,
)
add(
    "sinusoidal_positions",
    lambda s, x: x + torch.stack([(s.p * s.d).sin(), (s.p * s.d).cos()], -1).flatten(-2),
    _TOKENS,
    p=lambda: (torch.arange(8.0)[:, None],),
    d=lambda: (torch.exp(torch.arange(0, 16, 2) * -0.5),),
)
add(
    "class_token",
    lambda s, x: s.t(torch.cat([s.c.expand(x.shape[0], -1, -1), x], 1))[:, 0],
    _TOKENS,
    c=lambda: some(1, 1, 16),
    t=lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
)
add(
    "lstm_bidirectional",
    lambda s, x: s.r(x)[0],
    _TOKENS,
    r=lambda: nn.LSTM(16, 5, 2, batch_first=True, bidirectional=True),
)
add(
    "lstm_states",
    lambda s, x: (lambda y, h: (y[:, -1], h[0], h[1]))(*s.r(x)),
    _TOKENS,
    r=lambda: nn.LSTM(16, 6, batch_first=True),
)
add(
    "lstm_projected", lambda s, x: s.r(x)[0], _TOKENS, r=lambda: nn.LSTM(16, 6, batch_first=True, proj_size=3)
)
add(
    "lstm_started",
    lambda s, x: s.r(x, (s.h, s.h * 2))[0],
    _TOKENS,
    r=lambda: nn.LSTM(16, 6, batch_first=True),
    h=lambda: some(1, 1, 6),
)
add(
    "gru_bidirectional",
    lambda s, x: s.r(x)[0],
    image(8, 1, 16),
    r=lambda: nn.GRU(16, 5, 2, bidirectional=True),
)
add(
    "gru_last",
    lambda s, x: s.f(s.r(x)[1][-1]),
    _TOKENS,
    r=lambda: nn.GRU(16, 5, 2, batch_first=True),
    f=dense(5, 3),
)
add(
    "rnn_relu",
    lambda s, x: s.r(x)[0],
    _TOKENS,
    r=lambda: nn.RNN(16, 5, 2, nonlinearity="relu", batch_first=True),
)
add(
    "part_of_a_concatenation",
    lambda s, x: (lambda p: torch.cat([p, s.d(p)], 1)[:, :7])(s.p(x)),
    p=conv(2, 4, 1),
    d=conv(4, 4, 3, padding=1),
)
add(
    "distribution",
    lambda s, x: (
        torch.distributions.Normal(s.m, s.m.exp()).log_prob(x) + torch.distributions.Normal(0.0, 1.0).cdf(x)
    ),
    m=lambda: torch.zeros(8),
)
add("masked_select", lambda s, x: torch.masked_select(x, s.m), m=lambda: (torch.arange(8) % 3 > 0,))
add("film", lambda s, x: _film(s, x), fc=lambda: nn.Linear(2, 8))
add("lstm_cell", lambda s, x: _unrolled(s.r, x), _TOKENS, r=lambda: nn.LSTMCell(16, 4))
add("gru_cell", lambda s, x: s.r(x[:, 1], s.r(x[:, 0])), _TOKENS, r=lambda: nn.GRUCell(16, 4))
add("conv_gru", lambda s, x: _conv_gru(s, x), g=conv(4, 4, 3, padding=1), n=conv(4, 2, 3, padding=1))
add("bilinear_layer", lambda s, x: s.b(x[:, 0], x[:, 1]), b=lambda: nn.Bilinear(8, 8, 3))
add(
    "einsum_heads",
    lambda s, x: torch.einsum(
        "bhij,bjhd->bihd",
        torch.einsum("bihd,bjhd->bhij", *([x.view(1, 8, 4, 4)] * 2)).softmax(-1),
        x.view(1, 8, 4, 4),
    ).flatten(2),
    _TOKENS,
)
add(
    "einsum_ellipsis",
    lambda s, x: torch.einsum("...ij,jk->...ik", x, s.w) + torch.einsum("bcij->bcji", x)[..., :8],
    w=lambda: some(8, 8),
)
add("tensordot", lambda s, x: torch.tensordot(x, s.w, dims=([1, 3], [0, 1])), w=lambda: some(2, 8, 3))
add(
    "baddbmm",
    lambda s, x: torch.baddbmm(x, x, s.w, beta=0.5, alpha=2.0),
    image(1, 8, 8),
    w=lambda: some(1, 8, 8),
)
add("kronecker", lambda s, x: torch.kron(x[0, 0], s.w), w=lambda: some(2, 2))
add(
    "cdist_codebook",
    lambda s, x: torch.cdist(x.view(1, 16, 8), s.book[None]).argmin(-1),
    book=lambda: some(12, 8),
)


# ---- precision, numbers, entries ------------------------------------------------------------------------------------

add("half_inside", lambda s, x: s.f(x.flatten(1).half()).float(), f=lambda: nn.Linear(128, 8).half())
add("half_middle", lambda s, x: (s.c(x).half() * 3 + 1).relu().float(), c=conv(2, 4, 3))
add(
    "bfloat_inside",
    lambda s, x: F.gelu(s.f(x.flatten(1).bfloat16())).float(),
    f=lambda: nn.Linear(128, 8).bfloat16(),
)
add("double_inside", lambda s, x: (x.double().mean((2, 3), keepdim=True) * x.double()).float())
add("fake_quantised", lambda s, x: torch.fake_quantize_per_tensor_affine(x, 0.05, 10, 0, 255))
add("rounded", lambda s, x: (torch.round(x * 255) / 255).clamp(0, 1))
add("straight_through", lambda s, x: x + (torch.round(x * 15) / 15 - x).detach())
add("integers_out", lambda s, x: (x * 16).floor().clamp(0, 15).to(torch.int32))
add("uint8_out", lambda s, x: (x.clamp(0, 1) * 255).to(torch.uint8))
add("bool_out", lambda s, x: x > 0.5)
add("bits_packed", lambda s, x: ((x.flatten(1) > 0.5).int().view(1, -1, 8) << torch.arange(8).int()).sum(-1))
add(
    "bits_unpacked",
    lambda s, x: ((x[..., None] >> torch.arange(4)) & 1).float(),
    torch.arange(16).view(1, 16),
)
add("integer_in", lambda s, i: s.e(i).mean(1), torch.tensor([[1, 4, 2, 0]]), e=lambda: nn.Embedding(6, 8))
add(
    "integer_and_real_in",
    lambda s, x, i: s.f(torch.cat([x.flatten(1), s.e(i)], 1)),
    image(),
    torch.tensor([3]),
    f=dense(132, 4),
    e=lambda: nn.Embedding(6, 4),
)
add(
    "two_inputs",
    lambda s, x, snr: x * torch.sigmoid(s.f(snr)).view(1, 2, 1, 1),
    image(),
    torch.tensor([[12.0]]),
    f=dense(1, 2),
)
add("one_example_for_two_inputs", lambda s, x, y: x - 2 * y, _TOKENS, _TOKENS)
add("scalar_input", lambda s, x, a: x * a + 1, image(), torch.tensor(0.5))
add("scalar_output", lambda s, x: x.square().mean())
add(
    "dictionary_out",
    lambda s, x: {"code": s.f(x.flatten(1)), "power": x.square().sum((1, 2, 3)), "none": None},
    f=dense(128, 8),
)
add("nested_out", lambda s, x: (x.mean(1), [x.amax(1), {"deep": x.sum()}], None))
add("named_tuple_out", lambda s, x: torch.max(x, 1))
add("same_twice", lambda s, x: (x * 2, x * 2, x))
add("input_given_back", lambda s, x: (x, x.flatten(1)))
add("constant_out", lambda s, x: (x.relu(), s.w * 2), w=lambda: some(3))
add("ordered_dict_out", lambda s, x: OrderedDict(a=x + 1, b=x.mean()))


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


add("binarised_activations", lambda s, x: s.f(_Sign.apply(x.flatten(1) - 0.5)), f=dense(128, 8))


def _clamped(x: Tensor, low: float) -> Tensor:
    return torch.clamp(x, low) * 2


with quiet():
    _scripted = torch.jit.script(_clamped)


add("scripted_function", lambda s, x: _scripted(x, 0.3))
add(
    "scripted_module",
    lambda s, x: s.c(x).relu(),
    c=lambda: torch.jit.script(nn.Conv2d(2, 3, 3)),
    refused="TorchScript",
)
add(
    "traced_module", lambda s, x: s.c(x).relu(), c=lambda: torch.jit.trace(nn.Conv2d(2, 3, 3).eval(), image())
)
add(
    "checkpointed",
    lambda s, x: torch.utils.checkpoint.checkpoint(s.c, x, use_reentrant=False),
    c=conv(2, 3, 3),
)
add("autocast_inside", lambda s, x: _autocast(s.f, x.flatten(1)), f=dense(128, 8))
add("detached_clone", lambda s, x: x.detach().clone().mul_(2).add_(1).sub_(x))
add("shape_arithmetic", lambda s, x: x.reshape(x.size(0), x.shape[1] * x.shape[2], -1) / x.shape[-1] ** 0.5)
add("shape_branch", lambda s, x: x.mean(1) if x.shape[-1] > 4 else x)
add(
    "loop_over_parts",
    lambda s, x: torch.stack([s.c(part) for part in x.split(4, -1)], 1),
    c=conv(2, 2, 3, padding=1),
)
add(
    "new_tensors", lambda s, x: x + x.new_ones(8) + torch.zeros_like(x) + torch.full((8,), 2.0) + torch.eye(8)
)
add("python_max", lambda s, x: max(x.sum(), x.mean()))
add("branch_on_values", lambda s, x: x * 2 if x.mean() > 0.5 else x, refused="values")
add("item", lambda s, x: x * float(x.max().item()), refused="values")
add("dropout_left_on", lambda s, x: F.dropout(x, 0.2), refused="dropout")
add("dropout_2d_left_on", lambda s, x: F.dropout2d(x, 0.2, True), refused="dropout")
add("writes_to_its_input", lambda s, x: x.mul_(2) + 1)
add("noise", lambda s, x: x + 0.1 * torch.randn_like(x), refused="random")
add("gumbel", lambda s, x: F.gumbel_softmax(x.flatten(1), hard=True), refused="random")
add(
    "variational",
    lambda s, x: (lambda m, v: m + v.exp() * torch.randn(1, 4))(*s.f(x.flatten(1)).chunk(2, -1)),
    f=dense(128, 8),
    refused="random",
)
add("through_numpy", lambda s, x: torch.from_numpy(x.numpy() * 2), refused="numpy")
add("sort_of_many", lambda s, x: x.sort(-1)[0], torch.zeros(1, 100_000), refused="sort")
add("cumsum_of_many", lambda s, x: x.cumsum(-1), torch.zeros(1, 100_000), refused="cumsum")
add("branch_on_closeness", lambda s, x: x if torch.allclose(x, x.flip(-1)) else x * 2, refused="values")
add("tangent_in_forward", lambda s, x: torch.func.jvp(torch.sin, (x,), (x,))[1], refused="gradients")
add(
    "sparse_weights",
    lambda s, x: torch.sparse.mm(s.w.to_sparse(), x[0, 0]),
    w=lambda: some(8, 8),
    refused="sparse",
)
add("svd", lambda s, x: torch.linalg.svd(x[:, 0])[1], refused="svd")
add("power_of_a_matrix", lambda s, x: torch.linalg.matrix_power(x[:, 0], 3))


@network()
class Counting(nn.Module):
    """Writes to a buffer of its own that no answer depends on."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * 2


@network(refused="state")
class RunningMean(nn.Module):
    """Writes to a buffer that it reads."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.999).add_(x.mean() * 1e-6)
        return x - self.mean


# ---- networks of the field ---------------------------------------------------------------------------------------------


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.3),
            nn.Conv2d(8, channels, 3, padding=1), nn.BatchNorm2d(channels))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.body(x), 0.3)


@network()
class CsiNetLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(2, 2, 3, padding=1),
            nn.BatchNorm2d(2),
            nn.LeakyReLU(0.3),
            nn.Flatten(),
            nn.Linear(128, 32),
        )
        self.decoder = nn.Sequential(
            nn.Linear(32, 128), nn.Unflatten(1, (2, 8, 8)), _Block(2), _Block(2), nn.Conv2d(2, 2, 3, padding=1),
            nn.Sigmoid())  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@network()
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * self.gate(self.pool(y).flatten(1))[:, :, None, None]


@network()
class Cbam(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mlp = (
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Sequential(nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1)),
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1)))
        both = torch.cat([torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)], dim=1)
        return x * torch.sigmoid(self.spatial(both))


@network()
class CoordinateAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.h, self.w = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high, wide = x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)
        y = F.hardswish(self.mix(torch.cat([high, wide], 2)))
        a, b = torch.split(y, [8, 8], dim=2)
        return x * self.h(a).sigmoid() * self.w(b.permute(0, 1, 3, 2)).sigmoid()


@network()
class VectorQuantised(nn.Module):
    """A codeword as indices into a codebook, and the reconstruction beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.book = nn.Linear(128, 32), nn.Linear(32, 128), nn.Embedding(16, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.down(x.flatten(1)).view(-1, 8)
        apart = z.pow(2).sum(1, keepdim=True) - 2 * z @ self.book.weight.t() + self.book.weight.pow(2).sum(1)
        indices = apart.argmin(1)
        q = self.book(indices)
        q = z + (q - z).detach()
        return {"x": self.up(q.view(1, -1)).view(1, 2, 8, 8), "indices": indices}


@network(image(1, 16))
class DetNet(nn.Module):
    """Unfolded projected gradients: the channel is fixed, steps are learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("h", some(16, 8) * 0.3)
        self.steps = nn.Parameter(torch.full((4,), 0.1))
        self.layers = nn.ModuleList([nn.Linear(16, 8) for _ in range(4)])

    def forward(self, y: Tensor) -> Tensor:
        x = torch.zeros(y.shape[0], 8)
        for step, layer in zip(self.steps, self.layers, strict=True):
            gradient = (x @ self.h.t() - y) @ self.h
            x = torch.tanh(layer(torch.cat([x - step * gradient, x], 1)))
        return x


@network(image(1, 16))
class Lista(nn.Module):
    """Learnt shrinkage for sparse angles."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.threshold = (
            nn.Linear(16, 24, bias=False),
            nn.Linear(24, 24, bias=False),
            nn.Parameter(some(3, 24)),
        )

    def forward(self, y: Tensor) -> Tensor:
        b = self.first(y)
        x = torch.zeros_like(b)
        for t in self.threshold:
            z = b + self.again(x)
            x = torch.sign(z) * F.relu(z.abs() - t.abs())
        return x


@network(image(1, 2, 12, 14))
class ChannelEstimator(nn.Module):
    """Pilots on a grid, interpolated and refined."""

    def __init__(self) -> None:
        super().__init__()
        self.refine = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))

    def forward(self, y: Tensor) -> Tensor:
        pilots = y[:, :, ::3, 2::4]
        full = F.interpolate(pilots, size=y.shape[2:], mode="bilinear", align_corners=False)
        return full + self.refine(full)


@network(image(1, 4, 24))
class Positioning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(4, 8, 5, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 16, 3), nn.GELU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 3))  # fmt: skip
        self.register_buffer("scale", torch.tensor([100.0, 50.0, 3.0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        place = self.net(x) * self.scale
        return place, torch.linalg.vector_norm(place[:, :2], dim=-1)


@network(image(1, 6, 8))
class BeamTracker(nn.Module):
    """The next beams from the last six, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(8, 12, batch_first=True), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        out, h = self.gru(x)
        beams = [self.head(out[:, -1])]
        for _ in range(2):
            out, h = self.gru(beams[-1].unsqueeze(1), h)
            beams.append(self.head(out[:, 0]))
        return torch.stack(beams, 1).log_softmax(-1)


@network(image(1, 3, 2, 8, 8))
class ConvLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(1, 2, 8, 8)
        for t in range(x.size(1)):
            i, f, o, g = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h


@network()
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Conv2d(4, 8, 3, padding=1),
            nn.Conv2d(12, 2, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.max_pool2d(a, 2)))
        return self.c(torch.cat([a, F.interpolate(b, scale_factor=2, mode="nearest")], 1))


@network()
class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Sequential(nn.BatchNorm2d(2 + 3 * n), nn.ReLU(), nn.Conv2d(2 + 3 * n, 3, 3, padding=1))
                for n in range(3)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.layers:
            seen.append(layer(torch.cat(seen, 1)))
        return torch.cat(seen, 1)


@network()
class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.n1, self.n2 = nn.Conv2d(2, 8, 2, stride=2), nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens, self.channels = (
            nn.Linear(16, 16),
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x).flatten(2).transpose(1, 2)
        y = y + self.tokens(self.n1(y).transpose(1, 2)).transpose(1, 2)
        return (y + self.channels(self.n2(y))).mean(1)


@network()
class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.up, self.down, self.scale = (
            nn.LayerNorm(8, eps=1e-6),
            nn.Linear(8, 32),
            nn.Linear(32, 8),
            nn.Parameter(torch.full((8,), 0.1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


@network()
class Windows(nn.Module):
    """Shifted windows, as Swin has them, with a table of relative places."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.table = nn.Linear(2, 6), nn.Parameter(some(49, 1))
        at = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        apart = at[:, :, None] - at[:, None] + 3
        self.register_buffer("index", apart[0] * 7 + apart[1])

    def forward(self, x: Tensor) -> Tensor:
        y = (
            torch.roll(x.permute(0, 2, 3, 1), (-2, -2), (1, 2))
            .view(1, 2, 4, 2, 4, 2)
            .transpose(2, 3)
            .reshape(4, 16, 2)
        )
        q, k, v = self.qkv(y).chunk(3, -1)
        bias = self.table[self.index.view(-1)].view(16, 16)
        y = ((q @ k.transpose(-2, -1)) * 2**-0.5 + bias).softmax(-1) @ v
        y = y.view(1, 2, 2, 4, 4, 2).transpose(2, 3).reshape(1, 8, 8, 2)
        return torch.roll(y, (2, 2), (1, 2)).permute(0, 3, 1, 2)


@network(image(1, 8), image(1, 5, 5))
class Graph(nn.Module):
    """Users as nodes: messages over a normalised adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.message = nn.Linear(8, 20), nn.Linear(4, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        degree = adjacency.abs().sum(-1)
        normal = adjacency / (degree[..., None] * degree[:, None]).sqrt()
        y = self.lift(x).view(1, 5, 4)
        return F.relu(normal @ self.message(y)).amax(1)


@network(image(1, 2, 4, 8))
class Precoder(nn.Module):
    """Complex weights for 4 users and 8 antennas, of unit power."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))

    def forward(self, h: Tensor) -> Tensor:
        w = torch.view_as_complex(self.net(h).view(-1, 4, 8, 2))
        w = w / w.abs().square().sum((1, 2), keepdim=True).sqrt()
        gain = torch.complex(h[:, 0], h[:, 1]) @ w.transpose(1, 2)
        signal = gain.diagonal(dim1=1, dim2=2).abs() ** 2
        noise = gain.abs().square().sum(2) - signal + 0.1
        return torch.log2(1 + signal / noise).sum(-1)


@network()
class ShuffleUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)
        )
        self.stem = nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        y = torch.cat([left, self.a(right)], 1)
        return y.view(1, 2, 4, 8, 8).transpose(1, 2).reshape(1, 8, 8, 8)


@network()
class MixtureOfExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(128, 3), nn.ModuleList([nn.Linear(128, 8) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        every = torch.stack([expert(x) for expert in self.experts], 1)
        picked = torch.gather(every, 1, chosen[..., None].expand(-1, -1, 8))
        return (picked * (weights / weights.sum(-1, keepdim=True))[..., None]).sum(1)


@network(image(1, 8, 4))
class StateSpace(nn.Module):
    """A diagonal recurrence, unrolled, as S4 and its kin compute it step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Parameter(some(6)), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        decay, state, out = torch.exp(-F.softplus(self.a)), torch.zeros(1, 6), []
        for t in range(8):
            state = state * decay + self.b(x[:, t])
            out.append(self.c(state))
        return torch.stack(out, 1) + x


def _assigned(x: Tensor, mask: Tensor) -> Tensor:
    y = x.clone()
    y[mask.expand_as(y)] = 0.25
    return y


def _autocast(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    return y.float()


def _film(s: Any, x: Tensor) -> Tensor:
    """Scale and shift by parts of one layer's outputs; the views of these stand behind the product they belong to."""
    made = s.fc(x.mean((2, 3)))
    y = x * made[:, :2, None, None] + made[:, 2:4, None, None]
    return torch.max(y, x * made[:, 4:6, None, None] + made[:, 6:, None, None])


def _unrolled(cell: nn.Module, x: Tensor) -> Tensor:
    h = c = torch.zeros(1, 4)
    for t in range(4):
        h, c = cell(x[:, t], (h, c))
    return h


def _conv_gru(s: Any, x: Tensor) -> Tensor:
    h = torch.zeros_like(x)
    for _ in range(2):
        r, z = s.g(torch.cat([x, h], 1)).sigmoid().chunk(2, 1)
        h = (1 - z) * h + z * torch.tanh(s.n(torch.cat([x, r * h], 1)))
    return h


def made(name: str) -> tuple[nn.Module, Tensor | tuple[Tensor, ...]]:
    """A factory for ``edgecsi build tests/lower/idioms.py:made(name='LoRA')``."""
    module, inputs = (NETWORKS.get(name) or REFUSED[name][0])()
    return module, inputs if len(inputs) > 1 else inputs[0]


def main() -> None:
    """Build all of them, or those named, for the target named first, and call them between guard pages; print what is
    not as it should be."""
    import edgecsi
    from edgecsi import target as targets
    from edgecsi.errors import EdgecsiError
    from edgecsi.results.reliability.memory import Found, compile_guarded, judge
    from tests.lower import repositories
    from tests.lower.idioms import NETWORKS, REFUSED  # those of this file and of the other

    target, *asked = sys.argv[1:] or ["host"]
    counts = dict.fromkeys(("right", "refused by name", "other"), 0)
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        guarded = compile_guarded(targets.load(target).arch, folder)
        for number, name in enumerate(asked or [*NETWORKS, *REFUSED]):
            out = folder / f"net{number}"
            try:
                bundle = edgecsi.build(f"{repositories.__name__}:made(name={name!r})", target, out=out).bundle
                assert bundle is not None
                touched = judge(guarded, bundle, Found())
                found = "; ".join(touched) or (
                    "right" if name in NETWORKS else "built, and should be refused"
                )
            except EdgecsiError as error:
                named_so = name in REFUSED and REFUSED[name][1].lower() in str(error).lower()
                found = "refused by name" if named_so else str(error)
            except Exception as error:
                found = f"crashed: {type(error).__name__}: {error}"
            shutil.rmtree(out, ignore_errors=True)
            counts[found if found in counts else "other"] += 1
            if found not in counts:
                print(f"{name}: {found}", flush=True)
    print(f"{target}:", ", ".join(f"{n} {kind}" for kind, n in counts.items()))


if __name__ == "__main__":
    main()
