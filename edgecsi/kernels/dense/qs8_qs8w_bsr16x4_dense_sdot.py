"""Int8 dense layer with SDOT, static uint8 input, stored in blocks of 16 outputs x 4 inputs."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.int8 import Int8Dense


@register
class Qs8Qs8wBsr16x4DenseSdot(Int8Dense):
    name = "qs8_qs8w_bsr16x4_dense_sdot"
    rounds = False
    rows = 16
    dots = ("sdot",)
