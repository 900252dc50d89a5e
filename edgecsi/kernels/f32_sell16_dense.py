"""Dense layer with fp32 activations, fp32 weights, zeros anywhere: 16 outputs take a weight each and the kernel
picks them out of a window of 32 neighbours."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense_float import SliceDense


@register
class F32Sell16Dense(SliceDense):
    name = "f32_sell16_dense"
    rows = 16
    weights = "f32"
