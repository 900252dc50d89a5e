"""Dense layer, fp32 activations, fp32 weights with zeros anywhere: slices of 8, a window of 16 inputs."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import SliceDense


@register
class F32Sell8Dense(SliceDense):
    name = "f32_sell8_dense"
    rows = 8
    weights = "f32"
