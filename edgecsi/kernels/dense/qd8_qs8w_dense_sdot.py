"""Int8 dense layer with SDOT, input quantised in the kernel, all weights stored."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qd8Qs8wDenseSdot(Int8Dense):
    name = "qd8_qs8w_dense_sdot"
    rounds = True
    dots = ("sdot",)
