"""Dense layer with fp32 activations, int8 weights."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import BlockDense


@register
class F32Qs8wDense(BlockDense):
    name = "f32_qs8w_dense"
    weights = "qs8w"
