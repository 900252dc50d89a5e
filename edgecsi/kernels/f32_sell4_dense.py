"""Dense layer with fp32 activations, fp32 weights, zeros anywhere: 4 outputs take a weight each and the kernel
loads them one by one."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense_float import SliceDense


@register
class F32Sell4Dense(SliceDense):
    name = "f32_sell4_dense"
    rows = 4
    weights = "f32"
