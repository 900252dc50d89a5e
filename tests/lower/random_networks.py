# ruff: noqa: E501
"""Random small networks over the supported operators: ``python -m tests.lower.random_networks --count 2000``.

A network is a seed: the same seed gives the same layers, weights and inputs. Each is compiled, run, and compared with
PyTorch: for this machine here, for a board (``--target rpi4``) under QEMU by the check of a build. Verdicts are added to
``--results FILE``, and a run goes on where the file ends; ``--publish`` writes the count into `docs/supported.md`. Seeds
of networks that failed belong into `SEEDS` once they are mended.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from edgecsi import rounding, verdict
from edgecsi.device.local import cpu_name
from edgecsi.errors import CheckFailed, EdgecsiError
from edgecsi.lower.export import tensors_of
from tests.lower._answers import TOLERANCE, Answers

SEEDS = (0, 1, 2, 3, 4, 5, 6, 7, 46, 272, 282, 631)
"""Networks that the tests build every time."""

COUNTS = Path(__file__).parents[2] / "docs" / "results" / "random-networks.json"

Layer = Callable[[Tensor], Tensor]


class Steps(nn.Module):
    """Functions and modules, one after the other; now and then an earlier tensor of the same shape is added. A second
    input is added where it first fits; some networks return tensors on the way too, in a dictionary."""

    def __init__(self, steps: list[Layer], outputs: list[int]) -> None:
        super().__init__()
        self.steps, self.outputs = steps, outputs
        self.parts = nn.ModuleList([s for s in steps if isinstance(s, nn.Module)])

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        seen = [x]
        for y in more:
            x = x + torch.tanh(y) * 0.5
        for step in self.steps:
            x = step(x)
            earlier = [y for y in seen if y.shape == x.shape]
            if len(seen) % 3 == 0 and earlier:
                x = torch.tanh(x) + 0.5 * torch.tanh(earlier[0])
            seen.append(x)
        return x if not self.outputs else {"last": x} | {f"step{n}": seen[n] for n in self.outputs}


def network(seed: int) -> tuple[nn.Module, Tensor | tuple[Tensor, ...]]:
    """The network of a seed, and its input or inputs."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    batch = chance.choice([1, 1, 1, 2])
    shape = chance.choice([
        (chance.choice([1, 2, 3, 4, 8]), chance.choice([4, 7, 8]), chance.choice([4, 8, 9])),
        (chance.choice([2, 4, 6]), chance.choice([8, 12])), (chance.choice([12, 16, 24]),),
        (chance.choice([1, 2]), 3, 4, chance.choice([4, 5])),
    ])  # fmt: skip
    x = torch.randn(batch, *shape)
    inputs = (x, torch.randn_like(x)) if chance.random() < 0.15 else (x,)
    steps: list[Layer] = []
    for _ in range(chance.randint(2, 7)):
        kind = {5: _volumes, 4: _images, 3: _sequences}.get(x.dim(), _rows)
        step = kind(chance, x)
        try:
            y = step(x).detach()
        except (RuntimeError, IndexError, ValueError):  # an edge wider than the image
            continue
        if y.dim() < 2 or not y.numel() or y.numel() > 20_000:
            continue
        x = y
        steps.append(step)
    outputs = (
        sorted(chance.sample(range(1, len(steps)), 1)) if len(steps) > 2 and chance.random() < 0.2 else []
    )
    return Steps(steps, outputs).eval(), inputs if len(inputs) > 1 else inputs[0]


def _lively(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.5 if name.endswith("var") else -1, 1.5)
    return norm.eval()


