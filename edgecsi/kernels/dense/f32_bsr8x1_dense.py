"""Dense layer, fp32 activations, fp32 weights, stored in blocks of 8 outputs x 1 input."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import BlockDense


@register
class F32Bsr8x1Dense(BlockDense):
    name = "f32_bsr8x1_dense"
    rows = 8
    weights = "f32"
