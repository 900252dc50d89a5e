"""Dense layer, fp32 activations, fp32 weights with zeros anywhere: slices of 16, a window of 128 inputs' bytes."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import PlaneDense


@register
class F32Sell16DenseVbmi(PlaneDense):
    name = "f32_sell16_dense_vbmi"
    weights = "f32"
