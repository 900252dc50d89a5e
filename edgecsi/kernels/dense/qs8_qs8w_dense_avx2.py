"""Int8 dense layer with AVX2, static uint8 input, all weights stored."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qs8Qs8wDenseAvx2(Int8Dense):
    name = "qs8_qs8w_dense_avx2"
    rounds = False
    dots = ("avx2",)
