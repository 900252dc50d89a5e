"""Int8 dense layer with NEON, input quantised in the kernel, stored in blocks of 16 outputs x 4 inputs."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qd8Qs8wBsr16x4DenseNeon(Int8Dense):
    name = "qd8_qs8w_bsr16x4_dense_neon"
    rounds = True
    rows = 16
    dots = ("neon",)
