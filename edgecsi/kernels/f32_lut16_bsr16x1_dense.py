"""Dense layer with fp32 activations, weights out of a table of 16, stored as 4-bit indices, only blocks of 16 outputs x 1 input that hold weights are stored."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense_float import BlockDense


@register
class F32Lut16Bsr16x1Dense(BlockDense):
    name = "f32_lut16_bsr16x1_dense"
    rows = 16
    weights = "lut16"
