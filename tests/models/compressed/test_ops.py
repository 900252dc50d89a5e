"""PyTorch computes a quantised layer bit for bit as the kernels' integer reference does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgecsi.models.compressed import ops
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d, Dense, Half, Quant

RNG = np.random.default_rng(0)


def floats(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def int8(*shape: int) -> NDArray[np.int8]:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def tensor(array: NDArray[Any] | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array)


@pytest.mark.parametrize("quant", [Quant(0.013, 121), Quant(0.0019, 128, 0.5), Quant(3e-7, 0), Quant(1e5, 7)])
def test_codes_are_those_of_the_reference(quant: Quant) -> None:
    halves = (np.arange(-600, 600) / 2 * quant.scale + quant.offset).astype(
        np.float32
    )  # ties, and saturation
    x = np.concatenate([halves, floats(5000, scale=100 * quant.scale) + np.float32(quant.offset)])
    codes = ops.quantize(torch.from_numpy(x), quant.scale, quant.zero_point, quant.offset)
    np.testing.assert_array_equal(codes.numpy(), quant.codes(x))


@pytest.mark.parametrize("bias_kind", ["none", "channel", "map"])
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "groups", "stride", "dilation"),
    [(2, 8, (3, 3), 1, 1, 1), (16, 2, (3, 3), 1, 2, 1), (8, 8, (1, 5), 4, 1, 2), (600, 3, (1, 1), 1, 1, 1)],
)
def test_convolution_equals_the_reference(
    channels: int,
    outputs: int,
    kernel: tuple[int, int],
    groups: int,
    stride: int,
    dilation: int,
    bias_kind: str,
) -> None:
    padding = (1, 2, 3, 0)
    size = [(8 + pad - dilation * (k - 1) - 1) // stride + 1 for pad, k in zip((3, 3), kernel, strict=True)]
    shape = {"none": None, "channel": (outputs,), "map": (outputs, *size)}[bias_kind]
    bias = None if shape is None else RNG.integers(-(2**20), 2**20, shape).astype(np.int32)
    codes = RNG.integers(0, 256, (2, channels, 8, 8)).astype(np.uint8)
    weight, scale = int8(outputs, channels // groups, *kernel), np.abs(floats(outputs))
    quant = Quant(0.0123, 77)
    op = Conv2d(
        x=Layout((2, channels, 8, 8), dtype="uint8", fill=200),
        y=Layout((2, outputs, *size)),
        weight=weight, bias=bias, scale=scale, x_quant=quant, groups=groups, padding=padding,
        stride=(stride, stride), dilation=(dilation, dilation),
    )  # fmt: skip
    ours = ops.qs8_conv2d(
        torch.from_numpy(codes), torch.from_numpy(weight), torch.from_numpy(scale), tensor(bias), quant.scale,
        quant.zero_point, 200, [stride] * 2, list(padding), [dilation] * 2, groups, 1,
    )  # fmt: skip
    np.testing.assert_array_equal(ours.numpy(), op.compute(codes))


def test_convolution_of_two_planes_equals_the_reference() -> None:
    codes = RNG.integers(0, 256, (2, 16, 8, 8)).astype(np.uint8)
    weight, scale, quant = int8(3, 8, 3, 3), np.abs(floats(3)), Quant(0.0123, 77)
    bias = RNG.integers(-(2**20), 2**20, 3).astype(np.int32)
    op = Conv2d(
        x=Layout((2, 16, 8, 8), dtype="uint8", fill=77), y=Layout((2, 3, 8, 8)), weight=weight, bias=bias,
        scale=scale, x_quant=quant, padding=(1, 1, 1, 1), fine=64,
    )  # fmt: skip
    ours = ops.qs8_conv2d(
        torch.from_numpy(codes), torch.from_numpy(weight), torch.from_numpy(scale), tensor(bias), quant.scale,
        quant.zero_point, 77, [1, 1], [1, 1, 1, 1], [1, 1], 1, 64,
    )  # fmt: skip
    np.testing.assert_array_equal(ours.numpy(), op.compute(codes))


@pytest.mark.parametrize("with_bias", [False, True])
def test_static_dense_equals_the_reference(with_bias: bool) -> None:
    codes, weight = RNG.integers(0, 256, (3, 2048)).astype(np.uint8), int8(40, 2048)
    scale, quant = np.abs(floats(40)), Quant(0.0071, 13)
    bias = RNG.integers(-(2**25), 2**25, 40).astype(np.int32) if with_bias else None
    op = Dense(
        x=Layout((3, 2048), dtype="uint8"),
        y=Layout((3, 40)),
        weight=weight,
        bias=bias,
        scale=scale,
        x_quant=quant,
    )
    ours = ops.qs8_linear(
        torch.from_numpy(codes),
        torch.from_numpy(weight),
        torch.from_numpy(scale),
        tensor(bias),
        quant.scale,
        13,
    )
    np.testing.assert_array_equal(ours.numpy(), op.compute(codes))


@pytest.mark.parametrize("with_bias", [False, True])
def test_static_dense_in_two_planes_equals_the_reference(with_bias: bool) -> None:
    x, weight, scale = floats(3, 2048), int8(40, 2048), np.abs(floats(40))
    x[0, :2] = (1e9, -1e9)
    quant = Quant(0.0171, 113, 0.25)
    bias = RNG.integers(-(2**25), 2**25, 40).astype(np.int32) if with_bias else None
    op = Dense(
        x=Layout((3, 2048)), y=Layout((3, 40)), weight=weight, bias=bias, scale=scale, x_quant=quant, fine=8
    )
    arrays = (torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(scale), tensor(bias))
    ours = ops.qs8_wide_linear(*arrays, quant.scale, quant.zero_point, quant.offset, 8)
    np.testing.assert_array_equal(ours.numpy(), op.compute(x))


def test_dynamic_dense_equals_the_reference_also_for_a_zero_sample() -> None:
    x, weight, scale, bias = floats(3, 300), int8(20, 300), np.abs(floats(20)), floats(20)
    x[1] = 0
    op = Dense(x=Layout((3, 300)), y=Layout((3, 20)), weight=weight, bias=bias, scale=scale, dynamic=True)
    ours = ops.qd8_linear(*(torch.from_numpy(a) for a in (x, weight, scale, bias)))
    np.testing.assert_array_equal(ours.numpy(), op.compute(x))


def test_int8_weights_and_tables_equal_the_reference() -> None:
    x, weight, scale, bias = floats(3, 300), int8(20, 300), np.abs(floats(20)), floats(20)
    op = Dense(x=Layout((3, 300)), y=Layout((3, 20)), weight=weight, bias=bias, scale=scale)
    ours = ops.qs8w_linear(*(torch.from_numpy(a) for a in (x, weight, scale, bias)))
    np.testing.assert_array_equal(ours.numpy(), op.compute(x))

    index, table = RNG.integers(0, 16, (20, 300)).astype(np.uint8), floats(16)
    op = Dense(x=Layout((3, 300)), y=Layout((3, 20)), weight=index, bias=bias, table=table)
    ours = ops.lut_linear(*(torch.from_numpy(a) for a in (x, index, table, bias)))
    np.testing.assert_array_equal(ours.numpy(), op.compute(x))


def test_operators_are_well_formed_for_export() -> None:
    codes = torch.from_numpy(RNG.integers(0, 256, (1, 2, 8, 8)).astype(np.uint8))
    weight, scale = torch.from_numpy(int8(4, 2, 3, 3)), torch.rand(4)
    torch.library.opcheck(ops.quantize, (torch.rand(1, 2, 8, 8), 0.1, 3, 0.5))
    torch.library.opcheck(
        ops.qs8_conv2d, (codes, weight, scale, None, 0.1, 3, 3, [1, 1], [1, 1, 1, 1], [1, 1], 1, 1)
    )
    x, dense = torch.rand(2, 16), torch.from_numpy(int8(4, 16))
    torch.library.opcheck(ops.qs8_linear, (x.to(torch.uint8), dense, scale, None, 0.1, 3))
    torch.library.opcheck(ops.qd8_linear, (x, dense, scale, torch.rand(4)))
    torch.library.opcheck(ops.qs8w_linear, (x, dense, scale, None))
    torch.library.opcheck(ops.lut_linear, (x, dense.abs().to(torch.uint8) % 16, torch.rand(16), None))


@pytest.mark.parametrize("with_bias", [False, True])
def test_int16_convolution_equals_the_reference_also_for_samples_without_a_range(with_bias: bool) -> None:
    padding = (1, 0, 2, 1)
    x = floats(5, 3, 6, 8)
    x[1] *= 0
    x[2] *= np.float32(1e-35)
    x[3] *= np.float32(1e30)
    x[4, 1, 2, 3] = np.inf
    weight = RNG.integers(-4000, 4001, (4, 3, 2, 3)).astype(np.int16)
    bias, scale = floats(4) if with_bias else None, np.abs(floats(4))
    op = Conv2d(
        x=Layout(x.shape), y=Layout((5, 4, 6, 9)), weight=weight, bias=bias, scale=scale, padding=padding, steps=9000
    )  # fmt: skip
    y = ops.qd16_conv2d(
        *map(torch.from_numpy, (x, weight, scale)), tensor(bias), op.steps, list(padding), [1, 1]
    )
    np.testing.assert_array_equal(y.numpy(), op.reference(x))
    assert np.isnan(y[4].numpy()).all()


@pytest.mark.parametrize("with_bias", [False, True])
def test_int16_dense_equals_the_reference_row_by_row(with_bias: bool) -> None:
    x = floats(2, 5, 300) * np.float32([[[1]], [[1e30]]])
    x[0, 1] *= 0
    x[0, 2] *= np.float32(1e-35)
    x[1, 3, 7], x[1, 4, 8] = np.inf, np.nan
    weight = RNG.integers(-900, 901, (20, 300)).astype(np.int16)
    weight[3, 7:9] = 0
    bias, scale = floats(20) if with_bias else None, np.abs(floats(20))
    op = Dense(
        x=Layout((10, 300)), y=Layout((10, 20)), weight=weight, bias=bias, scale=scale, steps=7000
    )  # fmt: skip
    arrays = *map(torch.from_numpy, (x, weight, scale)), tensor(bias)
    y = ops.qd16_linear(*arrays, op.steps)
    np.testing.assert_array_equal(y.numpy().reshape(10, 20), op.reference(x.reshape(10, 300)))
    assert np.isnan(y[1, 3:].numpy()).all()
    torch.library.opcheck(ops.qd16_linear, (torch.rand(2, 300), *arrays[1:], op.steps))


@pytest.mark.parametrize("with_bias", [True, False])
def test_dense_layer_in_half_precision_is_the_reference(with_bias: bool) -> None:
    x, weight, scale = (
        floats(2, 5, 70).astype(np.float16),
        floats(20, 70).astype(np.float16),
        np.abs(floats(20)),
    )
    x[1, 3, 4] = np.inf
    bias = floats(20) if with_bias else None
    op = Dense(x=Layout((10, 70), "float16"), y=Layout((10, 20)), weight=weight, bias=bias, scale=scale)
    arrays = *map(torch.from_numpy, (x, weight, scale)), tensor(bias)
    y = ops.f16_linear(*arrays)
    np.testing.assert_array_equal(y.numpy().reshape(10, 20), op.reference(x.reshape(10, 70)))
    exact = (x[0].astype(np.float64) @ weight.T.astype(np.float64)) * scale + (0 if bias is None else bias)
    np.testing.assert_allclose(y[0].numpy(), exact, atol=2e-2 * np.abs(exact).max())
    torch.library.opcheck(ops.f16_linear, (torch.rand(2, 70).half(), *arrays[1:]))


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_in_half_precision_is_the_reference(groups: int) -> None:
    """What is subtracted from every channel is what its halo holds."""
    padding, offset = (1, 0, 2, 1), [0.5, -2.0, 0.25, 8.0]
    x = floats(2, 4, 6, 8) * np.float32(100)
    x[1, 0, 0, 0] = 1e6
    half = ops.to_half(torch.from_numpy(x), offset, 0.25)
    shifted = x - np.array(offset, np.float32).reshape(-1, 1, 1)
    np.testing.assert_array_equal(half.numpy(), Half(0.25).codes(shifted))
    assert np.isinf(half.numpy()).sum() == 1
    fill = [-number * 0.25 for number in offset]
    weight, bias, scale = floats(4, 4 // groups, 2, 3).astype(np.float16), floats(4), np.abs(floats(4))
    op = Conv2d(
        x=Layout(x.shape, "float16", fill=tuple(fill)), y=Layout((2, 4, 3, 9)), weight=weight, bias=bias, scale=scale,
        padding=padding, groups=groups, stride=(2, 1),
    )  # fmt: skip
    y = ops.f16_conv2d(
        half, *map(torch.from_numpy, (weight, scale, bias)), fill, [2, 1], list(padding), [1, 1], groups
    )
    np.testing.assert_array_equal(y.numpy(), op.reference(half.numpy()))
    shape = ops.f16_conv2d(
        half.to("meta"), *(torch.from_numpy(a).to("meta") for a in (weight, scale, bias)), fill, [2, 1],
        list(padding), [1, 1], groups,
    ).shape  # fmt: skip
    assert shape == y.shape
