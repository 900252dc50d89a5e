"""What the int8 dense kernels share: codes of the input, exact sums, back to fp32.

A kernel name adds what differs: whether the input is quantised here or already codes, whether all blocks are
stored or only those with weights, and the instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.kernels.dense import narrow_weights
from edgecsi.kernels.dense.dot import Dot, NarrowVnni, dot_of
from edgecsi.kernels.dense.estimate import (
    cost,
    dense_vectors,
    indices_per_load,
    prefetch_ahead,
    shared_samples,
)
from edgecsi.kernels.dense.int8_codes import write_codes
from edgecsi.kernels.dense.loop import LoopShape, multiply, prefetch_start
from edgecsi.kernels.dense.results import Results, spill_bytes, spills
from edgecsi.kernels.dense.sparse import (
    Compact,
    Section,
    block_mask,
    compact,
    narrow,
    pack_all,
    pack_blocks,
    sections,
)
from edgecsi.kernels.dense.walk import positions
from edgecsi.ops.integers import sums_fit
from edgecsi.ops.operators import Dense
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


@dataclass(frozen=True)
class Int8Dense(Kernel):
    """Int8 weights times int8 codes of the input.

    Attributes:
        rounds: the input is fp32 and is rounded in the kernel, by its own range or to two planes; else it is uint8 codes.
        rows: outputs of a stored block of 4 inputs; 0 stores all.
        dots: values of `Target.dot` it is written for.
    """

    op = Dense
    rounds: bool
    dots: tuple[str, ...]
    rows: int = 0

    def refuses(self, op: Dense, target: Target) -> str:
        if target.dot not in self.dots:
            return f"{target.id} has no {' or '.join(self.dots)}"
        if op.table is not None or op.weight.dtype != np.int8:
            return "the weights are not int8"
        if self.rounds and not op.dynamic and op.fine == 1:
            return "the input is not to be rounded in the kernel"
        if not self.rounds and (op.x_quant is None or op.fine > 1):
            return "the input is not static uint8"
        if not sums_fit(op):
            return "its sums may exceed 32 bits: there are too many or too large weights"
        if self.rows and self.rows * 4 < dot_of(target, op.weight, self.rows).vector:
            return f"blocks of {self.rows} outputs do not fill a vector"
        return ""

    def knobs(self, op: Dense, target: Target) -> Knobs:
        dot = dot_of(target, op.weight, self.rows or 16)
        batch = op.x.shape[0]
        samples = shared_samples(batch * op.planes, target, dot.accumulators)
        outputs, inputs = self._compact(op, {}).weight.shape
        groups = -(-inputs // 4)
        if self.rows:
            vectors = self.rows // dot.outputs
            mean = float(block_mask(op.weight, self.rows, 4).sum(1).mean())
            unroll = 8 if mean >= 32 and target.arch == "aarch64" else 4 if mean >= 8 else 2
            rows = self.rows
        else:
            # One sample is bound by the caches: panels of four vectors are read fastest.
            alone = samples <= op.planes and dot.vector == 64
            vectors = 4 if alone else dense_vectors(samples, target, dot.accumulators)
            vectors = min(vectors, -(-outputs // dot.outputs))
            rows = vectors * dot.outputs
            unroll = next(u for u in (4, 2, 1) if groups % u == 0 or u == dot.together)
        busy = vectors * dot.accumulators * samples
        sets = max(1, min(unroll // dot.together, (8 if self.rows else 4) // busy))
        ahead = prefetch_ahead(op, target) if batch == 1 else 0
        # What a good part of the L2 cache holds is read as fast as narrow weights are taken apart.
        far = max(op.among, 2 * op.weight.nbytes) > target.l2_bytes
        narrow = int(batch == 1 and far and self._narrows(op, target))
        return {
            "rows": rows, "unroll": unroll, "sets": sets, "samples": samples, "ahead": ahead, "narrow": narrow,
        }  # fmt: skip

    def space(self, op: Dense, target: Target) -> dict[str, Any]:
        dot = dot_of(target, op.weight, self.rows or 16)
        default = self.knobs(op, target)
        batch = op.x.shape[0] * op.planes
        return {
            "rows": (self.rows,) if self.rows else tuple(dot.outputs * v for v in (1, 2, 4, 8)),
            "unroll": tuple(sorted({default["unroll"], *(u for u in (1, 2, 4, 8) if u % dot.together == 0)})),
            "sets": (1, 2, 4),
            "samples": tuple(s for s in (1, 2, 4, 8, 16) if op.planes <= s <= batch),
            "ahead": (0, 2048) if target.arch == "x86_64" else (0,),
            "narrow": (0, 1) if self._narrows(op, target) else (0,),
        }

    def cost(self, op: Dense, target: Target, knobs: Knobs) -> Cost:
        small = self._compact(op, knobs)
        outputs, inputs = small.weight.shape
        rows = knobs["rows"]
        dot = dot_of(target, op.weight, rows)
        panels = -(-outputs // rows)
        if self.rows:
            unroll = knobs["unroll"]
            counts = block_mask(op.weight, rows, 4).sum(1)
            blocks = int((-(-counts // unroll) * unroll).sum())
        else:
            blocks = panels * -(-inputs // 4)
        return cost(
            target,
            batch=op.x.shape[0] * op.planes,
            blocks=blocks,
            panels=panels,
            vectors=rows // dot.outputs,
            vector_bytes=dot.vector * narrow_weights.share_stored(small.widths, -(-inputs // 4)),
            instructions=dot.steps + 1.5 * sum(groups for _, groups in small.widths) / -(-inputs // 4),
            index_bytes=2 if self.rows else 0,
            samples=knobs["samples"],
            prepared=self._prepared(op, target, dot, knobs),
            macs=blocks * rows * 4,  # of a plane
        )

    def _spills(self, op: Dense, target: Target) -> bool:
        return spills(op, self._compact(op, {}).outputs is not None, target.lanes_f32)

    def _prepared(self, op: Dense, target: Target, dot: Dot, knobs: Knobs) -> int:
        """Bytes moved to write codes and to collect spilled sums, for a sample, or a plane of it."""
        small = self._compact(op, knobs)
        moved = 0
        if not self._direct(op, dot, knobs):
            moved += op.weight.shape[1] * (12 if self.rounds else 2)
            if small.inputs is not None:
                moved += self._places(op, small)[0].size * 32
        if self._spills(op, target):
            moved += op.weight.shape[0] * 8 + (small.outputs.size * 32 if small.outputs is not None else 0)
        return moved

    def _compact(self, op: Dense, knobs: Knobs) -> Compact:
        """The weights as they are stored: if all are, without rows and columns of zeros, and sorted if narrow."""
        if self.rows:
            return Compact(op.weight)
        small = compact(op.weight, op.weight != 0)
        if not knobs.get("narrow"):
            return small
        order, widths = narrow_weights.sort_groups(small.weight)
        inputs = order if small.inputs is None else small.inputs[order]
        return Compact(small.weight[:, order], small.outputs, inputs, widths)

    def _narrows(self, op: Dense, target: Target) -> bool:
        """Whether weights can be narrow, many are, and the target has instructions to spare for taking them apart."""
        small = self._compact(op, {}).weight
        if self.rows or target.dot != "avx512_vnni" or small.shape[1] % (4 * narrow_weights.TOGETHER):
            return False
        _, widths = narrow_weights.sort_groups(small)
        return narrow_weights.share_stored(widths, small.shape[1] // 4) <= 0.95

    def _places(self, op: Dense, small: Compact) -> tuple[NDArray[np.int64], int]:
        """Where the inputs of a compacted matrix are found, and how many neighbours each place stands for."""
        places = small.inputs
        assert places is not None
        if not self.rounds:
            memory = positions(op.x, 1)
            assert memory is not None
            places = memory[places]
        if places.size % 4 == 0 and (np.diff(places.reshape(-1, 4)) == 1).all():
            return places[::4], 4
        return places, 1

    def _direct(self, op: Dense, dot: Dot, knobs: Knobs) -> bool:
        """Whether the blocks can be read from the input as it is."""
        if self.rounds or not dot.unsigned or self._compact(op, knobs).inputs is not None:
            return False
        places = positions(op.x, 4)
        if places is None:
            return False
        return bool(self.rows) or (places.size % knobs["unroll"] == 0 and (np.diff(places) == 4).all())

    def _pack(self, op: Dense, target: Target, knobs: Knobs) -> dict[str, NDArray[Any]]:
        small = self._compact(op, knobs)
        outputs, inputs = small.weight.shape
        dot = dot_of(target, op.weight, knobs["rows"])
        parts = sections(outputs, knobs["rows"], self.rows or dot.outputs)
        packed: dict[str, NDArray[Any]] = {}
        if self.rows:
            places = positions(op.x, 4) if self._direct(op, dot, knobs) else None
            if places is None:
                places = np.arange(-(-inputs // 4)) * 4
            blocks = pack_blocks(op.weight, parts, 4, knobs["unroll"], places)
            assert blocks.index is not None
            assert blocks.start is not None
            packed |= {"weights": _flat(blocks.values), "index": blocks.index, "start": blocks.start}
        else:
            blocks = pack_all(small.weight, parts, 4, knobs["unroll"])
            packed["weights"] = _flat(_narrowed(blocks.values, parts, small.widths))
        if small.inputs is not None:
            packed["inputs"] = narrow(self._places(op, small)[0])
        if small.outputs is not None:
            packed["outputs"] = narrow(small.outputs)
        assert op.scale is not None
        rows = op.weight.astype(np.int64).sum(1)
        if op.x_quant is not None:
            zero = op.x_quant.zero_point - 128 + dot.zero
            if op.fine > 1:
                zero *= op.fine + 1
            add = -zero * rows + (0 if op.bias is None else op.bias.astype(np.int64))
            packed["scale"] = np.float32(op.x_quant.scale / op.fine) * op.scale.astype(np.float32)
        else:
            add = -rows  # for every unit of the sample's zero point
            packed["scale"] = op.scale.astype(np.float32)
            if op.bias is not None:
                packed["bias"] = op.bias.astype(np.float32)
        if add.any():
            packed["add"] = add.astype(np.int32)
        return packed

    def constants(self, op: Dense, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        from edgecsi.kernels.emit import epilogue_constants

        return [*self._pack(op, target, knobs).values(), *epilogue_constants(op)]

    def _codes_stride(self, op: Dense, knobs: Knobs) -> int:
        """Bytes of one sample's codes in the workspace, or of a plane of them."""
        step = 4 * knobs["unroll"]
        return int(-(-self._compact(op, knobs).weight.shape[1] // step) * step)

    def _workspace(self, op: Dense, target: Target, knobs: Knobs) -> dict[str, int]:
        """Where in the workspace things begin; ``end`` is its size."""
        small = self._compact(op, knobs)
        batch = op.x.shape[0] * op.planes
        sizes = {"codes": 0, "steps": 0, "zeros": 0, "all": 0, "sums": 0}
        if not self._direct(op, dot_of(target, op.weight, knobs["rows"]), knobs):
            sizes["codes"] = batch * self._codes_stride(op, knobs)
        if op.dynamic:
            sizes["steps"] = sizes["zeros"] = 4 * batch
        if self.rounds and small.inputs is not None:
            sizes["all"] = op.weight.shape[1] * op.planes
        if self._spills(op, target):
            sizes["sums"] = spill_bytes(op)
        starts, end = {}, 0
        for name, size in sizes.items():
            starts[name] = end
            end += -(-size // 64) * 64
        return starts | {"end": end}

    def scratch(self, op: Dense, target: Target, knobs: Knobs) -> int:
        return self._workspace(op, target, knobs)["end"]

    def emit(self, op: Dense, target: Target, knobs: Knobs) -> PrimFunc:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        dot = dot_of(target, op.weight, knobs["rows"])
        small = self._compact(op, knobs)
        batch = op.x.shape[0]
        packed = self._pack(op, target, knobs)
        constants = [*packed.values(), *e.epilogue_constants(op)]
        room = self._workspace(op, target, knobs)
        loop = LoopShape(
            parts=sections(small.weight.shape[0], knobs["rows"], self.rows or dot.outputs),
            unroll=knobs["unroll"],
            sets=knobs["sets"],
            samples=knobs["samples"],
            blocks=self._codes_stride(op, knobs) // 4,
            first=[(NarrowVnni(bits), groups) for bits, groups in small.widths],
            ahead=knobs["ahead"],
            indices=indices_per_load(target),
        )
        if loop.unroll % dot.together:
            raise ValueError(f"this dot product takes {dot.together} blocks at once")
        with e.function(op, constants, room["end"]) as (done, buffers):
            e.zero_halo(buffers[len(op.inputs) + len(constants)], op.y)
            named = dict(zip(packed, buffers[len(op.inputs) :], strict=False))
            finish = e.Finish(op, buffers, 1, len(op.inputs) + len(packed), target)
            x, stride, scratch = buffers[0], op.x.stride, buffers[-1]
            if not self._direct(op, dot, knobs):
                x, stride = scratch, self._codes_stride(op, knobs)
                run = self._places(op, small)[1] if small.inputs is not None else 1
                if loop.ahead:
                    prefetch_start(named["weights"])
                write_codes(op, dot, target, buffers[0], scratch, stride, room, named.get("inputs"), run)

            def value(total: Any, output: Any, sample: Any) -> Any:
                lanes = e.lanes_of(total)
                factor = e.load(named["scale"], output, lanes)

                def of_sample(what: str, dtype: str) -> Any:
                    return e.splat(
                        T.reinterpret(e.load(scratch, room[what] + sample * 4, 4), dtype=dtype), lanes
                    )

                if "add" in named:
                    add = e.load(named["add"], output, lanes)
                    total = total + (of_sample("zeros", "int32") * add if op.dynamic else add)
                if op.dynamic:
                    factor = of_sample("steps", "float32") * factor
                result = e.fence(T.cast(total, e.vector_type("float32", lanes)) * factor)
                if "bias" in named:
                    result = result + e.load(named["bias"], output, lanes)
                return result

            spill = (scratch, room["sums"]) if self._spills(op, target) else None
            results = Results(op, finish, target.lanes_f32, value, spill, named.get("outputs"))
            results.open()
            multiply(
                dot, loop, batch * op.planes, named["weights"], x, stride, named.get("index"), named.get("start"),
                results if op.fine == 1 else _joined(results, op.fine),
            )  # fmt: skip
            results.close()
        return done.done()


def _flat(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([v.reshape(-1) for v in values])


def _narrowed(
    values: Sequence[NDArray[Any]], parts: Sequence[Section], widths: Sequence[tuple[int, int]]
) -> list[NDArray[Any]]:
    """Blocks ``[panels * blocks, rows, 4]`` of each section with the first of every panel in fewer bits."""
    result = []
    for part, blocks in zip(parts, values, strict=True):
        panels = blocks.reshape(part.panels, -1, part.rows, 4)
        pieces, at = [], 0
        for bits, groups in widths:
            some = panels[:, at : at + groups].reshape(
                part.panels, -1, narrow_weights.TOGETHER, part.rows // 16, 64
            )
            pieces.append(narrow_weights.pack_bits(some.swapaxes(2, 3), bits).reshape(part.panels, -1))
            at += groups
        result.append(np.concatenate([*pieces, panels[:, at:].reshape(part.panels, -1)], axis=1))
    return result


def _joined(
    results: Callable[[Section, Any, Any, list[Any]], None], fine: int
) -> Callable[[Section, Any, Any, list[Any]], None]:
    """Puts the sums over a sample's two planes together, which come one after the other; the first count `fine` times."""
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    waiting: list[list[Any]] = []

    def join(part: Section, panel: Any, row: Any, sums: list[Any]) -> None:
        if not waiting:
            waiting.append(sums)
            return
        by = e.splat(fine.bit_length() - 1, e.lanes_of(sums[0]), "int32")
        both = [e.let(T.shift_left(high, by) + low) for high, low in zip(waiting.pop(), sums, strict=True)]
        results(part, panel, row // 2, both)

    return join
