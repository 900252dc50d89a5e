"""What there is to tune in a network: its kinds of layers, each once, with what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Literal

from edgecsi.codegen.program import PlannedEntry
from edgecsi.errors import UsageError
from edgecsi.kernels.records import Means, Record
from edgecsi.kernels.tiling import read_gbps
from edgecsi.kernels.variants import all_kernels, estimate
from edgecsi.kernels.workload import code, workload
from edgecsi.lower import choose
from edgecsi.lower.graph import Graph, Node
from edgecsi.lower.plan_calls import Planner
from edgecsi.lower.select_kernels import Choice
from edgecsi.names import batch_entry
from edgecsi.ops.operators import Op
from edgecsi.target import Target
from edgecsi.tune.measure import LayerBench
from edgecsi.tune.result import Candidate, TunedLayer
from edgecsi.tune.search import Found, Setting, Time


@dataclass(frozen=True)
class LoweredEntry:
    """An entry: its graph and the default choice of every layer, for one input (`single`) and for `batch` at once."""

    graph: Graph
    single: list[Choice | Node]
    chosen: list[Choice | Node]
    batch: int = 1

    def planned(self, label: str, target: Target, chosen: list[Choice | Node]) -> PlannedEntry:
        """The entry with other choices."""
        if self.batch == 1:
            return Planner(self.graph, chosen, target).entry(label, 1)
        return Planner(self.graph, self.single, target).entry(label, self.batch, chosen)


LoweredEntries = dict[str, LoweredEntry]
"""By the names of entries."""


@dataclass
class Work:
    """One kind of layer, wherever it is met."""

    choice: Choice
    beside: int
    names: list[str] = field(default_factory=list)
    found: Found | None = None
    bench: LayerBench | None = None
    given_up: bool = False
    cycles: dict[Setting, float] = field(default_factory=dict)
    """Of counted settings: the millions of cycles that they are estimated to take."""

    firsts: tuple[float | None, float] = (None, float("inf"))
    """The first times of the default and of the best so far."""

    def note(self, setting: Setting, time: Time | None) -> None:
        """Hear of a setting's first time, or that it failed."""
        if time is not None:
            default, best = self.firsts
            self.firsts = time.median if setting == self.default else default, min(best, time.median)

    @property
    def default(self) -> Setting:
        """What is chosen without records."""
        return Setting.of(self.choice.kernel.name, self.choice.knobs)

    @property
    def changed(self) -> bool:
        """Whether what was chosen is new: measured now, or an old choice that lost in place."""
        return self.bench is not None or self.given_up


def lowered_entries(
    model: str,
    target: Target,
    entry: str | None,
    weights: str | None,
    recipe: str | None,
    calib: str | None,
    input_shape: Sequence[int] | None,
    allow_random: bool,
    batches: Sequence[int] = (),
) -> LoweredEntries:
    """The lowered entries to search, with the default choice of every layer, and those for batches."""
    from edgecsi.models.load import load_model

    loaded = load_model(model, weights, input_shape, allow_random=allow_random)
    entries = loaded.entries
    if recipe is not None:
        from edgecsi.compress.post_training import compressed

        entries = compressed(loaded, recipe, calib).entries
    halves: list[str] = [name for name in ("encoder", "decoder") if name in entries]
    names = [entry] if entry else halves or ["full"]
    if unknown := set(names) - set(entries):
        raise UsageError(
            f"{model} has no entry {unknown.pop()!r}", f"it has {', '.join(entries)}", "name one of these"
        )
    found: LoweredEntries = {}
    for name in names:
        graph, chosen = choose(entries[name].module, entries[name].inputs, name, target)
        found[name] = LoweredEntry(graph, chosen, chosen)
        for count in batches:
            wide = Planner(graph, chosen, target).batched(count)
            found[batch_entry(name, count)] = LoweredEntry(graph, chosen, wide, count)
    return found


def kinds_of(lowered: LoweredEntries) -> dict[str, Work]:
    """Equal layers once, those predicted to take longest first."""
    found: dict[str, Work] = {}
    for entry in lowered.values():
        choices = [c for c in entry.chosen if isinstance(c, Choice)]
        total = sum(c.cost.bytes for c in choices)
        for choice in choices:
            work = found.setdefault(workload(choice.op), Work(choice, int(total - choice.cost.bytes)))
            work.names.append(choice.op.name or choice.node.output.name)
    return dict(sorted(found.items(), key=lambda item: -item[1].choice.cost.seconds))


