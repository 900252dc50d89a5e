"""Networks of other papers lower to int8 kernels: attention, convolutions of one tap, codebooks and bits."""

from __future__ import annotations

import pytest
from torch import nn

from edgecsi import target as targets
from edgecsi.compress import apply_post_training
from edgecsi.compress.choose import left_in_fp32
from edgecsi.lower import lower
from edgecsi.models.compressed.layers import CompressedLayer
from edgecsi.results.papers import networks


@pytest.mark.parametrize("make", networks.NETWORKS, ids=lambda make: make.__name__)
@pytest.mark.filterwarnings("ignore::edgecsi.errors.Notice")
def test_every_dense_layer_is_multiplied_in_int8(make: networks.Factory) -> None:
    module, example = make()
    small = apply_post_training(module, example, "int8-dynamic")
    assert not left_in_fp32(small, (nn.Linear,), ())
    dense = sum(isinstance(part, CompressedLayer) for part in small.modules())
    assert dense >= 2
    (entry,) = lower(small, [example], "full", targets.load("rpi5"))
    assert sum(call.kernel.startswith("qd8_") for call in entry.calls) >= dense
