"""Lowering as its user sees it: what is refused, the plan, and the IR that can be looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgecsi.compress import apply_post_training
from edgecsi.errors import EdgecsiError, UnsupportedOperators
from edgecsi.lower import PASSES
from tests._builds import NETWORKS, build_for, lowered
from tests.lower import networks

pytestmark = pytest.mark.filterwarnings("ignore::edgecsi.errors.Notice")  # untrained networks


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(x) + torch.special.bessel_j0(x)


class Strange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)
        self.body = nn.Sequential(Odd(), nn.Linear(8, 8), Odd())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.head(x))


def test_operators_that_cannot_be_lowered_are_listed_together_with_their_modules() -> None:
    with pytest.raises(UnsupportedOperators) as caught:
        lowered(Strange(), torch.zeros(1, 8))
    places = {path.partition(",")[0] for _, path in caught.value.operators}
    assert places == {"body.0", "body.2"}
    assert all("test_lowering.py:" in path for _, path in caught.value.operators)
    assert len({name for name, _ in caught.value.operators}) >= 2
    for name, path in caught.value.operators:
        assert f"{name} (in {path})" in str(caught.value)


def test_batch_norm_and_activation_cost_no_call_of_their_own() -> None:
    entry = lowered(*networks.NETWORKS["grouped"]())
    kinds = [call.report["op"] for call in entry.calls]
    assert kinds.count("conv2d") == 4
    assert len(kinds) <= 5  # at most the caller's x is copied to get a border


def test_flatten_and_reshape_cost_no_call() -> None:
    entry = lowered(*networks.NETWORKS["batched"]())
    assert [c.report["op"] for c in entry.calls if c.report["op"] != "elementwise"] == ["conv2d", "dense"]
    assert len(entry.calls) <= 3


@pytest.mark.parametrize("network", ["attention", "mixed", "recurrent"])
def test_what_no_kernel_of_ours_takes_is_vectorised(network: str) -> None:
    entry = lowered(*networks.NETWORKS[network]())
    generated = [call for call in entry.calls if call.kernel == "tvm"]
    assert generated
    for call in generated:
        assert "T.vectorized" in call.function.script(), call.function.script()


def test_views_at_offsets_copy_nothing_but_what_is_given_back() -> None:
    entry = lowered(*networks.NETWORKS["views"]())
    offsets = {place.offset for call in entry.calls for place in call.arguments if place.kind == "in"}
    assert 24 * 4 in offsets  # the second part of x.split([24, 40], 1)
    assert 8 * 4 in offsets  # x[:, 8:40]


def test_every_step_of_the_ir_is_written(tmp_path: Path) -> None:
    result = build_for(f"{NETWORKS}:branches", "x86", tmp_path / "out", dry_run=True, dump_ir=tmp_path / "ir")
    assert result.bundle is None
    names = sorted(path.name for path in (tmp_path / "ir" / "full").iterdir())
    steps = [
        "relax",
        "graph",
        *(p.__name__ for p in PASSES),
        "integers_in_fp32",
        "leave_to_tvm",
        "choose_layouts",
        "plan-full",
    ]
    assert names == [f"{number:02d}-{step}.txt" for number, step in enumerate(steps)]
    assert "R.nn.conv2d" in (tmp_path / "ir/full/00-relax.txt").read_text()
    assert "full: " in (tmp_path / "ir/full" / names[-1]).read_text()
    assert not (tmp_path / "out").exists()


def test_an_ir_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgecsiError, match="--dump-ir"):
        build_for(f"{NETWORKS}:views", "x86", tmp_path / "out", dry_run=True, dump_ir=tmp_path / "file")


def test_the_plan_says_which_kernel_and_why_at_what_cost(tmp_path: Path) -> None:
    result = build_for(f"{NETWORKS}:grouped", "rpi4", tmp_path / "out", dry_run=True)
    layers = result.manifest.entries["full"].layers
    convolutions = [layer for layer in layers if layer.op == "conv2d"]
    assert [layer.name for layer in convolutions] == ["wide", "depthwise", "groups", "last"]
    assert [layer.macs for layer in convolutions] == [
        1024 * n for n in (2 * 16 * 49, 16 * 49, 24 * 4 * 9, 24 * 2)
    ]
    for layer in convolutions:
        assert layer.kernel.startswith("f32_")
        assert layer.why
        assert layer.predicted_us is not None
        assert layer.predicted_us > 0
    module, _ = networks.grouped()
    weights = sum(c.weight.numel() for c in module.modules() if isinstance(c, nn.Conv2d))
    assert sum(layer.bytes for layer in convolutions) >= 4 * weights


def test_zeros_choose_the_kernel() -> None:
    torch.manual_seed(0)
    full, sparse = nn.Linear(2048, 512).eval(), nn.Linear(2048, 512).eval()
    keep = torch.rand(512 // 16, 2048) < 0.1
    with torch.no_grad():
        sparse.weight *= keep.repeat_interleave(16, 0)
    plans = [lowered(m, torch.zeros(1, 2048), "x86-64-v4") for m in (full, sparse)]
    (dense,), (blocks,) = (plan.calls for plan in plans)
    assert dense.report["density"] == 1.0
    assert blocks.report["density"] == pytest.approx(0.1, abs=0.01)
    assert dense.kernel == "f32_dense"
    assert blocks.kernel != "f32_dense"
    assert blocks.report["bytes"] < dense.report["bytes"] / 4


def test_weights_are_prefetched_where_a_call_reads_more_than_the_cache_holds() -> None:
    one = torch.nn.Sequential(nn.Linear(512, 512)).eval()
    three = torch.nn.Sequential(*(nn.Linear(512, 512) for _ in range(3))).eval()
    ahead = []
    for module in (one, three):
        example = torch.zeros(1, 512)
        small = apply_post_training(module, example, "int8-dynamic")
        plan = lowered(small, example, "x86-64-v3")  # 256 KiB of cache, and as much a layer
        ahead.append([call.report["knobs"]["ahead"] for call in plan.calls])
    assert ahead[0] == [0]
    assert len(ahead[1]) == 3
    assert min(ahead[1]) > 0


def test_integers_come_out_as_int32() -> None:
    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 3).argmax(-1)

    entry = lowered(Whole(), torch.zeros(1, 8))
    assert [t.dtype for t in entry.outputs] == ["int32"]
