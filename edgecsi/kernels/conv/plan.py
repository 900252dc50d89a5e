"""How an int8 convolution is computed: the blocking that the code generator and the weight packer agree on."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.ops.operators import Conv2d


@dataclass(frozen=True)
class Plan:
    """How one operator is computed: what the code generator and the weight packer agree on.

    Attributes:
        group: channels side by side in the input. paired: lanes hold two columns of two channels.
        lanes: pixels of one int32 vector. per: int32 vectors that one input vector feeds.
        outs, rows, cols: the tile. unroll: steps up to which a tile's sums are straight code; with more, the
            channel groups are a loop.
    """

    op: Conv2d
    group: int
    paired: bool
    lanes: int
    per: int
    outs: int
    rows: int
    cols: int
    unroll: int

    @property
    def unit(self) -> int:
        """Pixels of one input vector."""
        return self.lanes * self.per

    @property
    def starts(self) -> list[int]:
        """First columns of the input vectors of a row; the last one overlaps if the width is no multiple."""
        width = self.op.y.shape[3]
        starts = list(range(0, width - self.unit + 1, self.unit))
        return starts if width % self.unit == 0 else [*starts, width - self.unit]

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """Output channels tile by tile: (first, count)."""
        total = int(self.op.weight.shape[0])
        return [(o, min(self.outs, total - o)) for o in range(0, total, self.outs)]

    @cached_property
    def quads(self) -> NDArray[np.int8]:
        """Weights by what an instruction reads: ``[O, groups, KH, columns, per or 1, group or 4]``.

        Paired, even pixels 2j read columns (0,1) (2,3) … of the kernel from the same vectors from which odd
        ones read (-,0) (1,2) …; the fifth axis tells them apart.
        """
        w = np.asarray(self.op.weight, np.int8)
        outs, channels, kh, kw = w.shape
        if not self.paired:
            groups = -(-channels // self.group)
            full = np.zeros((outs, groups * self.group, kh, kw), np.int8)
            full[:, :channels] = w
            return full.reshape(outs, groups, self.group, kh, kw, 1).transpose(0, 1, 3, 4, 5, 2)
        wide = np.zeros((outs, 2, kh, kw + 3), np.int8)
        wide[:, :channels, :, 1 : kw + 1] = w
        columns = kw // 2 + 1
        result = np.zeros((outs, 1, kh, columns, 2, 4), np.int8)
        for t in range(columns):
            for q in range(2):
                result[:, 0, :, t, 0, 2 * q : 2 * q + 2] = wide[:, :, :, 2 * t + q + 1].transpose(0, 2, 1)
                result[:, 0, :, t, 1, 2 * q : 2 * q + 2] = wide[:, :, :, 2 * t + q].transpose(0, 2, 1)
        return result

    @property
    def groups(self) -> int:
        return int(self.quads.shape[1])

    @cached_property
    def taps(self) -> list[tuple[int, int]]:
        """(row, column) of the kernel's taps with any weight at all; columns as in `quads`."""
        used = self.quads.any(axis=(0, 1, 4, 5))
        return [(int(i), int(j)) for i, j in np.argwhere(used)] or [(0, 0)]

    @property
    def zips_bytes(self) -> bool:
        """Sums of even and odd pixels are brought together as codes: four times cheaper than before, but no step
        may read another tensor."""
        return (
            self.paired and self.op.y_quant is not None and all(s.operand is None for s in self.op.epilogue)
        )

    @property
    def looped(self) -> bool:
        """Channel groups are a loop."""
        return self.groups > 1 and self.groups * len(self.taps) > self.unroll

    @property
    def plane(self) -> int:
        """Bytes of one group of input channels."""
        x = self.op.x
        return x.rows * x.pitch * x.group

    @property
    def steps(self) -> list[int]:
        """Bytes from an output pixel's place in the input to what each step reads: the taps of one channel
        group if `looped`, else of all groups."""
        top, _, left, _ = self.op.padding
        apart = 2 if self.paired else self.op.dilation[1]
        down = self.op.dilation[0]
        taps = [((i * down - top) * self.op.x.pitch + j * apart - left) * self.group for i, j in self.taps]
        return taps if self.looped else [g * self.plane + tap for g in range(self.groups) for tap in taps]

    def split(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The last axis by the vectors that hold its pixels: if `paired`, even columns and then odd ones."""
        if not self.paired:
            return rows
        even, odd = rows[..., ::2], rows[..., 1::2]
        filled = np.zeros_like(even)
        filled[..., : odd.shape[-1]] = odd
        return np.concatenate([even, filled], -1)

    def split_at(self, left: Any, column: int, p: int) -> Any:
        """Where `split` puts the pixels of int32 vector `p` of the input vector at ``left + column``, of which
        `left` is a multiple of input vectors."""
        if not self.paired:
            return left + column + p * self.lanes
        half = -(-self.op.y.shape[3] // 2)
        return (column + p) % 2 * half + left // 2 + (column + p) // 2

    def step_quads(self, first: int, outs: int) -> NDArray[np.int8]:
        """Weights of some output channels, ``[groups * taps, outs, per or 1, quad]``, step by step."""
        rows, columns = (list(axis) for axis in zip(*self.taps, strict=True))
        picked = self.quads[first : first + outs, :, rows, columns]
        result: NDArray[np.int8] = np.moveaxis(picked, 0, 2).reshape(-1, outs, *picked.shape[3:])
        return result

    def bias(self, shift: int) -> NDArray[np.int32]:
        """Bias with the zero point folded in, ``[O]`` or ``[O, H, W]``; `shift` was taken from all codes."""
        assert self.op.x_quant is not None
        sums = self.op.weight.astype(np.int64).sum((1, 2, 3)) * (shift - self.op.x_quant.zero_point)
        if self.op.fine > 1:
            sums *= self.op.fine + 1
        bias = self.op.bias
        if bias is None:
            return np.asarray(sums, np.int32)
        if bias.ndim == 3 and (bias == bias[:, :1, :1]).all():
            bias = bias[:, 0, 0]
        shape = (-1, *[1] * (bias.ndim - 1))
        return np.asarray(bias.astype(np.int64) + sums.reshape(shape), np.int32)


def pairs_columns(op: Conv2d, narrowest: int) -> bool:
    """Two input channels would leave half of every quad empty: take two columns of each instead."""
    kernel = op.weight.shape[3]
    return op.weight.shape[1] <= 2 and kernel % 2 == 1 and op.dilation[1] == 1 and op.y.shape[3] >= narrowest
