"""Dense layer, fp32 activations, int8 weights with zeros anywhere: slices of 4, each input loaded."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import SliceDense


@register
class F32Qs8wSell4Dense(SliceDense):
    name = "f32_qs8w_sell4_dense"
    rows = 4
    weights = "qs8w"