def so_far(work: Work, works: Mapping[str, Work], counted: bool) -> str:
    """The best of a layer against its default, and what that makes of the network, layers not measured yet taking what
    they are predicted to; of counted ones nothing is predicted."""
    default, best = work.firsts
    if not default:
        return ""
    text = f", best {best / default:.2f} of the default"
    if counted:
        return text
    sums = [0.0, 0.0]
    for layer in works.values():
        before, after = layer.firsts
        if before is None:
            before = after = layer.choice.cost.seconds * 1e6
        sums = [sums[0] + before * len(layer.names), sums[1] + after * len(layer.names)]
    return f"; all layers {sums[1]:.4g} of {sums[0]:.4g} µs"


def works_of(model: str, target: Target) -> dict[str, Work]:
    """The kinds of layers of a network that needs no more than its name."""
    return kinds_of(lowered_entries(model, target, None, None, None, None, None, True))


def wins(found: Found) -> bool:
    return found.best_time is not found.default_time


def give_up(work: Work) -> None:
    """The choice lost in place: the default stays."""
    assert work.found is not None
    found = work.found
    work.found, work.given_up = replace(found, best=work.default, best_time=found.default_time), True


def with_found(choice: Choice, found: Found | None) -> Choice:
    """A choice with the kernel and knobs that were found."""
    if found is None:
        return choice
    kernel, knobs = all_kernels()[found.best.kernel], dict(found.best.knobs)
    return replace(choice, kernel=kernel, knobs=knobs, why="tuned")


def choice_record(work: Work, target: Target, cpu_name: str, means: Means) -> Record:
    assert work.found is not None
    best = work.found.best
    op, kernel = work.choice.op, all_kernels()[best.kernel]
    return Record(
        "choice", workload(op), work.names[0], best.kernel, dict(best.knobs), code(kernel, op, target, dict(best.knobs)),
        target.id, cpu_name, version("apache-tvm"), means, round(work.found.best_time.median, 4),
        round(work.found.default_time.median, 4), date=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def tuned_layer(work: Work, target: Target, counted: bool) -> TunedLayer:
    """What was found; times, not counts, are held against the target's peaks."""
    assert work.found is not None
    found = work.found
    times: dict[str, list[float]] = {}
    for setting, taken in found.tried.items():
        if taken is not None:
            times.setdefault(setting.kernel, []).append(taken.median)
    statuses = [outcome.status for outcome in work.bench.outcomes.values()] if work.bench is not None else []
    op = work.choice.op
    waits, least_us = bound(found.best, op, target)
    share = None if counted or waits is None else min(1.0, least_us / found.best_time.median)
    return TunedLayer(
        layer=work.names[0], others=tuple(work.names[1:]), workload=workload(op),
        default=_named(work.default), best=_named(found.best),
        default_us=found.default_time.median, best_us=found.best_time.median, kept=wins(found),
        tried=sum(len(v) for v in times.values()),
        failed=sum(status in ("wrong", "crashed", "hung") for status in statuses),
        times={kernel: tuple(taken) for kernel, taken in times.items()}, bound=waits, share=share,
        default_cycles=work.cycles.get(work.default),
        best_cycles=work.cycles.get(found.best),
    )  # fmt: skip


def _named(setting: Setting) -> Candidate:
    return Candidate(setting.kernel, dict(setting.knobs))


def bound(setting: Setting, op: Op, target: Target) -> tuple[Literal["bytes", "MACs"] | None, float]:
    """What takes a setting longest by the target's own figures, and the µs that it takes at least."""
    cost = estimate(all_kernels()[setting.kernel], op, target, dict(setting.knobs))
    integer = setting.kernel.startswith(("qd8", "qs8")) and target.dot in ("avx512_vnni", "avx_vnni", "sdot")
    peak = target.peak_gmacs_f32 * (4 if integer else 1)
    reading, multiplying = cost.bytes / read_gbps(target, cost.bytes) / 1e3, cost.macs / peak / 1e3
    if not reading and not multiplying:
        return None, 0.0
    return "bytes" if reading >= multiplying else "MACs", max(reading, multiplying)


def waits_for_memory(setting: Setting, op: Op, target: Target) -> bool:
    """Whether reading what is too large for the L1 cache takes a setting longest: instructions do not tell how long."""
    cost = estimate(all_kernels()[setting.kernel], op, target, dict(setting.knobs))
    return cost.bytes > target.l1_bytes and bound(setting, op, target)[0] == "bytes"
