"""Every kernel there is: the tables of dense layers and convolutions, and what is left over.

To add a kernel, add a row to a table; nothing else has to know its name.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.kernels.conv.variants import KERNELS as CONV
from edgecsi.kernels.dense.variants import KERNELS as DENSE
from edgecsi.kernels.elementwise import ElementwiseKernel
from edgecsi.kernels.f32_layer_norm import F32LayerNorm
from edgecsi.kernels.f32_matmul import F32MatMul
from edgecsi.kernels.f32_pool2d import F32Pool2d
from edgecsi.kernels.f32_softmax import F32Softmax
from edgecsi.kernels.quantize_wide import QuantizeWideKernel
from edgecsi.ops.operators import Op
from edgecsi.ops.steps import curves
from edgecsi.target import Target

KERNELS: tuple[Kernel, ...] = (
    *DENSE,
    *CONV,
    ElementwiseKernel("elementwise"),
    F32LayerNorm("f32_layer_norm"),
    F32MatMul("f32_matmul"),
    F32Pool2d("f32_pool2d"),
    F32Softmax("f32_softmax"),
    QuantizeWideKernel("quantize_wide"),
)


@cache
def all_kernels() -> dict[str, Kernel]:
    """Every kernel by name, in alphabetical order.

    Raises:
        ValueError: two have one name.
    """
    found = {kernel.name: kernel for kernel in sorted(KERNELS, key=lambda kernel: kernel.name)}
    if len(found) != len(KERNELS):
        raise ValueError("two kernels have one name")
    return found


def products(name: str) -> float:
    """Multiplications for each of the operator's; one where the kernel is not ours, or of another version."""
    kernel = all_kernels().get(name)
    return kernel.products if kernel is not None else 1.0


def estimate(kernel: Kernel, op: Op, target: Target, knobs: Knobs) -> Cost:
    """Predicted cost of a kernel, corrected by what was measured of it on this CPU."""
    cost = kernel.cost(op, target, knobs)
    factor = dict(target.factors).get(kernel.name, 1.0)
    beside = target.call_us * 1e-6 + target.curve_ns * 1e-9 * op.y.size * curves(op.epilogue)
    return replace(cost, seconds=cost.seconds * factor + beside)


def grid(kernel: Kernel, op: Op, target: Target) -> dict[str, tuple[int, ...]]:
    """Values worth trying for every knob, those that are chosen without tuning among them."""
    default = kernel.knobs(op, target)
    return {
        knob: tuple(values) if default[knob] in values else tuple(sorted({*values, default[knob]}))
        for knob, values in kernel.space(op, target).items()
    }


def candidates(op: Op, target: Target) -> tuple[list[tuple[Kernel, Knobs, Cost]], dict[str, str]]:
    """Kernels that can compute `op` on `target`, fastest predicted first, and why the others cannot."""
    found, refused = [], {}
    for kernel in all_kernels().values():
        if kernel.op is not type(op):
            continue
        reason = kernel.refuses(op, target)
        if reason:
            refused[kernel.name] = reason
            continue
        knobs = kernel.knobs(op, target)
        found.append((kernel, knobs, estimate(kernel, op, target, knobs)))
    found.sort(key=lambda item: item[2].seconds)
    return found, refused