def _anywhere(chance: random.Random, x: Tensor) -> list[Layer]:
    """Steps on tensors of any shape."""
    axis, last = chance.randrange(1, x.dim()), x.shape[-1]
    length = x.shape[axis]
    row, order, mask = torch.randn(last), torch.randperm(length), torch.rand(last) > 0.4
    few, shift = min(3, length), chance.choice([1, -1, 2])
    fill = torch.rand(last)
    spectrum = torch.randn(last, dtype=torch.complex64) * 0.3
    return [
        chance.choice([
            torch.relu, torch.sigmoid, torch.tanh, F.selu, F.elu, F.gelu, F.silu, F.softplus, F.hardswish, F.mish, F.celu,
            F.relu6, F.hardsigmoid, F.softsign, F.logsigmoid, F.hardshrink, F.softshrink, F.tanhshrink, F.leaky_relu,
            lambda t: F.gelu(t, approximate="tanh"), lambda t: F.softplus(t, 2.0), lambda t: F.threshold(t, 0.1, -0.3),
        ]),
        chance.choice([torch.sin, torch.cos, torch.atan, torch.erf, lambda t: t.abs().sqrt(), lambda t: (t * 0.3).exp(),
                       lambda t: t.abs().log1p(), lambda t: torch.sign(t) * t.abs() ** 0.7, lambda t: t.square() * 0.3]),
        lambda t: t.softmax(axis), lambda t: t.log_softmax(axis), lambda t: t.flip(axis), lambda t: t.roll(shift, axis),
        lambda t: t.cumsum(axis) * 0.2, lambda t: t.cummax(axis)[0], lambda t: t.clamp(-1, 1).cumprod(axis),
        lambda t: t.sort(axis, descending=shift > 0)[0], lambda t: t.topk(few, axis)[0],
        lambda t: t.topk(few, axis, largest=False)[1].float() * 0.1 + 0.05,
        lambda t: t.argsort(dim=axis, stable=True).float() / length, lambda t: t * 0.5 + t.argmax(axis, keepdim=True) * 0.1,
        lambda t: torch.cat([t, t.amax(axis, keepdim=True), t.mean(axis, keepdim=True)], axis),
        lambda t: t - t.median(axis, keepdim=True)[0], lambda t: t.index_select(axis, order),
        lambda t: t.gather(axis, (t * 3).long().abs() % length), lambda t: t.narrow(axis, length // 2, length - length // 2),
        lambda t: torch.zeros_like(t).scatter_add(axis, (t * 3).long().abs() % length, t),
        lambda t: t.scatter(axis, t.argmin(axis, keepdim=True), 0.3),
        lambda t: t.index_add(axis, order[:few], t.narrow(axis, 0, few) * 0.5),
        lambda t: torch.where(t > row, t, t * row), lambda t: t.masked_fill(t < -1, 0.5), lambda t: t * mask,
        lambda t: t[..., mask] if bool(mask.any()) else t, lambda t: t / (row.abs() + 1), lambda t: t * fill + row,
        lambda t: ((t * 8).int() % 5 - (t * 4).int() // 3).float() * 0.2,
        lambda t: (((t * 16).int() >> 1) & 7 | 8).float() / 8, lambda t: ((t > 0) ^ (t > 0.5) | (t < -1)).float() + t * 0.1,
        lambda t: (t * 20).to(torch.int8).float() / 20, lambda t: torch.round(t * 4) / 4 + t % 0.7,
        lambda t: t + t.any(axis, keepdim=True) + (t > 0).all(axis, keepdim=True).int(),
        lambda t: F.one_hot(t.argmax(-1), last).float() * t, lambda t: t.half().float(), lambda t: (t.bfloat16() + 1).float(),
        lambda t: torch.fft.fft(t).abs() * 0.2, lambda t: torch.fft.rfft(t, dim=axis).imag + 0.1,
        lambda t: (torch.fft.fft(t) * spectrum).real * 0.3, lambda t: torch.fft.ifft(torch.complex(t, t.flip(-1)), dim=axis).imag,
        lambda t: F.normalize(t, dim=axis), lambda t: t / (t.norm() + 1), lambda t: t - t.mean(axis, keepdim=True),
        lambda t: t / (t.std(axis, keepdim=True) + 0.1), lambda t: t.std(axis, keepdim=True) * t,
        lambda t: t.logsumexp(axis, keepdim=True) + t, lambda t: t * 0.5 + t.mean(0, keepdim=True),
        lambda t: torch.bucketize(t, torch.tensor([-1.0, -0.2, 0.4, 1.0])).float() * 0.3,
        lambda t: torch.stack(t.unbind(axis)[::-1], axis), lambda t: t.repeat_interleave(2, axis),
        lambda t: sum(part.sum(axis, keepdim=True) * 0.2 for part in t.chunk(2, axis)) + t,
        lambda t: torch.diff(t, dim=axis), lambda t: t.unfold(axis, few, 1).mean(-1),
        lambda t: torch.addcmul(t, t, row, value=0.3), lambda t: t.lerp(row.expand_as(t), 0.3),
    ]  # fmt: skip


def _images(chance: random.Random, x: Tensor) -> Layer:
    """A step on [N, C, H, W]."""
    _, c, h, w = x.shape
    out, kernel = chance.choice([1, 2, 4, 6, 8]), chance.choice([1, 3, (1, 3), (3, 1)])
    around = tuple(k // 2 for k in (kernel if isinstance(kernel, tuple) else (kernel, kernel)))
    mode = chance.choice(["zeros", "reflect", "replicate", "circular"])
    groups = next(g for g in (4, 3, 2, 1) if c % g == 0)
    pool, stride = chance.choice([2, 3, (2, 3), (3, 2)]), chance.choice([1, 2, (1, 2), (2, 1)])
    ceil, count = chance.random() < 0.5, chance.random() < 0.5
    corners, scale = chance.random() < 0.5, chance.choice([2.0, 1.5, 0.7, (1.3, 2.0)])
    plane, slopes, heads = torch.randn(h, w), torch.rand(c, 1, 1), torch.rand(w, w)
    lower = torch.tril(torch.ones(h, h, dtype=torch.bool))
    wide = chance.choice([(1, 2, 0, 1), (0, 1, 1, 0), (2, 2, 1, 1)])
    layers: list[Layer] = [
        nn.Conv2d(c, out, kernel, padding=around), nn.Conv2d(c, c, 3, padding=1, groups=c, padding_mode=mode),
        nn.Conv2d(c, 4 * groups // groups * groups, kernel, stride, groups=groups, bias=ceil),
        nn.Conv2d(c, out, 3, padding=2, dilation=2, padding_mode=mode), nn.Conv2d(c, out, (2, 3), padding="same"),
        nn.Sequential(nn.Conv2d(c, out, 3, padding=1), _lively(nn.BatchNorm2d(out)), nn.LeakyReLU(0.2)),
        nn.Sequential(_lively(nn.BatchNorm2d(c)), nn.ReLU(), nn.Conv2d(c, out, 1)),
        parametrizations.weight_norm(nn.Conv2d(c, out, 3, padding=1)),
        nn.ConvTranspose2d(c, out, chance.choice([1, 2, 3]), stride=chance.choice([1, 2])),
        nn.ConvTranspose2d(c, 2 * groups, (3, 4), stride=2, padding=1, output_padding=(1, 0), groups=groups),
        nn.ConvTranspose2d(c, out, 3, dilation=2, bias=False), _lively(nn.BatchNorm2d(c)), nn.PReLU(c),
        nn.GroupNorm(groups, c), nn.InstanceNorm2d(c), nn.LayerNorm(w), nn.LayerNorm((h, w)), nn.LayerNorm((c, h, w)),
        nn.Linear(w, chance.choice([4, 8, 9])), nn.Flatten(1), nn.Flatten(2), nn.Flatten(1, 2),
    ]  # fmt: skip
    functions: list[Layer] = [
        lambda t: F.max_pool2d(t, pool, stride, chance_pad, ceil_mode=ceil), lambda t: F.max_pool2d(t, 2, 1, dilation=2),
        lambda t: F.avg_pool2d(t, pool, stride, chance_pad, ceil, count), lambda t: F.avg_pool2d(t, 3, 2, 1, divisor_override=4),
        lambda t: F.adaptive_avg_pool2d(t, (3, 5)), lambda t: F.adaptive_max_pool2d(t, (2, 3)), lambda t: F.lp_pool2d(t, 2, 2),
        lambda t: F.interpolate(t, scale_factor=scale, mode="nearest"),
        lambda t: F.interpolate(t, size=(h + 1, w - 1), mode="nearest-exact"),
        lambda t: F.interpolate(t, size=(h + 1, w + 2), mode="bilinear", align_corners=corners),
        lambda t: F.interpolate(t, scale_factor=scale, mode="bicubic", align_corners=corners),
        lambda t: F.pad(t, wide, mode="constant" if mode == "zeros" else mode), lambda t: F.pad(t, (-1, 1, 1, -1), value=0.4),
        lambda t: t.transpose(2, 3), lambda t: t.permute(0, 2, 3, 1), lambda t: torch.where(t > 0, t, t * slopes),
        lambda t: torch.where(t > 0, t, t * plane), lambda t: t * torch.sigmoid(t.mean((2, 3), keepdim=True)),
        lambda t: torch.fft.fft2(t).abs() * 0.1, lambda t: F.scaled_dot_product_attention(t, t, t),
        lambda t: F.scaled_dot_product_attention(t, t, t, is_causal=True),
        lambda t: F.scaled_dot_product_attention(t, t, t, attn_mask=lower, scale=0.4),
        lambda t: F.unfold(t, (2, 3), padding=1, stride=stride), lambda t: F.fold(F.unfold(t, 3, padding=1), (h, w), 3, padding=1) / 5,
        lambda t: F.pixel_shuffle(torch.cat([t] * 4, 1), 2), lambda t: F.pixel_unshuffle(t, 2), lambda t: F.glu(t, 1),
        lambda t: F.channel_shuffle(t, groups), lambda t: torch.einsum("nchw,ndhw->ncd", t, t) * 0.1,
        lambda t: torch.einsum("nchw,wv->nchv", t, heads), lambda t: t @ t.transpose(2, 3) * 0.3,
        lambda t: torch.cdist(t.flatten(2), t.flatten(2)), lambda t: t[:, 0], lambda t: t.tril() + t.triu(1) * 0.5,
        lambda t: F.grid_sample(t, torch.tanh(t[:, :1, :, :1].expand(-1, 3, 4, 2)), align_corners=corners),
        lambda t: t[:, :, [0, 1], [1, 0]], lambda t: F.cosine_similarity(t, t.flip(1) + 0.2, dim=1),
    ]  # fmt: skip
    chance_pad = 1 if pool == 3 else 0
    return chance.choice(chance.choice([layers, functions, _anywhere(chance, x)]))


def _volumes(chance: random.Random, x: Tensor) -> Layer:
    """A step on [N, C, D, H, W]."""
    c, d, h, w = x.shape[1:]
    out = chance.choice([1, 2, 4])
    choices: list[Layer] = [
        nn.Conv3d(c, out, 3, padding=1), nn.Conv3d(c, out, (1, 2, 3), stride=(1, 2, 1)), nn.ConvTranspose3d(c, out, 2, stride=2),
        nn.Conv3d(c, c, 3, padding=2, dilation=2, groups=c), _lively(nn.BatchNorm3d(c)), nn.InstanceNorm3d(c),
        nn.Flatten(1, 2), nn.Flatten(1), lambda t: F.max_pool3d(t, 2, 1, 1), lambda t: F.avg_pool3d(t, (1, 2, 2)),
        lambda t: F.adaptive_avg_pool3d(t, (2, 3, 2)), lambda t: t.mean(2),
        lambda t: F.interpolate(t, size=(d, h + 2, w), mode="trilinear"), lambda t: F.pad(t, (1, 1, 0, 1, 1, 0)),
        lambda t: t.permute(0, 2, 1, 4, 3),
    ]  # fmt: skip
    return chance.choice(chance.choice([choices, choices, _anywhere(chance, x)]))


class _First(nn.Module):
    """The first output of a layer that has several, such as a recurrence; attention with itself."""

    def __init__(self, layer: nn.Module, times: int = 1, **options: Any) -> None:
        super().__init__()
        self.layer, self.times, self.options = layer, times, options

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(*[x] * self.times, **self.options)[0]


def _sequences(chance: random.Random, x: Tensor) -> Layer:
    """A step on [N, L, D]."""
    _, length, width = x.shape
    two = chance.random() < 0.5
    heads = next(n for n in (4, 2, 1) if width % n == 0)
    causal = nn.Transformer.generate_square_subsequent_mask(length)
    forbidden = torch.rand(length, length) > 0.7
    forbidden.fill_diagonal_(fill_value=False)
    weight = torch.randn(width, 6)
    recurrent = chance.choice([nn.LSTM, nn.GRU, nn.RNN])
    attention = nn.MultiheadAttention(width, heads, batch_first=True)
    feed = nn.TransformerEncoderLayer(
        width, heads, 12, batch_first=True, norm_first=two, activation=chance.choice(["relu", "gelu"])
    )
    choices: list[Layer] = [
        nn.Linear(width, chance.choice([8, 12, 16])), nn.LayerNorm(width), nn.RMSNorm(width),
        _First(recurrent(width, 5, chance.choice([1, 2]), batch_first=True, bidirectional=two)),
        _First(nn.LSTM(width, 6, batch_first=True, proj_size=3)), _First(attention, 3),
        _First(attention, 3, attn_mask=causal), _First(attention, 3, attn_mask=forbidden, need_weights=False), feed,
        nn.Conv1d(length, 4, 3, padding=1, padding_mode=chance.choice(["zeros", "reflect"])),
        nn.ConvTranspose1d(length, 3, 3, stride=2, output_padding=1), _lively(nn.BatchNorm1d(length)), nn.PReLU(length),
        lambda t: t.transpose(1, 2), lambda t: t @ t.transpose(1, 2) * 0.3, lambda t: t[:, -1], lambda t: t @ weight,
        lambda t: F.max_pool1d(t, 3, 2, 1), lambda t: F.avg_pool1d(t, 2), lambda t: F.adaptive_avg_pool1d(t, 5),
        lambda t: F.interpolate(t, scale_factor=1.6, mode="linear"), lambda t: t.unsqueeze(1), nn.Flatten(1),
        lambda t: F.embedding((t * 2).long().abs() % width, weight).mean(-2),
        lambda t: F.pad(t, (2, 1), mode="replicate"), lambda t: torch.einsum("nld,nmd->nlm", t, t) * 0.2,
    ]  # fmt: skip
    return chance.choice(chance.choice([choices, choices, _anywhere(chance, x)]))


def _rows(chance: random.Random, x: Tensor) -> Layer:
    """A step on [N, K]."""
    last = x.shape[-1]
    choices: list[Layer] = [
        nn.Linear(last, chance.choice([8, 16, 24])), nn.Linear(last, 12, bias=False), nn.LayerNorm(last),
        parametrizations.spectral_norm(nn.Linear(last, 8)).eval(), nn.Sequential(nn.Linear(last, 16), nn.ReLU()),
        nn.Sequential(nn.Linear(last, 16), _lively(nn.BatchNorm1d(16))), lambda t: t * 0.5 + 1,
        lambda t: t.argmax(-1, keepdim=True).float() + t, lambda t: torch.outer(t.flatten(), t[0])[None] * 0.3,
    ]  # fmt: skip
    sides = [n for n in (4, 8, 16) if last % n == 0]
    if sides:
        side = chance.choice(sides)
        choices += [
            lambda t: t.reshape(t.shape[0], last // side, side // 2, 2), lambda t: t.reshape(t.shape[0], -1, side),
            nn.Unflatten(1, (last // side, side)),
        ]  # fmt: skip
    return chance.choice(chance.choice([choices, choices, _anywhere(chance, x)]))


def verdict_of(seed: int, target: str = "host") -> str:
    """``right``, ``right within rounding``, ``on an edge``, ``refused: …``, or ``wrong …``."""
    torch.set_num_threads(1)
    module, example = network(seed)
    inputs = example if isinstance(example, tuple) else (example,)
    if target != "host":
        return _built(seed, target)
    try:
        compiled = Answers(module, inputs)
    except EdgecsiError as error:
        return f"refused: {error.what}"
    amplified = False
    with torch.no_grad():
        for given in (
            inputs,
            *(tuple(scale * torch.rand_like(x) - shift for x in inputs) for scale, shift in ((1, 0), (6, 3))),
        ):
            apart = max(compiled.wrong(*given).values(), default=0.0)
            if apart <= TOLERANCE:
                continue
            moved = rounding.moved(module, given)
            if any(
                undecided(m, expected)
                for m, (_, expected) in zip(moved, compiled.answers(*given), strict=True)
            ):
                return "on an edge"
            for m, (y, expected) in zip(moved, compiled.answers(*given), strict=True):
                if verdict.within_rounding(y, expected, m) is None:
                    return f"wrong by {apart:.1e}, rounding explains {reach(m, expected).max():.1e}"
            amplified = True
    return "right within rounding" if amplified else "right"


def reach(moved: NDArray[np.float64], expected: NDArray[Any]) -> NDArray[np.float64]:
    """How far rounding alone moves every number of an answer, of the largest."""
    return moved / (float(np.abs(expected[np.isfinite(expected)]).max(initial=0)) or 1.0)


def undecided(moved: NDArray[np.float64], expected: NDArray[Any]) -> bool:
    """Whether rounding decides more of an answer than a build lets it."""
    edges = reach(moved, expected) > verdict.DECIDED
    return bool(edges.sum() > verdict.UNDECIDED * edges.size)


def _built(seed: int, target: str) -> str:
    """By a whole build, whose check runs the library under QEMU."""
    import edgecsi

    with tempfile.TemporaryDirectory() as folder:
        try:
            edgecsi.build(f"{__file__}:network(seed={seed})", target, out=Path(folder) / "net")
        except CheckFailed as error:
            module, example = network(seed)
            given = example if isinstance(example, tuple) else (example,)
            with torch.no_grad():
                wanted = [t.numpy() for t in tensors_of(module(*given))]
            moved = rounding.moved(module, given)
            edge = any(undecided(m, expected) for m, expected in zip(moved, wanted, strict=True))
            return "on an edge" if edge else f"wrong: {error.why}"
        except EdgecsiError as error:
            return f"refused: {error.what}"
    return "right"


def publish(results: Path) -> None:
    """Count verdicts of a results file, and keep the counts with the machine and versions that found them."""
    counts: dict[str, dict[str, int]] = {}
    for line in results.read_text("utf-8").splitlines():
        found = json.loads(line)
        kinds = counts.setdefault(found["target"], {})
        kinds[kind_of(found["verdict"])] = kinds.get(kind_of(found["verdict"]), 0) + 1
    versions = {name: importlib.metadata.version(name) for name in ("torch", "apache-tvm", "numpy")}
    told = {
        "date": datetime.now(UTC).date().isoformat(), "cpu": cpu_name(), "versions": versions,
        "counts": {target: dict(sorted(kinds.items())) for target, kinds in sorted(counts.items())},
    }  # fmt: skip
    COUNTS.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


def published() -> str:
    """The section of `docs/supported.md` about what was found."""
    told = json.loads(COUNTS.read_text("utf-8"))
    kinds = sorted({kind for counts in told["counts"].values() for kind in counts})
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    rows = [
        f"| {target} | {sum(counts.values())} | {' | '.join(str(counts.get(kind, 0)) for kind in kinds)} |"
        for target, counts in told["counts"].items()
    ]
    return f"""## Random networks

Networks of two to seven operators drawn at random are built and compared with PyTorch, on three inputs each:

    python -m tests.lower.random_networks --count 2000 --results random.jsonl --publish

(`--target rpi4` for a board, under QEMU; a run goes on where the file ends.) *Right* is within 1e-5 of the largest
output; *within rounding* is further away, but by less than four times what moving every intermediate result by one unit
in its last place does to PyTorch's own answer, and by less than a thousandth, numbers apart that this moves by more than
1 % (a value is rounded, compared or sorted): a twentieth of an answer at the most, as in the check of a build; *on an
edge* is a network where these are more.

{told["date"]}, {told["cpu"]}, {versions}:

| target | networks | {" | ".join(kinds)} |
|---|---:|{"---:|" * len(kinds)}
{chr(10).join(rows)}
"""


def kind_of(verdict: str) -> str:
    """A verdict without its figures."""
    return verdict.partition(":")[0].partition(" by")[0]


def main() -> None:
    """Build `--count` networks from `--first` on, and print what was found."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--target", default="host")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    known: dict[int, str] = {}
    if options.results is not None and options.results.exists():
        lines = [json.loads(line) for line in options.results.read_text("utf-8").splitlines()]
        known = {line["seed"]: line["verdict"] for line in lines if line["target"] == options.target}
    counts: dict[str, int] = {}
    for seed in range(options.first, options.first + options.count):
        found = known.get(seed)
        if found is None:
            try:
                found = verdict_of(seed, options.target)
            except Exception as error:
                found = f"crashed: {type(error).__name__}: {error}"[:300]
            if options.results is not None:
                with options.results.open("a") as file:
                    print(json.dumps({"seed": seed, "target": options.target, "verdict": found}), file=file)
        counts[kind_of(found)] = counts.get(kind_of(found), 0) + 1
        if not found.startswith("right"):
            print(f"seed {seed}: {found}", flush=True)
    print(f"{options.count} networks:", ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())))
    if options.publish:
        publish(options.results)
        from tests.lower import supported

        page = supported.PAGE.read_text("utf-8").partition("## Random networks")[0]
        supported.PAGE.write_text(page + published(), "utf-8")


if __name__ == "__main__":
    main()
