"""Int8 dense layer with AVX2, input quantised in the kernel, all weights stored."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qd8Qs8wDenseAvx2(Int8Dense):
    name = "qd8_qs8w_dense_avx2"
    rounds = True
    dots = ("avx2",)
