"""Today's code against an earlier commit's: ``python -m edgecsi.results.before COMMIT``.

The networks of :data:`edgecsi.results.scenarios.CHANGES` are built twice, by processes that run the code of the commit
and by processes that run today's, with the packages that are installed now. The two libraries of a network are loaded
side by side, and their C calls take turns. The results are kept in docs/results, and shown on their page.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgecsi import disk
from edgecsi.bench import statistics
from edgecsi.bench.environment import judge, machine, snapshot
from edgecsi.bench.measure import FULL, QUICK, c_calls_in_turns
from edgecsi.bundle import Bundle, read_bundle, read_golden
from edgecsi.device import Local
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.errors import UsageError
from edgecsi.results import script, workloads
from edgecsi.results.bars import code_digest
from edgecsi.results.bundles import CODE, build_each, plain_build, words
from edgecsi.results.files import Json, leave_own_records_out, own_folder, write_json
from edgecsi.results.run import require_quiet, write_pages
from edgecsi.results.scenarios import CHANGES, Change

KEPT = "before.json"
SETTLE = 10
"""Calls at the start of a turn that are not counted: the other library's weights are in the caches."""


@script.in_words
def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = script.parser("before", __doc__, "results/", times=True)
    parser.add_argument("commit", metavar="COMMIT", help="as git names it: d86fd75, v0.1.0, HEAD~10")
    parser.add_argument("--only", default="", metavar="TEXT", help="networks whose name has it")
    parser.add_argument("--quick", action="store_true", help="the cut-down protocol; the page says so")
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="for every library and network, at least"
    )
    chosen = parser.parse_args(arguments)
    changes = [change for change in CHANGES if chosen.only in change.name]
    if not changes:
        raise UsageError(
            f"no network has {chosen.only!r} in its name",
            f"there are {', '.join(change.name for change in CHANGES)}",
            "choose another --only",
        )
    if not chosen.anyway:
        require_quiet()
    protocol = QUICK if chosen.quick else dataclasses.replace(FULL, seconds=chosen.seconds)
    folder = own_folder(chosen.docs / "results", machine().cpu)
    folder.mkdir(parents=True, exist_ok=True)
    with disk.scratch(runs=True) as scratch:
        commit = check_out(chosen.commit, scratch / "code")
        shutil.copy(workloads.__file__, scratch)
        then = {f"then-{_slug(c.model)}": (c.model, "") for c in changes}
        now = {f"now-{_slug(c.today or c.model, c.recipe)}": (c.today or c.model, c.recipe) for c in changes}
        script.say(f"the code of {commit}:")
        build_each(_commands(then), scratch, script.say, scratch / "code")
        script.say("today's code:")
        build_each(_commands(now), scratch, script.say)
        for change in changes:
            row = measure(change, commit, scratch, protocol)
            keep(folder / KEPT, change.name, row)
            ratio = row["error"][0] if "error" in row else f"{row['ratio']['ratio']:.3f}, bar {change.bar:g}"
            script.say(f"{change.name}: {ratio}")
    write_pages(chosen.docs)
    return 0


def check_out(commit: str, folder: Path) -> str:
    """The files of a commit of this checkout, in a folder of their own; returns the commit's full name.

    Raises:
        UsageError: there is no such commit, or edgecsi does not lie in its git checkout.
    """
    try:
        name = _git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}")
        _git("archive", "--format=tar", f"--output={folder}.tar", name)
        folder.mkdir()
        subprocess.run(
            ["tar", "-xf", f"{folder}.tar", "-C", folder], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise UsageError(
            f"the code of {commit} cannot be had", said.strip().splitlines()[-1],
            "run it in a git checkout of edgecsi that has this commit",
        ) from None  # fmt: skip
    return name


def measure(change: Change, commit: str, scratch: Path, protocol: MeasuringProtocol) -> Json:
    """A row: what the two libraries took, and whether to believe it; or why there is none."""
    row: Json = {
        "kind": "before", "change": dataclasses.asdict(change), "commit": commit, "quick": protocol.quick,
        "code": code_digest(),
    }  # fmt: skip
    names = (f"then-{_slug(change.model)}", f"now-{_slug(change.today or change.model, change.recipe)}")
    for name in names:
        if (failed := scratch / f"{name}.error").exists():
            return {**row, **json.loads(failed.read_text("utf-8"))}
    before = snapshot()
    try:
        earlier, today = in_turns([read_bundle(scratch / name) for name in names], change.entry, protocol)
    except Exception as error:  # a bundle of old may be none that can be read; other rows can
        return row | {"error": words(error)}
    after = snapshot()
    return row | {
        "before_us": float(np.median(np.concatenate(earlier))) / 1e3,
        "today_us": float(np.median(np.concatenate(today))) / 1e3,
        "ratio": dataclasses.asdict(statistics.ratio(today, earlier)),
        "validity": dataclasses.asdict(judge(before, after, where=machine())),
        "date": after.date,
    }


def in_turns(
    bundles: Sequence[Bundle], entry: str, protocol: MeasuringProtocol
) -> list[list[statistics.Floats]]:
    """Turns of the protocol's length, for so long that it has its samples and seconds of each library."""
    device, described = Local(), bundles[-1].entry(entry)
    samples = [
        array[:1].reshape(tensor.shape)
        for array, tensor in zip(read_golden(bundles[-1], entry)[0], described.inputs, strict=True)
    ]
    calls = []
    for bundle in bundles:
        device.time(bundle, entry, samples, protocol.samples // 10)  # warm
        median = max(1.0, float(np.median(device.time(bundle, entry, samples, protocol.samples // 10))))
        calls.append(max(protocol.turn_calls, math.ceil(protocol.turn * 1e9 / median)))
    turns = max(math.ceil(protocol.seconds / protocol.turn), math.ceil(protocol.samples / min(calls)))
    return c_calls_in_turns(bundles, entry, device, samples, calls, turns, SETTLE)


def keep(path: Path, name: str, row: Json) -> None:
    """Add a row to those that are kept."""
    stored: Json = json.loads(path.read_text("utf-8")) if path.exists() else {"rows": {}}
    rows = {one.name: stored["rows"][one.name] for one in CHANGES if one.name in stored["rows"]} | {name: row}
    dated = {"date": row["date"]} if "date" in row else {}
    write_json(path, {"kind": "before", "machine": dataclasses.asdict(machine()), **dated, "rows": rows})


def _commands(networks: dict[str, tuple[str, str]]) -> dict[str, list[str]]:
    return {
        out: [*plain_build(model, out), *(["--recipe", recipe] if recipe else [])]
        for out, (model, recipe) in networks.items()
    }


def _slug(model: str, recipe: str = "") -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", "-".join([model.rpartition(":")[2], *([recipe] if recipe else [])]))


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", CODE, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":
    leave_own_records_out()
    sys.exit(main())
