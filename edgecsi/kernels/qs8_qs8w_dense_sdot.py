"""Int8 dense layer with SDOT: the input is static uint8 codes, all weights are stored."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense_int8 import Int8Dense


@register
class Qs8Qs8wDenseSdot(Int8Dense):
    name = "qs8_qs8w_dense_sdot"
    dynamic = False
    dots = ("sdot",)
