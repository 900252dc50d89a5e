"""Full dumps of kernels' spaces, on which tests replay the search: ``python -m edgecsi.results.spaces``.

Every setting of some layers is measured on this machine, for its exact CPU and for AVX2, and counted under QEMU for the
Raspberry Pi 4. A few hundred points a target take some three minutes; what is measured is kept at once in the user's
cache, so that an interrupted run goes on. The dumps are small JSON files, one a layer and target.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from edgecsi import cpu, disk
from edgecsi import target as targets
from edgecsi.kernels.records import Record, append, read_records
from edgecsi.kernels.variants import all_kernels, candidates, estimate, grid
from edgecsi.kernels.workload import workload
from edgecsi.results import script
from edgecsi.results.files import write_json
from edgecsi.target import Target
from edgecsi.tune.isolated import Devices, TuningDevice
from edgecsi.tune.measure import TOGETHER, LayerBench
from edgecsi.tune.network import open_tuning_device
from edgecsi.tune.search import Setting
from edgecsi.tune.work import Work, works_of

LAYERS = (
    ("winograd", "csinet-cr4", "refine.0.path.expand2.conv", "winograd"),
    ("int8-conv", "csinet-cr4+prune90-bsr16x4-int8", "refine.0.path.expand2.conv", ""),
    ("int8-dense", "csinet-cr4+int8-dynamic", "fc", "qd8_qs8w_dense"),
    ("sparse-dense", "csinet-cr4+prune90-bsr16x4", "fc", "bsr sell compact"),
)
"""Name of the dump, network, layer, and what the names of the kernels contain (one of these words)."""
TARGETS = ("host", "x86", "rpi4")
FOLDER = Path("tests") / "tune" / "spaces"


@script.in_words
def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = script.parser("spaces", __doc__)
    parser.add_argument("--to", type=Path, default=FOLDER, metavar="FOLDER", help="of the dumps")
    parser.add_argument("--targets", default=",".join(TARGETS), metavar="T,...", help="default: all")
    parser.add_argument("--only", default="", metavar="TEXT", help="dumps whose name has it")
    chosen = parser.parse_args(arguments)
    for name in chosen.targets.split(","):
        target = targets.load(name)
        device, counted = open_tuning_device("emulate" if target.missing_on_this_cpu() else "local", target)
        with closing(device):
            for layer in LAYERS:
                if chosen.only in layer[0]:
                    dump(layer, target, device, counted, chosen.to)
    return 0


def dump(
    layer: tuple[str, str, str, str], target: Target, device: TuningDevice, counted: bool, folder: Path
) -> None:
    """Measure what is not known of one layer's space, and write it down."""
    name, model, path, words = layer
    # The works are in order of predicted time: the longest of equal names.
    work = next(w for w in works_of(model, target).values() if w.names[0] == path)
    where = cpu.llvm_name() or target.mcpu if not counted else target.mcpu
    bench = LayerBench(work.choice.op, target, Devices([device]), work.beside, counted)
    grids = {
        kernel.name: (knobs, grid(kernel, work.choice.op, target))
        for kernel, knobs, _ in candidates(work.choice.op, target)[0]
        if any(word in kernel.name for word in words.split() or [""])
    }
    log = disk.cache_dir() / "spaces" / f"{target.id}-{where}.jsonl"
    known = read_records([log]).trials(target, where, bench.means)
    key = workload(work.choice.op)

    def times(settings: Sequence[Setting]) -> Iterator[float | None]:
        for setting in settings:
            record: Record | None = known.get((key, setting.kernel, setting.knobs))
            yield record.us if record is not None and record.status == "ok" else None

    every = [setting for kernel in grids for setting in points(kernel, grids[kernel][1])]
    # Neighbours in the grid are measured at different times: what disturbs a minute disturbs no region.
    left = [s for s in every if (key, s.kernel, s.knobs) not in known]
    left = [s for start in range(29) for s in left[start::29]]
    for start in range(0, len(left), TOGETHER):
        some = left[start : start + TOGETHER]
        bench.quick(some)
        records = [bench.record(setting, where) for setting in some]
        append(log, records)
        known |= {record.setting: record for record in records}
        sys.stderr.write(f"{target.id} {name}: {start + len(some)} of {len(left)}\n")
    made = {
        kernel: {
            "default": dict(knobs),
            "grid": {knob: list(some) for knob, some in values.items()},
            "times": [None if t is None else round(t, 4) for t in times(points(kernel, values))],
            "predicted": [_predicted(work, target, s) for s in points(kernel, values)],
        }
        for kernel, (knobs, values) in grids.items()
    }
    default = min(
        grids, key=lambda kernel: _predicted(work, target, Setting.of(kernel, grids[kernel][0])) or 1e9
    )
    write_json(folder / f"{name}-{where}-{target.id}.json", {
        "layer": f"{model} {path}", "target": target.id, "cpu": where, "means": bench.means,
        "tvm": version("apache-tvm"), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "default": default, "kernels": made,
    })  # fmt: skip


def points(kernel: str, values: Mapping[str, Sequence[int]]) -> list[Setting]:
    """All settings of a kernel's grid, the last knob changing fastest."""
    return [
        Setting.of(kernel, dict(zip(values, some, strict=True)))
        for some in itertools.product(*values.values())
    ]


def _predicted(work: Work, target: Target, setting: Setting) -> float | None:
    try:
        cost = estimate(all_kernels()[setting.kernel], work.choice.op, target, dict(setting.knobs))
    except (ArithmeticError, ValueError, LookupError, AssertionError):
        return None
    return round(cost.seconds * 1e6, 4)


if __name__ == "__main__":
    sys.exit(main())
