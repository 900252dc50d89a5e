"""Dense layer, fp32 activations, int8 weights stored in blocks of 8 outputs x 1 input."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import BlockDense


@register
class F32Qs8wBsr8x1Dense(BlockDense):
    name = "f32_qs8w_bsr8x1_dense"
    rows = 8
    weights = "qs8w"
