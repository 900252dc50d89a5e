"""Networks of the kinds people write answer what PyTorch answers, or are refused by the name of what they do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgecsi import target as targets
from edgecsi.errors import EdgecsiError
from edgecsi.lower import lower
from edgecsi.lower.export import tensors_of
from edgecsi.models.entries import entries_of
from edgecsi.models.load import load_model
from tests.lower import idioms, repositories
from tests.lower._answers import Answers

pytestmark = pytest.mark.filterwarnings("ignore")  # people use what PyTorch deprecates, and warns of
AT_ONCE = 30
# These were wrong once, or refused without need.
MENDED = {
    "assign_by_a_computed_mask", "constant_mask_index", "constant_mask_of_a_plane", "scatter_reduce", "encoder_mask",
    "searchsorted_quantiser", "decoder_stack", "fake_quantised", "one_example_for_two_inputs", "scalar_input", "Counting",
    "traced_module", "VectorQuantised", "python_max", "film", "part_of_a_concatenation",
    "distribution", "masked_select",
}  # fmt: skip
# The others in turns: `python -m tests.lower.idioms` builds all of them.
_FIRST = [name for name in idioms.NETWORKS if name not in repositories.OWN]
CHOSEN = [name for number, name in enumerate(_FIRST) if number % 3 == 0 or name in MENDED]
CHUNKS = [CHOSEN[i : i + AT_ONCE] for i in range(0, len(CHOSEN), AT_ONCE)]
CHUNKS.append([name for name in idioms.NETWORKS if name in repositories.MENDED])
INTO_A_TABLE = {"lookup", "embedding_bag", "distribution"}  # of which PyTorch says that it has no place NaN
NO_NAN = INTO_A_TABLE | repositories.RAISES_FOR_NAN
SKIPS_ZEROS = {"pruned_mask", "own_mask", "pruned_channels"}
"""Kernels for zeros do not multiply by them, and NaN stays out where every weight of a block is zero."""


class Together(nn.Module):
    """Several networks as one, which takes the inputs of all and returns the outputs of all: built once."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        made = [idioms.NETWORKS[name]() for name in names]
        entries = [
            entries_of(name, module, *inputs)["full"]
            for name, (module, inputs) in zip(names, made, strict=True)
        ]
        self.networks = nn.ModuleList([entry.module for entry in entries])
        self.takes = [len(entry.inputs) for entry in entries]
        self.example = [x for entry in entries for x in entry.inputs]
        self.owners = [name for name, entry in zip(names, entries, strict=True) for _ in entry.inputs]

    def forward(self, *inputs: Tensor) -> Any:
        given = iter(inputs)
        return [
            network(*(next(given) for _ in range(count)))
            for network, count in zip(self.networks, self.takes, strict=True)
        ]


def _inputs(example: list[Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
    generator = torch.Generator().manual_seed(5)
    yield "example", example
    for scale in (1, 10):
        yield (
            f"times {scale}",
            [
                scale * torch.randn(x.shape, generator=generator) if x.is_floating_point() else x
                for x in example
            ],
        )


@pytest.mark.parametrize("names", CHUNKS, ids=[f"{names[0]}..{names[-1]}" for names in CHUNKS])
def test_networks_answer_what_pytorch_answers(names: list[str]) -> None:
    torch.set_num_threads(1)
    together = Together(names).eval()
    with torch.no_grad():
        whose = [
            name
            for name, part in zip(names, together(*(x.clone() for x in together.example)), strict=True)
            for _ in tensors_of(part)
        ]
    compiled = Answers(together, together.example)
    for what, given in _inputs(together.example):
        wrong = {whose[number]: apart for number, apart in compiled.wrong(*given).items()}
        assert not wrong, what
    broken = [x.clone() for x in together.example]
    for x, name in zip(broken, together.owners, strict=True):
        if x.is_floating_point() and name not in NO_NAN:
            x.view(-1)[0] = float("nan")
    hidden = {
        name
        for name, (y, expected) in zip(whose, compiled.answers(*broken), strict=True)
        if (np.isfinite(y) & ~np.isfinite(expected)).any()
    }
    assert not hidden - SKIPS_ZEROS - repositories.HALF_A_NUMBER, (
        "NaN must come out wherever PyTorch lets it out"
    )


@pytest.mark.parametrize("name", idioms.REFUSED)
def test_what_cannot_be_compiled_is_refused_by_its_name(name: str) -> None:
    make, word = idioms.REFUSED[name]
    module, example = make()
    full = entries_of(name, module, *example)["full"]
    with pytest.raises(EdgecsiError) as refusal:
        lower(full.module, full.inputs, "full", targets.host())
    assert word.lower() in str(refusal.value).lower()
    assert "bug in edgecsi" not in str(refusal.value)


def test_every_one_is_loaded_as_a_user_gives_it() -> None:
    """Those that a build takes are taken by what comes before lowering, which the others here go past."""
    refused = {}
    for name in idioms.NETWORKS:
        try:
            load_model(f"{repositories.__name__}:made(name={name!r})")
        except EdgecsiError as error:
            refused[name] = str(error)
    assert not refused
