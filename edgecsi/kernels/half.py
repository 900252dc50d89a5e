"""What kernels in half precision share: which CPUs have it, and the way from a sum to results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edgecsi.kernels.base import Expr
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Half
from edgecsi.target import Target


def refuses_cpu(target: Target) -> str:
    """Why a CPU does not compute in half precision, if so."""
    if target.half == "f16" and "asimdhp" in target.features:
        return ""
    instead = "; int16 is as fast on x86, and more exact" if target.arch == "x86_64" else ""
    return f'the CPU has no half-precision arithmetic (half = "{target.half}" in {target.id}){instead}'


def doubled(target: Target) -> Target:
    """The target as half precision sees it."""
    return replace(target, lanes_f32=2 * target.lanes_f32, peak_gmacs_f32=2 * target.peak_gmacs_f32)


def widened(total: Expr) -> Expr:
    """A sum as it is added to others, in fp32."""
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    return T.cast(total, e.vector_type("float32", e.lanes_of(total)))


def store_results(
    finish: Any,
    wide: Expr,
    value: Callable[[Expr, int], Expr],
    at: Callable[[Layout, int], Expr],
    channel: Callable[[int], tuple[Expr, int]],
) -> None:
    """Finish sums and store them.

    Args:
        finish: an `emit.Finish`. wide: sums, fp32, of twice as many lanes as the target's vectors have.
        value: from some of the sums, and the number of the first, to results before what comes behind them.
        at: from a layout and the number of a sum to its place. channel: from the number of a sum to its channel, and how
            many channels a vector has.
    """
    from edgecsi.kernels import emit as e

    lanes, half = e.lanes_of(wide), isinstance(finish.op.y_quant, Half)
    width = min(lanes, finish.target.lanes_f32)
    parts = []
    for first in range(0, lanes, width):
        part = e.part(wide, first, width) if width < lanes else wide

        def place(layout: Layout, first: int = first) -> Expr:
            return at(layout, first)

        part = finish.value(value(part, first), place, *channel(first))
        if half:
            parts.append(part)
        else:
            finish.store(place(finish.op.y), part)
    if half:
        whole = e.shuffle(parts, range(lanes)) if len(parts) > 1 else parts[0]
        finish.store(at(finish.op.y, 0), whole)
