"""Random small networks answer what PyTorch answers; `tests.lower.random_networks` makes as many as one likes."""

from __future__ import annotations

import pytest

from tests.lower.random_networks import SEEDS, verdict_of


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")  # PyTorch's word about its own speed
@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network_answers_what_pytorch_answers(seed: int) -> None:
    assert verdict_of(seed) == "right"
