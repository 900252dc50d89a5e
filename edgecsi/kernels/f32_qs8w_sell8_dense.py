"""Dense layer with fp32 activations, int8 weights, zeros anywhere: 8 outputs take a weight each and the kernel
picks them out of a window of 16 neighbours."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense_float import SliceDense


@register
class F32Qs8wSell8Dense(SliceDense):
    name = "f32_qs8w_sell8_dense"
    rows = 8
    weights = "qs8w"
