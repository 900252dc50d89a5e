"""Int8 dense layer with VNNI, static uint8 input, all weights stored."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qs8Qs8wDenseVnni(Int8Dense):
    name = "qs8_qs8w_dense_vnni"
    rounds = False
    dots = ("avx512_vnni", "avx_vnni")
