"""Dense layer, fp32 activations, weights as 8-bit indices of a table."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import BlockDense


@register
class F32Lut256Dense(BlockDense):
    name = "f32_lut256_dense"
    weights = "lut256"
