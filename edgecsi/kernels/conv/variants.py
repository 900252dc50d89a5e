"""Every convolution kernel: one row a name."""

from __future__ import annotations

from edgecsi.kernels.base import Kernel
from edgecsi.kernels.conv.f16_conv2d import KERNELS as F16
from edgecsi.kernels.conv.f32_conv2d_direct import F32Conv2dDirect
from edgecsi.kernels.conv.f32_conv2d_direct_co import F32Conv2dDirectCo
from edgecsi.kernels.conv.f32_conv2d_winograd import F32Conv2dWinograd
from edgecsi.kernels.conv.qd16_conv2d import KERNELS as INT16
from edgecsi.kernels.conv.qs8_conv2d_avx2 import Qs8Conv2dAvx2
from edgecsi.kernels.conv.qs8_conv2d_maddubs import Qs8Conv2dMaddubs
from edgecsi.kernels.conv.qs8_conv2d_neon import Qs8Conv2dNeon
from edgecsi.kernels.conv.qs8_conv2d_sdot import Qs8Conv2dSdot
from edgecsi.kernels.conv.qs8_conv2d_vnni import Qs8Conv2dVnni
from edgecsi.kernels.conv.winograd_tiles import Four

KERNELS: tuple[Kernel, ...] = (
    F32Conv2dDirect("f32_conv2d_direct"),
    F32Conv2dDirectCo("f32_conv2d_direct_co"),
    F32Conv2dWinograd("f32_conv2d_winograd"),
    F32Conv2dWinograd("f32_conv2d_winograd4", Four((3, 3), (170.0, 130.0))),
    *(F32Conv2dWinograd(f"f32_conv2d_winograd4_{n}x1", Four((n, 1), (14.0, 16.0))) for n in (3, 5, 7, 9)),
    *(F32Conv2dWinograd(f"f32_conv2d_winograd4_1x{n}", Four((1, n), (19.0, 19.0))) for n in (3, 5, 7, 9)),
    *F16,
    *INT16,
    Qs8Conv2dAvx2("qs8_conv2d_avx2"),
    Qs8Conv2dMaddubs("qs8_conv2d_maddubs"),
    Qs8Conv2dNeon("qs8_conv2d_neon"),
    Qs8Conv2dSdot("qs8_conv2d_sdot"),
    Qs8Conv2dVnni("qs8_conv2d_vnni"),
)
