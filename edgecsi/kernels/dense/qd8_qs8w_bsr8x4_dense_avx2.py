"""Int8 dense layer with AVX2, input quantised in the kernel, stored in blocks of 8 outputs x 4 inputs."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qd8Qs8wBsr8x4DenseAvx2(Int8Dense):
    name = "qd8_qs8w_bsr8x4_dense_avx2"
    rounds = True
    rows = 8
    dots = ("avx2",)
