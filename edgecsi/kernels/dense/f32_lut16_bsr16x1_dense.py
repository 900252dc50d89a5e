"""Dense layer, fp32 activations, weights as 4-bit indices, in blocks of 16 outputs x 1 input."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import BlockDense


@register
class F32Lut16Bsr16x1Dense(BlockDense):
    name = "f32_lut16_bsr16x1_dense"
    rows = 16
    weights = "lut16"
