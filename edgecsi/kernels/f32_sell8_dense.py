"""Dense layer with fp32 activations, fp32 weights, zeros anywhere: 8 outputs take a weight each and the kernel
picks them out of a window of 16 neighbours."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense_float import SliceDense


@register
class F32Sell8Dense(SliceDense):
    name = "f32_sell8_dense"
    rows = 8
    weights = "f32"
