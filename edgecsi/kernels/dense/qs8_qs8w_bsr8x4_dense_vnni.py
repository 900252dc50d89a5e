"""Int8 dense layer with VNNI, static uint8 input, stored in blocks of 8 outputs x 4 inputs."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qs8Qs8wBsr8x4DenseVnni(Int8Dense):
    name = "qs8_qs8w_bsr8x4_dense_vnni"
    rounds = False
    rows = 8
    dots = ("avx512_vnni", "avx_vnni")
