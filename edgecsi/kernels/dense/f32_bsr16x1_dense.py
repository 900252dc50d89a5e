"""Dense layer, fp32 activations, fp32 weights, stored in blocks of 16 outputs x 1 input."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import BlockDense


@register
class F32Bsr16x1Dense(BlockDense):
    name = "f32_bsr16x1_dense"
    rows = 16
    weights = "f32"
