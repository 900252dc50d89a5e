"""Int8 dense layer with NEON, input quantised in the kernel, stored in blocks of 4 outputs x 4 inputs."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qd8Qs8wBsr4x4DenseNeon(Int8Dense):
    name = "qd8_qs8w_bsr4x4_dense_neon"
    rounds = True
    rows = 4
    dots = ("neon",)
