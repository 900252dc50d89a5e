"""Random small networks over the supported operators: ``python -m tests.lower.random_networks --count 2000``.

A network is a seed: the same seed gives the same layers, weights and inputs. Each is compiled for this machine, run, and
compared with PyTorch. The count and what was found are printed; failures are printed with their seeds, which belong into
`SEEDS` once they are mended.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecsi.errors import EdgecsiError
from tests.lower._answers import Answers

SEEDS = (0, 1, 2, 3)
"""Networks that the tests build every time."""

Layer = Callable[[Tensor], Tensor]


class Steps(nn.Module):
    """Functions and modules, one after the other; now and then an earlier tensor of the same shape is added."""

    def __init__(self, steps: list[Layer]) -> None:
        super().__init__()
        self.steps = steps
        self.parts = nn.ModuleList([s for s in steps if isinstance(s, nn.Module)])

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for step in self.steps:
            x = step(x)
            earlier = [y for y in seen if y.shape == x.shape]
            if len(seen) % 3 == 0 and earlier:
                x = torch.tanh(x) + 0.5 * torch.tanh(earlier[0])
            seen.append(x)
        return x


def network(seed: int) -> tuple[nn.Module, Tensor]:
    """The network of a seed, and its input."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    x = torch.randn(1, chance.choice([1, 2, 3, 4, 8]), chance.choice([4, 7, 8]), chance.choice([4, 8, 9]))
    example, steps = x, []
    for _ in range(chance.randint(2, 7)):
        step = _images(chance, x) if x.dim() == 4 else _rows(chance, x)
        try:
            x = step(x).detach()
        except RuntimeError:  # an edge wider than the image
            continue
        steps.append(step)
        if x.numel() > 20_000:
            break
    return Steps(steps).eval(), example


def _batch_norm(kind: type[nn.Module], channels: int) -> nn.Module:
    norm = kind(channels).eval()
    with torch.no_grad():
        for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.5 if name.endswith("var") else -1, 1.5)
    return norm


def _images(chance: random.Random, x: Tensor) -> Layer:
    """A step on [1, C, H, W]."""
    _, c, h, w = x.shape
    out, kernel = chance.choice([1, 2, 4, 6, 8]), chance.choice([1, 3, (1, 3), (3, 1)])
    around = tuple(k // 2 for k in (kernel if isinstance(kernel, tuple) else (kernel, kernel)))
    axis, other = chance.choice([1, 2, 3]), chance.choice([-1, -2, -3])
    plane, slopes = torch.randn(h, w), torch.rand(c, 1, 1)
    order = torch.randperm(w)
    choices: list[Layer] = [
        nn.Conv2d(c, out, kernel, padding=around),
        nn.Conv2d(c, c, 3, padding=1, groups=c, padding_mode=chance.choice(["zeros", "reflect", "circular"])),
        nn.ConvTranspose2d(c, out, chance.choice([1, 2, 3]), stride=chance.choice([1, 2])),
        _batch_norm(nn.BatchNorm2d, c), nn.PReLU(c), nn.GroupNorm(c, c), nn.InstanceNorm2d(c), nn.LayerNorm(w),
        nn.Linear(w, chance.choice([4, 8, 9])), nn.Flatten(1), nn.Flatten(2),
        chance.choice([torch.relu, torch.sigmoid, torch.tanh, F.selu, F.elu, F.gelu, F.silu, F.softplus, F.hardswish]),
        lambda t: F.max_pool2d(t, 2, 1, ceil_mode=True), lambda t: F.avg_pool2d(t, 3, 2, 1, divisor_override=4),
        lambda t: F.interpolate(t, scale_factor=chance_scale, mode="nearest"),
        lambda t: F.interpolate(t, size=(h + 1, w + 2), mode="bilinear"),
        lambda t: F.pad(t, (1, 2, 0, 1), mode="reflect"), lambda t: t.softmax(axis), lambda t: t.flip(axis),
        lambda t: t.roll(1, other), lambda t: t.cumsum(other) * 0.1, lambda t: t.sort(other)[0],
        lambda t: t.transpose(2, 3), lambda t: t.permute(0, 1, 3, 2), lambda t: t.narrow(other, -t.shape[other], 1),
        lambda t: torch.cat([t, t.amax(1, keepdim=True), t.mean(1, keepdim=True)], 1),
        lambda t: torch.where(t > 0, t, t * slopes), lambda t: torch.where(t > 0, t, t * plane),
        lambda t: t / (plane.abs() + 1), lambda t: t[..., order],
        lambda t: t * torch.sigmoid(t.mean((2, 3), keepdim=True)),
        lambda t: t.clamp(-1, 1) + t.abs().sqrt(), lambda t: torch.fft.fft2(t).abs() * 0.1,
        lambda t: t.masked_fill(t < -1, 0.5), lambda t: F.scaled_dot_product_attention(t, t, t),
    ]  # fmt: skip
    chance_scale = chance.choice([2.0, 1.5])
    return chance.choice(choices)


def _rows(chance: random.Random, x: Tensor) -> Layer:
    """A step on [1, K] or [1, C, L]."""
    last = x.shape[-1]
    square = [n for n in (4, 8, 16) if last % n == 0]
    choices: list[Layer] = [
        nn.Linear(last, chance.choice([8, 16, 24])), nn.LayerNorm(last),
        chance.choice([torch.relu, torch.sigmoid, torch.tanh, F.gelu, F.silu]),
        lambda t: t.softmax(-1), lambda t: t.flip(-1), lambda t: t * 0.5 + 1,
        lambda t: t.argmax(-1, keepdim=True).float() + t,
        lambda t: t.topk(min(4, last), -1)[0], lambda t: t - t.mean(-1, keepdim=True),
    ]  # fmt: skip
    if x.dim() == 3:
        channels = x.shape[1]
        choices += [
            nn.Conv1d(channels, 4, 3, padding=1), _batch_norm(nn.BatchNorm1d, channels), nn.PReLU(channels),
            lambda t: t.transpose(1, 2),
            lambda t: t @ t.transpose(1, 2), lambda t: t[:, -1],
        ]  # fmt: skip
    elif square:
        side = chance.choice(square)
        choices += [lambda t: t.reshape(1, last // side, side // 2, 2), lambda t: t.reshape(1, -1, side)]
    return chance.choice(choices)


def verdict_of(seed: int) -> str:
    """``right``, or what went wrong; a refusal counts as one."""
    module, example = network(seed)
    try:
        compiled = Answers(module, [example])
    except EdgecsiError as error:
        return f"refused: {error.what}"
    for x in (example, torch.rand(example.shape)):
        if wrong := compiled.wrong(x):
            return f"wrong by {max(wrong.values()):.1e}"
    return "right"


def main() -> None:
    """Build `--count` networks from `--first` on, and print what was found."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts: dict[str, int] = {}
    for seed in range(options.first, options.first + options.count):
        found = verdict_of(seed)
        counts[found.split(":")[0].split(" ")[0]] = counts.get(found.split(":")[0].split(" ")[0], 0) + 1
        if found != "right":
            print(f"seed {seed}: {found}", flush=True)
    print(f"{options.count} networks:", ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
