"""Dense layer with fp32 activations, fp32 weights, inputs and outputs without any weight left out."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense_float import BlockDense


@register
class F32CompactDense(BlockDense):
    name = "f32_compact_dense"
    weights = "f32"
