"""What is said of a choice is true of the kernel and the knobs that are used."""

from __future__ import annotations

import numpy as np
import pytest

from edgecsi.lower.graph import Graph, Node, Value
from edgecsi.lower.select_kernels import Choice, select_kernels
from edgecsi.target import load


def _layers(*outputs: int) -> Graph:
    """Int8 layers one after the other, half of whose inputs have small weights."""
    rng = np.random.default_rng(0)
    width, at = 1024, Value("x", (1, 1024))
    nodes, inputs = [], [at]
    for number, size in enumerate(outputs):
        limit = np.resize(np.repeat([4, 127], 512), width)
        weight = rng.integers(-limit, limit, (size, width)).astype(np.int8)
        scale = np.ones(size, np.float32)
        y = Value(f"y{number}", (1, size))
        attrs = {"weight": weight, "bias": None, "scale": scale, "dynamic": True}
        nodes.append(Node("dense", [at], y, attrs))
        width, at = size, y
    return Graph("layers", inputs, [at], nodes)


@pytest.mark.parametrize("target", ["x86-64-v4", "x86-64-v3", "rpi4"])
def test_knobs_time_and_reason_are_of_one_choice(target: str) -> None:
    board = load(target)
    chosen = select_kernels(_layers(96, 4096, 1024), board)
    assert len(chosen) == 3
    for choice in chosen:
        assert isinstance(choice, Choice)
        assert choice.knobs == choice.kernel.knobs(choice.op, board)
        assert choice.cost == choice.kernel.cost(choice.op, board, choice.knobs)
        assert choice.why.startswith(f"{choice.cost.seconds * 1e6:.1f} µs predicted")
    assert isinstance(chosen[0], Choice)
    if board.dot == "avx512_vnni":  # the first layer fits the cache, but shares it with the others
        assert chosen[0].knobs["narrow"] == 1
