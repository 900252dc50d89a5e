"""Dense layer, fp32 activations, int8 weights with zeros anywhere: slices of 16, a window of 128 inputs' bytes."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import PlaneDense


@register
class F32Qs8wSell16DenseVbmi(PlaneDense):
    name = "f32_qs8w_sell16_dense_vbmi"
    weights = "qs8w"
