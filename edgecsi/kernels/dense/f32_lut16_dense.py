"""Dense layer with fp32 activations, weights out of a table of 16, stored as 4-bit indices."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import BlockDense


@register
class F32Lut16Dense(BlockDense):
    name = "f32_lut16_dense"
    weights = "lut16"
