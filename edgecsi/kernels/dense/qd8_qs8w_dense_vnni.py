"""Int8 dense layer with VNNI, input quantised in the kernel, all weights stored."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qd8Qs8wDenseVnni(Int8Dense):
    name = "qd8_qs8w_dense_vnni"
    rounds = True
    dots = ("avx512_vnni", "avx_vnni")
