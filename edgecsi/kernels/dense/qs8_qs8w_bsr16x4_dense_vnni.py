"""Int8 dense layer with VNNI, static uint8 input, stored in blocks of 16 outputs x 4 inputs."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qs8Qs8wBsr16x4DenseVnni(Int8Dense):
    name = "qs8_qs8w_bsr16x4_dense_vnni"
    rounds = False
    rows = 16
    dots = ("avx512_vnni", "avx_vnni")
