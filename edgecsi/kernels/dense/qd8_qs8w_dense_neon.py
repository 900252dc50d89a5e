"""Int8 dense layer with NEON, input quantised in the kernel, all weights stored."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qd8Qs8wDenseNeon(Int8Dense):
    name = "qd8_qs8w_dense_neon"
    rounds = True
    dots = ("neon",)
