"""What the measurement finds where there is nothing to find: ``python -m edgecsi.results.self_check``.

A library is measured against itself a hundred times, by the protocol of ``edgecsi bench --self-check``. The interval
of the ratio claims to hold the truth in 95 of 100 runs, and the truth is 1. Then the C call as bench times it and the
bundle's own program take turns. Both are kept in the results, shown on their page, and said in docs/how-we-measure.md.
It takes some five minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from edgecsi import disk
from edgecsi.bench.environment import judge, machine, snapshot
from edgecsi.bench.measure import QUICK
from edgecsi.bench.self_check import against_itself, compiled_program, middle_turn, program_median
from edgecsi.bundle import read_bundle, read_golden
from edgecsi.device import Local
from edgecsi.results import script
from edgecsi.results.bars import CLOSE, code_digest, held, program_difference
from edgecsi.results.bundles import run_edgecsi
from edgecsi.results.files import Json, own_folder, write_between, write_json
from edgecsi.results.run import require_quiet, write_pages

MARKS = "<!-- self_check -->", "<!-- /self_check -->"


@script.in_words
def main(arguments: Sequence[str] | None = None) -> int:
    """The script; its exit code is 1 if too few intervals hold 1, or the program disagrees."""
    parser = script.parser("self_check", __doc__, "results/", times=True)
    parser.add_argument("--model", default="csinet-cr16", help="MODEL to build and measure")
    parser.add_argument("--entry", default="encoder")
    parser.add_argument("--runs", type=int, default=100, metavar="N")
    chosen = parser.parse_args(arguments)
    if not chosen.anyway:
        require_quiet()
    found = check(chosen.model, chosen.entry, chosen.runs)
    write_json(own_folder(chosen.docs / "results", machine().cpu) / "self_check.json", found)
    write_between(chosen.docs / "how-we-measure.md", *MARKS, sentence(found))
    write_pages(chosen.docs)
    print(sentence(found))
    return 0 if held(found) and abs(program_difference(found)) <= CLOSE else 1


def sentence(found: Json) -> str:
    """What was found, in words."""
    validity = found["validity"]
    doubt = (
        "" if validity["state"] == "valid" else f" ({validity['state']}: {'; '.join(validity['reasons'])})"
    )
    return (
        f"Last found, on {found['machine']['cpu']}, {found['date'][:10]}{doubt}: {found['held']} of {found['runs']} "
        f"intervals hold 1, and the two figures differ by {abs(program_difference(found)):.1%}."
    )


def check(model: str, entry: str, runs: int) -> Json:
    """Builds the model for this machine and measures it against itself ``runs`` times."""
    with disk.scratch(runs=True) as scratch:
        run_edgecsi(["build", model, "--target", "host", "-o", "bundle"], scratch)
        bundle = read_bundle(scratch / "bundle")
        before = snapshot()
        ratios = []
        for number in range(1, runs + 1):
            ratios.append(against_itself(bundle, entry, QUICK))
            print(f"{number}/{runs}: {ratios[-1].ratio:.4f}", flush=True)
        device = Local()
        samples = [
            array[:1].reshape(tensor.shape)
            for array, tensor in zip(read_golden(bundle, entry)[0], bundle.entry(entry).inputs, strict=True)
        ]
        binary = compiled_program(bundle, scratch)
        pairs = [
            (
                float(np.median(device.time(bundle, entry, samples, 1001))) / 1e3,
                program_median(bundle, binary, entry, device),
            )
            for _ in range(21)
        ]
        after = snapshot()
    bench, program = middle_turn(pairs)
    return {
        "kind": "self-check",
        "model": model,
        "entry": entry,
        "runs": runs,
        "held": sum(ratio.interval.low <= 1 <= ratio.interval.high for ratio in ratios),
        "ratios": [[ratio.ratio, ratio.interval.low, ratio.interval.high] for ratio in ratios],
        "program": {"us": program, "bench_us": bench, "pairs": pairs},
        "machine": dataclasses.asdict(machine()),
        "validity": dataclasses.asdict(judge(before, after, where=machine())),
        "date": after.date,
        "code": code_digest(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
