"""Networks that are measured but not shipped: single layers, and zoo networks pruned to a pattern.

Latency depends on shapes and zeros, not on what the weights have learned: these have seeded random weights.
Every function is a factory for MODEL: ``edgecsi build edgecsi.results.workloads:linear_block16x1``.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

Workload = tuple["nn.Module", "Tensor"]
SPARSITY = 0.9


def linear() -> Workload:
    """A dense layer 2048 → 512, input ``[1, 2048]``: the encoder FC of CsiNet at CR 1/4."""
    return _linear()


def linear_unstructured() -> Workload:
    """:func:`linear` with 90 % zeros anywhere."""
    return _pruned(_linear(), 1, 1, SPARSITY)


def linear_block16x1() -> Workload:
    """:func:`linear` with 90 % of its blocks of 16 outputs × 1 input zero."""
    return _pruned(_linear(), 16, 1, SPARSITY)


def linear_block16x4() -> Workload:
    """:func:`linear` with 90 % of its blocks of 16 outputs × 4 inputs zero."""
    return _pruned(_linear(), 16, 4, SPARSITY)


def mlp() -> Workload:
    """A detector's MLP 60-600×7-20 with ReLU, input ``[1, 60]``."""
    return _mlp()


def mlp_block16x4() -> Workload:
    """:func:`mlp` with 90 % of its 16×4 blocks zero."""
    return _pruned(_mlp(), 16, 4, SPARSITY)


def csinet_cr4_block90() -> Workload:
    """CsiNet CR 1/4 with 90 % of the 16×4 blocks of its dense layers zero."""
    return _pruned(_zoo("csinet-cr4"), 16, 4, SPARSITY)


def csinet_cr4_block75() -> Workload:
    """CsiNet CR 1/4 with 75 % of the 16×4 blocks of its dense layers zero."""
    return _pruned(_zoo("csinet-cr4"), 16, 4, 0.75)


def csinet_cr16_block90() -> Workload:
    """CsiNet CR 1/16 with 90 % of the 16×4 blocks of its dense layers zero."""
    return _pruned(_zoo("csinet-cr16"), 16, 4, SPARSITY)


def crnet_cr4_block90() -> Workload:
    """CRNet CR 1/4 with 90 % of the 16×4 blocks of its dense layers zero."""
    return _pruned(_zoo("crnet-cr4"), 16, 4, SPARSITY)


def csinet_convolutions() -> Workload:
    """The two RefineNets of CsiNet's decoder, six of its seven convolutions, input ``[1, 2, 32, 32]``."""
    module, example = _zoo("csinet-cr4")
    return module.get_submodule("decoder.refine"), example


def transformer_codec() -> Workload:
    """A codec of two transformer layers on each side, 32 tokens of 128 numbers with 512 between them, and a codeword of
    512, input ``[1, 2, 32, 32]``."""
    import torch
    from torch import nn

    _seeded()

    def tokens() -> nn.Module:
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    encoder = nn.Sequential(
        nn.Flatten(), nn.Unflatten(1, (32, 64)), nn.Linear(64, 128), tokens(), nn.Flatten(), nn.Linear(4096, 512)
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(512, 4096), nn.Unflatten(1, (32, 128)), tokens(), nn.Linear(128, 64), nn.Flatten(),
        nn.Unflatten(1, (2, 32, 32)),
    )  # fmt: skip
    module = nn.Sequential(OrderedDict(encoder=encoder, decoder=decoder))
    return module.eval(), 0.5 + 0.025 * torch.randn(1, 2, 32, 32)


def prune_blocks(weight: Tensor, rows: int, columns: int, sparsity: float) -> Tensor:
    """A copy of a dense layer's weight with the weakest blocks zero.

    Args:
        weight: ``[outputs, inputs]``; a part of a block at the edge counts as a block.
        rows: outputs of a block.
        columns: inputs of a block.
        sparsity: share of the blocks that becomes zero, by their sum of squares.
    """
    import torch

    outputs, inputs = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -inputs % columns, 0, -outputs % rows))
    tiles = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    strength = tiles.square().sum(dim=(1, 3))
    zeros = round(sparsity * strength.numel())
    keep = torch.ones(strength.numel(), dtype=torch.bool)
    keep[strength.flatten().argsort(stable=True)[:zeros]] = False
    tiles = tiles * keep.reshape(strength.shape)[:, None, :, None]
    return tiles.reshape(padded.shape)[:outputs, :inputs].contiguous()


def _seeded() -> None:
    import torch

    torch.manual_seed(0)


def _linear() -> Workload:
    import torch
    from torch import nn

    _seeded()
    return nn.Linear(2048, 512).eval(), torch.randn(1, 2048)


def _mlp() -> Workload:
    import torch
    from torch import nn

    _seeded()
    widths = [60, *[600] * 7, 20]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval(), torch.randn(1, 60)


def _zoo(name: str) -> Workload:
    import torch

    from edgecsi.models import registry

    _seeded()
    module = registry.create(name)
    return module, 0.5 + 0.025 * torch.randn(registry.find(name).input_shape)


def _pruned(workload: Workload, rows: int, columns: int, sparsity: float) -> Workload:
    import torch
    from torch import nn

    module, example = workload
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.weight.copy_(prune_blocks(part.weight, rows, columns, sparsity))
    return module, example
