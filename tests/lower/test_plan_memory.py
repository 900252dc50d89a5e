"""The workspace: tensors that live at the same time never share memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecsi.codegen.program import ALIGN, PlannedEntry
from edgecsi.lower.plan_memory import Use, plan
from tests._builds import lowered
from tests.lower import networks

USES = st.lists(
    st.tuples(st.integers(1, 10_000), st.integers(0, 30), st.integers(0, 10)).map(
        lambda t: Use(t[0], t[1], t[1] + t[2])
    ),
    max_size=40,
)


@given(USES)
def test_live_tensors_never_overlap(uses: list[Use]) -> None:
    total = plan(uses)
    for number, one in enumerate(uses):
        assert one.offset >= 0
        assert one.offset % ALIGN == 0
        assert one.offset + one.size <= total
        for other in uses[:number]:
            apart_in_time = one.last < other.first or other.last < one.first
            apart_in_space = one.offset + one.size <= other.offset or other.offset + other.size <= one.offset
            assert apart_in_time or apart_in_space


@given(USES)
def test_the_workspace_is_no_larger_than_all_tensors_side_by_side(uses: list[Use]) -> None:
    total = plan(uses)
    assert total <= sum(-(-use.size // ALIGN) * ALIGN for use in uses)
    busiest = max((sum(u.size for u in uses if u.first <= step <= u.last) for step in range(41)), default=0)
    assert total >= busiest


def test_a_chain_needs_room_for_two() -> None:
    assert plan([Use(64, step, step + 1) for step in range(20)]) == 128


@pytest.mark.parametrize("network", ["recurrent", "mixed", "branches"])
def test_every_argument_lies_inside_of_its_memory(network: str) -> None:
    entry = lowered(*networks.NETWORKS[network]())
    _assert_inside(entry)
    assert 0 < entry.workspace < 1 << 20


def _assert_inside(entry: PlannedEntry) -> None:
    for call in entry.calls:
        for place in call.arguments:
            match place.kind:
                case "workspace":
                    assert 0 <= place.offset < entry.workspace
                case "in":
                    assert 0 <= place.offset < 4 * entry.inputs[place.at].size
                case "out":
                    assert 0 <= place.offset < 4 * entry.outputs[place.at].size
                case _:
                    assert place.kind == "constant"
                    assert 0 <= place.at < len(call.constants)
