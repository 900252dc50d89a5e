"""Dense layer, fp32 activations, int8 weights stored in blocks of 16 outputs x 1 input."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import BlockDense


@register
class F32Qs8wBsr16x1Dense(BlockDense):
    name = "f32_qs8w_bsr16x1_dense"
    rows = 16
    weights = "qs8w"
