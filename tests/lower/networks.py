"""Networks as a user would write them, one factory each; build one with ``tests/lower/networks.py:attention``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attention() -> tuple[nn.Module, Tensor]:
    """A TransNet-style encoder layer."""
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval(), torch.rand(1, 32, 64)


def attention_gelu() -> tuple[nn.Module, Tensor]:
    """The other common form: GELU, normalised first, two heads."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 96, batch_first=True, activation="gelu", norm_first=True)
    return layer.eval(), torch.rand(1, 16, 32)


class Grouped(nn.Module):
    """ACRNet's means: 7×7, grouped and depthwise convolutions, PReLU of one and of many slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.norm, self.slopes = (
            nn.Conv2d(2, 16, 7, padding=3, bias=False),
            nn.BatchNorm2d(16),
            nn.PReLU(16),
        )
        self.depthwise, self.groups = (
            nn.Conv2d(16, 16, 7, padding=3, groups=16),
            nn.Conv2d(16, 24, 3, padding=1, groups=4),
        )
        self.slope, self.last = nn.PReLU(), nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.slopes(self.norm(self.wide(x)))
        return torch.sigmoid(self.last(self.slope(self.groups(self.depthwise(y)))) + x)


def grouped() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Grouped().eval(), torch.rand(1, 2, 32, 32)


class Strided(nn.Module):
    """Convolutions with stride and dilation, in one dimension and in two, at odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.strided, self.dilated = (
            nn.Conv2d(3, 10, 3, stride=2, padding=1),
            nn.Conv2d(10, 5, (3, 1), dilation=(2, 1)),
        )
        self.lopsided = nn.Conv2d(5, 6, (1, 5), stride=(1, 2), padding=(0, 2))
        self.line, self.skipping = nn.Conv1d(18, 7, 5, padding=2), nn.Conv1d(7, 4, 3, stride=3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.dilated(torch.relu(self.strided(x))), 0.3)
        y = F.elu(self.lopsided(y)).flatten(2)
        return self.skipping(self.line(y.reshape(1, 18, -1)))


def strided() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Strided().eval(), torch.randn(1, 3, 19, 24)


class Recurrent(nn.Module):
    """CsiNet-LSTM's tail."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(32, 24, num_layers=2, batch_first=True), nn.Linear(24, 32)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        return self.out(y) + x


def recurrent() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Recurrent().eval(), torch.rand(1, 5, 32)


class Transposed(nn.Module):
    """CLNet's decoder takes a transposed 1-D convolution for its dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv = nn.ConvTranspose1d(32, 128, 1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.fc(x.reshape(1, 32, 1)).reshape(1, 2, 8, 8))


def transposed() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Transposed().eval(), torch.randn(1, 32)


class Mixed(nn.Module):
    """Everything around the layers: chunk, cat, pad, mean, pooling, upsampling, rarer activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.max = nn.Conv2d(2, 8, 3, padding=1), nn.MaxPool2d(2)
        self.average = nn.AvgPool2d(3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.conv(x))
        y = self.average(y) + F.interpolate(self.max(y), scale_factor=2, mode="bilinear", align_corners=False)
        first, second = y.chunk(2, 1)
        y = F.pad(torch.cat([second, first, x], 1), (1, 1, 0, 2))
        y = y * torch.sigmoid(y.mean(dim=(2, 3), keepdim=True))
        y = F.silu(y) + F.softplus(y) + F.elu(y) + F.hardsigmoid(y) + F.hardswish(y) + F.gelu(y) + F.relu6(y)
        return F.interpolate(y, scale_factor=2, mode="nearest")


def mixed() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Mixed().eval(), torch.randn(1, 2, 16, 16)


class Views(nn.Module):
    """Parts of tensors, taken in every way, read by layers and given back as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Linear(24, 8),
            nn.Linear(40, 8),
            nn.Conv2d(2, 4, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split([24, 40], 1)
        image = x[:, 8:40].reshape(1, 2, 4, 4)
        y = torch.cat([self.first(a), self.second(b)], 1)
        y = y + self.third(image).reshape(1, 4, 16)[:, 2]
        return torch.cat([y, x[:, 3:7], x[:, -5:]], 1)


def views() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Views().eval(), torch.randn(1, 64)


class Branches(nn.Module):
    """Concatenations that can be written in place, of odd channel counts, and one of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(2, 5, (1, 5), padding=(0, 2))
        self.join, self.last = nn.Conv2d(11, 7, 3, padding=1), nn.Conv2d(20, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
        y = torch.relu(self.join(first))
        return self.last(torch.cat([first, y, x], 1)) + x


def branches() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Branches().eval(), torch.rand(1, 2, 32, 32)


class PassThrough(nn.Module):
    """The output is the input, in another shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 12)


def pass_through() -> tuple[nn.Module, Tensor]:
    return PassThrough().eval(), torch.rand(1, 24)


class Batched(nn.Module):
    """Several samples a call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


def batched() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Batched().eval(), torch.rand(3, 2, 8, 8)


NETWORKS = {
    made.__name__: made
    for made in (
        attention, attention_gelu, grouped, strided, recurrent, transposed, mixed, views, branches,
        pass_through, batched,
    )
}  # fmt: skip
