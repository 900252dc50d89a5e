"""Every dense kernel: one row a name."""

from __future__ import annotations

from edgecsi.kernels.base import Kernel
from edgecsi.kernels.dense.blocks import BlockDense
from edgecsi.kernels.dense.f16_dense import F16Dense
from edgecsi.kernels.dense.f32_dense import F32Dense
from edgecsi.kernels.dense.int8 import Int8Dense
from edgecsi.kernels.dense.int16 import Int16Dense
from edgecsi.kernels.dense.slices import PlaneDense, SliceDense

_VNNI = ("avx512_vnni", "avx_vnni")

KERNELS: tuple[Kernel, ...] = (
    F32Dense("f32_dense"),
    F32Dense("f32_f16w_dense", weights="f16w"),
    # fp32 activations: without unused inputs and outputs, or with weights that were taken out of a table
    BlockDense("f32_compact_dense", weights="f32"),
    # blocks of N outputs x 1 input
    BlockDense("f32_bsr4x1_dense", weights="f32", rows=4),
    BlockDense("f32_bsr8x1_dense", weights="f32", rows=8),
    BlockDense("f32_bsr16x1_dense", weights="f32", rows=16),
    # half-precision weights, without unused inputs and outputs, and in blocks
    BlockDense("f32_f16w_compact_dense", weights="f16w"),
    BlockDense("f32_f16w_bsr4x1_dense", weights="f16w", rows=4),
    BlockDense("f32_f16w_bsr8x1_dense", weights="f16w", rows=8),
    BlockDense("f32_f16w_bsr16x1_dense", weights="f16w", rows=16),
    # int8 weights, all stored, and in blocks
    BlockDense("f32_qs8w_dense", weights="qs8w"),
    BlockDense("f32_qs8w_bsr4x1_dense", weights="qs8w", rows=4),
    BlockDense("f32_qs8w_bsr8x1_dense", weights="qs8w", rows=8),
    BlockDense("f32_qs8w_bsr16x1_dense", weights="qs8w", rows=16),
    # weights as 4-bit indices of a table of 16, or 8-bit ones of a larger table
    BlockDense("f32_lut16_dense", weights="lut16"),
    BlockDense("f32_lut16_bsr16x1_dense", weights="lut16", rows=16),
    BlockDense("f32_lut256_dense", weights="lut256"),
    BlockDense("f32_lut256_bsr16x1_dense", weights="lut256", rows=16),
    # zeros anywhere: slices of 4 load each input, those of 8 and 16 have a window of two registers
    SliceDense("f32_sell4_dense", weights="f32", rows=4),
    SliceDense("f32_sell8_dense", weights="f32", rows=8),
    SliceDense("f32_sell16_dense", weights="f32", rows=16),
    SliceDense("f32_qs8w_sell4_dense", weights="qs8w", rows=4),
    SliceDense("f32_qs8w_sell8_dense", weights="qs8w", rows=8),
    SliceDense("f32_qs8w_sell16_dense", weights="qs8w", rows=16),
    # the same, with a window of 128 inputs in planes of bytes (AVX-512 VBMI)
    PlaneDense("f32_sell16_dense_vbmi", weights="f32"),
    PlaneDense("f32_qs8w_sell16_dense_vbmi", weights="qs8w"),
    # int8 arithmetic, the input is fp32, rounded in the kernel: all weights stored, and in blocks of N outputs x 4 inputs
    Int8Dense("qd8_qs8w_dense_avx2", rounds=True, dots=("avx2",)),
    Int8Dense("qd8_qs8w_dense_neon", rounds=True, dots=("neon",)),
    Int8Dense("qd8_qs8w_dense_sdot", rounds=True, dots=("sdot",)),
    Int8Dense("qd8_qs8w_dense_vnni", rounds=True, dots=_VNNI),
    Int8Dense("qd8_qs8w_bsr4x4_dense_neon", rounds=True, dots=("neon",), rows=4),
    Int8Dense("qd8_qs8w_bsr4x4_dense_sdot", rounds=True, dots=("sdot",), rows=4),
    Int8Dense("qd8_qs8w_bsr4x4_dense_vnni", rounds=True, dots=_VNNI, rows=4),
    Int8Dense("qd8_qs8w_bsr8x4_dense_avx2", rounds=True, dots=("avx2",), rows=8),
    Int8Dense("qd8_qs8w_bsr8x4_dense_neon", rounds=True, dots=("neon",), rows=8),
    Int8Dense("qd8_qs8w_bsr8x4_dense_sdot", rounds=True, dots=("sdot",), rows=8),
    Int8Dense("qd8_qs8w_bsr8x4_dense_vnni", rounds=True, dots=_VNNI, rows=8),
    Int8Dense("qd8_qs8w_bsr16x4_dense_avx2", rounds=True, dots=("avx2",), rows=16),
    Int8Dense("qd8_qs8w_bsr16x4_dense_neon", rounds=True, dots=("neon",), rows=16),
    Int8Dense("qd8_qs8w_bsr16x4_dense_sdot", rounds=True, dots=("sdot",), rows=16),
    Int8Dense("qd8_qs8w_bsr16x4_dense_vnni", rounds=True, dots=_VNNI, rows=16),
    # int8 arithmetic, the input is uint8 codes: all weights stored, and in blocks of N outputs x 4 inputs
    Int8Dense("qs8_qs8w_dense_avx2", rounds=False, dots=("avx2",)),
    Int8Dense("qs8_qs8w_dense_neon", rounds=False, dots=("neon",)),
    Int8Dense("qs8_qs8w_dense_sdot", rounds=False, dots=("sdot",)),
    Int8Dense("qs8_qs8w_dense_vnni", rounds=False, dots=_VNNI),
    Int8Dense("qs8_qs8w_bsr4x4_dense_neon", rounds=False, dots=("neon",), rows=4),
    Int8Dense("qs8_qs8w_bsr4x4_dense_sdot", rounds=False, dots=("sdot",), rows=4),
    Int8Dense("qs8_qs8w_bsr4x4_dense_vnni", rounds=False, dots=_VNNI, rows=4),
    Int8Dense("qs8_qs8w_bsr8x4_dense_avx2", rounds=False, dots=("avx2",), rows=8),
    Int8Dense("qs8_qs8w_bsr8x4_dense_neon", rounds=False, dots=("neon",), rows=8),
    Int8Dense("qs8_qs8w_bsr8x4_dense_sdot", rounds=False, dots=("sdot",), rows=8),
    Int8Dense("qs8_qs8w_bsr8x4_dense_vnni", rounds=False, dots=_VNNI, rows=8),
    Int8Dense("qs8_qs8w_bsr16x4_dense_avx2", rounds=False, dots=("avx2",), rows=16),
    Int8Dense("qs8_qs8w_bsr16x4_dense_neon", rounds=False, dots=("neon",), rows=16),
    Int8Dense("qs8_qs8w_bsr16x4_dense_sdot", rounds=False, dots=("sdot",), rows=16),
    Int8Dense("qs8_qs8w_bsr16x4_dense_vnni", rounds=False, dots=_VNNI, rows=16),
    # half-precision arithmetic
    F16Dense("f16_dense"),
    # int16 arithmetic, every row of an fp32 input is rounded in the kernel
    Int16Dense("qd16_qs16w_dense_avx2", dots=("avx2",)),
    Int16Dense("qd16_qs16w_dense_vnni", dots=_VNNI),
)
