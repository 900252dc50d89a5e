"""Dense layer, fp32 activations, fp32 weights, stored in blocks of 4 outputs x 1 input."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import BlockDense


@register
class F32Bsr4x1Dense(BlockDense):
    name = "f32_bsr4x1_dense"
    rows = 4
    weights = "f32"
