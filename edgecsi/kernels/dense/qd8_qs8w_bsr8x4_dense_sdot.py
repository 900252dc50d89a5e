"""Int8 dense layer with SDOT, input quantised in the kernel, stored in blocks of 8 outputs x 4 inputs."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qd8Qs8wBsr8x4DenseSdot(Int8Dense):
    name = "qd8_qs8w_bsr8x4_dense_sdot"
    rounds = True
    rows = 8
    dots = ("sdot",)
