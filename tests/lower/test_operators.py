"""Every operator as people write it answers what PyTorch answers, NaN and infinity included."""

from __future__ import annotations

import pytest
import torch

from tests.lower import operators
from tests.lower._answers import Answers


@pytest.mark.parametrize("theme", operators.THEMES)
def test_operators_answer_what_pytorch_answers(theme: str) -> None:
    module, example = operators.network(theme)
    compiled = Answers(module, [example])
    names = list(operators.THEMES[theme])
    generator = torch.Generator().manual_seed(5)
    for x in (
        example,
        torch.rand(example.shape, generator=generator),
        4 * torch.randn(example.shape, generator=generator),
    ):
        wrong = {names[number]: apart for number, apart in compiled.wrong(x).items()}
        assert not wrong


def test_nan_and_infinity_come_out_where_pytorch_lets_them_out() -> None:
    module, example = operators.network("pooling")
    compiled = Answers(module, [example])
    x = example.clone()
    x[0, 0, 0, 0], x[0, 1, 3, 3], x[0, 2, 5, 5] = float("nan"), float("inf"), -float("inf")
    names = list(operators.THEMES["pooling"])
    assert not [names[number] for number in compiled.wrong(x)]
