"""Dense layer, fp32 activations, int8 weights with zeros anywhere: slices of 16, a window of 32 inputs."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import SliceDense


@register
class F32Qs8wSell16Dense(SliceDense):
    name = "f32_qs8w_sell16_dense"
    rows = 16
    weights = "qs8w"
