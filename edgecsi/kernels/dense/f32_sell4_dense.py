"""Dense layer, fp32 activations, fp32 weights with zeros anywhere: slices of 4, each input loaded."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import SliceDense


@register
class F32Sell4Dense(SliceDense):
    name = "f32_sell4_dense"
    rows = 4
    weights = "f32"
