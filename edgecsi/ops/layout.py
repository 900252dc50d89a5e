"""How a tensor lies in memory.

Images are stored channel by channel (NCHW), optionally inside a *halo* of zeros, so that a convolution reads
its border without branches and without a padded copy: whoever writes an image also writes its halo. The right
halo of a row is the left halo of the next one, so a 3x3 border costs one column, not two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Layout:
    """Shape and placement of a tensor; offsets are in elements from the tensor's pointer.

    Attributes:
        shape: logical shape, batch first: ``(N, C, H, W)`` for images, anything else is stored row-major.
        dtype: ``float32``, ``float16``, ``uint8`` or ``int8``.
        halo: rows above, rows below, columns left, columns right of the image, images only.
        group: channels stored side by side innermost, ``[N, C/group, H, W, group]``; 1 is plain NCHW, 4 is what
            the int8 dot-product instructions read. Missing channels of the last group hold anything; their weights are 0.
        batch_stride: elements between samples; None when they follow each other. A slice of a wider buffer
            (a concatenation written in place) has the stride of that buffer.
        fill: what stands for 0 in the halo: 0, the zero point of a quantised image, or a number for every channel if
            something was subtracted from each. Then the halo below is a row higher than readers need: the last row's
            right halo is in the row that follows.
        peak: behind the last element lies one more, the largest magnitude of all, for who rounds them next. Of one
            sample only.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    group: int = 1
    batch_stride: int | None = None
    fill: float | tuple[float, ...] = 0
    peak: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) != 4 and (self.group != 1 or any(self.halo)):
            raise ValueError(f"only images have a halo or grouped channels, not {self.shape}")

    @property
    def channels(self) -> int:
        """Channels stored, the last group filled up."""
        return -(-self.shape[1] // self.group) * self.group

    @property
    def rows(self) -> int:
        """Rows stored per channel, halo included."""
        return self.halo[0] + self.shape[2] + self.halo[1]

    @property
    def pitch(self) -> int:
        """Pixels from one row to the next."""
        return self.shape[3] + max(self.halo[2], self.halo[3])

    @property
    def lead(self) -> int:
        """Pixels in front of the first column of a row; at least the left halo."""
        return max(self.halo[2], self.halo[3])

    @property
    def sample(self) -> int:
        """Elements of one sample, without the columns behind the last row."""
        if len(self.shape) != 4:
            return int(np.prod(self.shape[1:], dtype=np.int64))
        return self.channels * self.rows * self.pitch

    @property
    def stride(self) -> int:
        """Elements between samples."""
        return self.batch_stride if self.batch_stride is not None else self.sample

    @property
    def tail(self) -> int:
        """Elements behind the last sample that belong to the right halo of the last row."""
        return self.lead * self.group if len(self.shape) == 4 else 0

    @property
    def size(self) -> int:
        """Elements from the tensor's pointer to its end."""
        return (self.shape[0] - 1) * self.stride + self.sample + self.tail + self.peak

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def is_plain(self) -> bool:
        """True when the elements are contiguous in the order of the shape."""
        return not any(self.halo) and self.group == 1 and (self.shape[0] == 1 or self.stride == self.sample)

    def at(self, n: Any, c: Any, h: Any, w: Any) -> Any:
        """Offset of a pixel of an image; integers or TIR expressions. `c` must be an int if group > 1.

        `h` and `w` may lie in the halo (-1, H, …).
        """
        inner = c % self.group if self.group > 1 else 0
        plane = c // self.group if self.group > 1 else c
        pixel = (plane * self.rows + h + self.halo[0]) * self.pitch + w + self.lead
        return n * self.stride + (pixel * self.group + inner if self.group > 1 else pixel)

    def flat(self, n: Any, i: int) -> Any:
        """Offset of element `i` (row-major over the shape without the batch) of sample `n`; `i` an int."""
        if len(self.shape) != 4:
            return n * self.stride + i
        _, _, height, width = self.shape
        return self.at(n, i // (height * width), i // width % height, i % width)

    def runs(self, lanes: int) -> list[tuple[int, int]]:
        """Stretches of one sample that are contiguous in memory, as (first element, length ≤ lanes).

        In the row-major order of the shape, so element `i + k` of a run lies at ``flat(n, i) + k``.
        """
        total = int(np.prod(self.shape[1:], dtype=np.int64))
        whole = self.shape[3] if len(self.shape) == 4 and any(self.halo) else total
        result = []
        for start in range(0, total, whole):
            result += [(start + o, w) for o, w in vector_widths(whole, lanes)]
        return result

    # numpy side, for references and tests

    def store(self, values: NDArray[Any]) -> NDArray[Any]:
        """The buffer (1-D) that holds `values`, of the layout's shape."""
        memory = np.full(
            self.size, self.fill if isinstance(self.fill, int | float) else self.fill[-1], self.dtype
        )
        if not isinstance(self.fill, int | float):
            plane = self.rows * self.pitch
            for n, c in np.ndindex(self.shape[0], len(self.fill)):
                memory[n * self.stride + c * plane :][:plane] = self.fill[c]
        memory[self._index()] = values.reshape(self.shape)
        if self.peak:
            memory[-1] = np.abs(values).max()
        return memory

    def read(self, memory: NDArray[Any]) -> NDArray[Any]:
        """The tensor held by a buffer of `size` elements."""
        return memory[self._index()]

    def _index(self) -> NDArray[np.int64]:
        if len(self.shape) != 4:
            per = np.arange(self.sample).reshape(self.shape[1:])
            return per[None] + (np.arange(self.shape[0]) * self.stride).reshape(
                -1, *[1] * (len(self.shape) - 1)
            )
        n, c, h, w = np.ix_(*(np.arange(extent) for extent in self.shape))
        result: NDArray[np.int64] = self.at(n, c, h, w)
        return result


def vector_widths(extent: int, lanes: int) -> list[tuple[int, int]]:
    """Cover `extent` elements with vectors: (offset, width), widths are powers of two of at most `lanes`."""
    result, offset = [], 0
    while offset < extent:
        while lanes > extent - offset:
            lanes //= 2
        result.append((offset, lanes))
        offset += lanes
    return result
