"""Copies, activations and sums that could not be fused into anything: one pass over the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.ops.layout import Layout, vector_widths
from edgecsi.ops.operators import Elementwise, Quant
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class ElementwiseKernel(Kernel):
    """Any layout to any other with the same elements, row by row."""

    op = Elementwise

    def refuses(self, op: Elementwise, target: Target) -> str:
        shape = view(op)
        if as_image(op.x, shape).shape != shape or as_image(op.y, shape).shape != shape:
            return "a change of shape between two images with halos"
        flattened = len(op.y.shape) == 2 and shape != lifted(op.y.shape)
        if flattened and any(step.constants for step in op.epilogue):
            return "constants for every feature of a flattened image"
        return ""

    def knobs(self, op: Elementwise, target: Target) -> Knobs:
        return {"lanes": target.lanes_f32}

    def cost(self, op: Elementwise, target: Target, knobs: Knobs) -> Cost:
        moved = sum(i.nbytes for i in op.inputs) + op.y.nbytes
        return Cost(seconds=moved / (target.l1_gbps * 1e9) * 2, bytes=0, macs=0)

    def constants(self, op: Elementwise, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        from edgecsi.kernels.emit import epilogue_constants

        return list(epilogue_constants(op))

    def emit(self, op: Elementwise, target: Target, knobs: Knobs) -> PrimFunc:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        shape = view(op)
        x, y = as_image(op.x, shape), as_image(op.y, shape)
        features = len(op.y.shape) == 2  # every lane is a channel of its own
        n, channels, height, width = y.shape
        constants = self.constants(op, target, knobs)
        with e.function(op, constants) as (done, buffers):
            e.zero_halo(buffers[-1], op.y)
            finish = e.Finish(op, buffers, 1, len(op.inputs), target)

            def pixels(sample: Any, c: Any, h: Any, w: Any, lanes: int) -> Any:
                values = e.load(buffers[0], x.at(sample, c, h, w), lanes)
                if op.x.dtype != "float32" and not op.moves_codes:
                    values = T.cast(values, e.vector_type("float32", lanes))

                def place(lay: Layout) -> Any:
                    image = as_image(lay, shape)
                    return image.at(
                        sample,
                        c if image.shape[1] > 1 else 0,
                        h if image.shape[2] > 1 else 0,
                        w if image.shape[3] > 1 else 0,
                    )

                return finish.value(values, place, w if features else c, lanes if features else 1)

            def row(sample: Any, c: Any, h: Any, lanes: int) -> None:
                for w, some in vector_widths(width, lanes):
                    finish.store(y.at(sample, c, h, w), pixels(sample, c, h, w, some))

            def row_of_codes(sample: Any, plane: Any, held: int, h: Any, quant: Quant) -> None:
                """One row of the `held` channels of a group, interleaved; the last vectors may overlap."""
                lanes = next(v for v in (16, 8, 4) if v <= min(width, knobs["lanes"]))
                nothing = e.splat(quant.offset, lanes)
                offset = y.at(sample, 0, h, 0) + plane * (y.rows * y.pitch * y.group)

                def block(left: Any, starts: list[int]) -> None:
                    pieces = []
                    for i, start in enumerate(starts):
                        w = left + start
                        group = [pixels(sample, plane * y.group + c, h, w, lanes) for c in range(held)]
                        group += [nothing] * (y.group - held)
                        follows = i > 0 and start == starts[i - 1] + lanes
                        pieces.append(e.Piece(offset + w * y.group, group, follows))
                    e.store_codes(buffers[-1], pieces, quant, target)

                blocks = width // (4 * lanes)
                with e.serial(blocks) as i:
                    block(i * 4 * lanes, [v * lanes for v in range(4)])
                rest = list(range(blocks * 4 * lanes, width - lanes + 1, lanes))
                rest += [width - lanes] if width % lanes else []
                if rest:
                    block(0, rest)

            with e.serial(n) as sample:
                if isinstance(op.y_quant, Quant) and y.dtype == "uint8" and x.group == 1 and width >= 4:
                    whole, held = divmod(channels, y.group)
                    with e.serial(whole) as plane, e.serial(height) as h:
                        row_of_codes(sample, plane, y.group, h, op.y_quant)
                    if held:
                        with e.serial(height) as h:
                            row_of_codes(sample, whole, held, h, op.y_quant)
                elif y.group == 1 and x.group == 1:
                    with e.serial(channels) as c, e.serial(height) as h:
                        row(sample, c, h, knobs["lanes"])
                else:
                    for c in range(channels):
                        with e.serial(height) as h:
                            row(sample, c, h, 1)
        return done.done()


def view(op: Elementwise) -> tuple[int, ...]:
    """The image as which all tensors are seen: the output's, or the input's if only that has a halo."""
    for layout in (op.y, op.x):
        if len(layout.shape) == 4:
            return layout.shape
    return lifted(op.y.shape)


def lifted(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Any rank as an image: (N, K) as one row, (N, C, L) as C rows of one channel each."""
    if len(shape) == 1:
        return 1, 1, 1, shape[0]
    if len(shape) == 2:
        return shape[0], 1, 1, shape[1]
    return shape if len(shape) == 4 else (shape[0], shape[1], int(np.prod(shape[2:-1])), shape[-1])


def as_image(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """See a tensor as an image of this shape, if it has as many elements; else (a gate) as it is."""
    if layout.shape == shape:
        return layout
    contiguous = not any(layout.halo) and layout.group == 1
    same = int(np.prod(layout.shape)) == int(np.prod(shape)) and layout.shape[0] == shape[0]
    if contiguous and same:
        return Layout(shape, layout.dtype, batch_stride=layout.batch_stride)
    return (
        layout
        if len(layout.shape) == 4
        else Layout(lifted(layout.shape), layout.dtype, batch_stride=layout.batch_stride)
    )
