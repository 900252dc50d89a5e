"""Dense layer in fp32 without unused inputs and outputs, or with weights that were taken out of a table."""

from edgecsi.kernels.base import register
from edgecsi.kernels.dense.float import BlockDense


@register
class F32CompactDense(BlockDense):
    name = "f32_compact_dense"
    weights = "f32"
