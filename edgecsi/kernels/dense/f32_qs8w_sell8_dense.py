"""Dense layer, fp32 activations, int8 weights with zeros anywhere: slices of 8, a window of 16 inputs."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import SliceDense


@register
class F32Qs8wSell8Dense(SliceDense):
    name = "f32_qs8w_sell8_dense"
    rows = 8
    weights = "qs8w"
