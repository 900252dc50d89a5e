"""What cannot be compiled is refused by the name its author knows, with the line of the file; nothing is called a bug."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecsi.compress import apply_post_training
from edgecsi.errors import ModelError
from edgecsi.lower.export import export, refuse_other_answers, refuse_ties
from tests._builds import lowered


class Does(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("count", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda s, x: F.dropout(x, 0.1),
            ["dropout is left on", "training=self.training", "test_refusals.py:"],
        ),
        (lambda s, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), ["dropout is left on"]),
        (lambda s, x: x + torch.randn_like(x), ["random numbers", "randn_like", "test_refusals.py:"]),
        (lambda s, x: x[x > 0], ["indexing with a mask", "torch.where", "test_refusals.py:"]),
        (lambda s, x: x.unique(), ["unique"]),
        (lambda s, x: x * x.max().item(), ["item()"]),
        (lambda s, x: x * 2 if x.sum() > 0 else x, ["decides by the values", "torch.where"]),
        (lambda s, x: torch.fft.fft(x), ["complex", "view_as_real"]),
        (lambda s, x: (x > 9).float().topk(3, -1)[1], ["which of equal values", "topk", "stable=True"]),
        (lambda s, x: torch.linalg.svd(x[0])[1], ["_linalg_svd", "test_refusals.py:"]),
    ],
)
def test_refusals_name_what_why_and_where(
    function: Callable[[Any, Tensor], Tensor], words: list[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        lowered(Does(function), torch.randn(1, 4, 8))
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "bug" not in text


def test_a_network_that_keeps_state_is_refused() -> None:
    def counts(self: Any, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x * self.count

    with pytest.raises(ModelError, match="state"):
        lowered(Does(counts), torch.randn(1, 8))


def test_dropout_of_probability_zero_and_in_eval_mode_is_no_dropout() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), Does(lambda s, x: F.dropout(x, 0.0)))
    assert lowered(network, torch.randn(1, 8)).calls


def test_an_export_may_be_off_by_what_rounding_does_and_never_by_more_than_a_thousandth() -> None:
    class Amplifies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + torch.sin(3e3 * x)

    module, x = Amplifies().eval(), torch.rand(1, 16, generator=torch.Generator().manual_seed(0))
    exported = export(module, [x])
    refuse_other_answers(module, exported, [x])
    for share, refused in ((1e-3, False), (3e-2, True)):  # of a part of the answer
        changed = replace(exported, constants=dict(exported.constants))
        for node, name in exported.names.items():
            if name == "fc.weight":
                changed.constants[node] = exported.constants[node] * (1 + share)
        with pytest.raises(ModelError, match="changes its answer") if refused else nullcontext():
            refuse_other_answers(module, changed, [x])


def test_an_export_of_a_compressed_network_may_be_off_by_what_its_quantisers_make_of_rounding() -> None:
    torch.manual_seed(0)
    layers = [part for _ in range(4) for part in (nn.LayerNorm(32), nn.Linear(32, 32))]
    x = torch.randn(4, 32)
    module = apply_post_training(nn.Sequential(*layers).eval(), x, "f16")
    exported = export(module, [x])
    for share, refused in ((1e-5, False), (1.0, True)):
        changed = replace(exported, constants=dict(exported.constants))
        for node, name in exported.names.items():
            if name == "0.weight":
                changed.constants[node] = exported.constants[node] * (1 + share)
        with pytest.raises(ModelError, match="changes its answer") if refused else nullcontext():
            refuse_other_answers(module, changed, [x])


def test_a_small_difference_is_not_laid_on_equal_values_where_their_order_decides_nothing() -> None:
    class Places(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.topk(3)[1]

    x = torch.randn(1, 40)
    linear = nn.Linear(40, 8)
    refuse_ties(linear, [[x]], [[linear(x) * (1 + 5e-5)]])
    refuse_ties(Places(), [[x]], [[Places()(x)]])
    equal = torch.zeros(1, 40)
    in_order = torch.sort(equal, descending=True, stable=True)[1][:, :3]
    assert not torch.equal(Places()(equal), in_order)
    with pytest.raises(ModelError, match="which of equal values"):
        refuse_ties(Places(), [[equal]], [[in_order]])
