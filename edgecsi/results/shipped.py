"""Verifies every compressed network that ships, on every target: ``python -m edgecsi.results.shipped``.

Each network is built, which alone checks a few samples, and run on the shipped test set: natively where this
CPU can, else under QEMU with exactly the target's CPU. Its NMSE (of a detector: its bit error rate) is held
against that of PyTorch's simulation of the same compressed network. The results are kept in
docs/results/shipped.json with a digest of everything they depend on, and the SHA-256 of the library; a pair whose
library still has the same bytes is not verified again, so that an interrupted run goes on where it was.
``--bytes FILE`` only builds the libraries and writes their SHA-256, to compare before and after a change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from edgecsi import disk, verdict
from edgecsi import target as targets
from edgecsi.bench.environment import machine
from edgecsi.bundle import read_bundle
from edgecsi.errors import EdgecsiError, ToolchainError, UsageError
from edgecsi.models import registry
from edgecsi.results import script
from edgecsi.results.bundles import run_edgecsi, words
from edgecsi.results.files import Json, leave_own_records_out, read_all, write_json
from edgecsi.results.page import page
from edgecsi.results.zoo import computes

TARGETS = ("host", "x86", "rpi4", "rpi5")
SAMPLES = {"local": 256, "emulate": 128}
TRANSMISSIONS = 2000
"""Of a detector, for each of six SNRs; each carries 20 bits."""
JOBS = 2
KEPT = "shipped.json"


@script.in_words
def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code: 1 if a network fails on a target."""
    parser = script.parser("shipped", __doc__, "results.md")
    parser.add_argument("--only", default="", metavar="TEXT", help="networks whose name has it")
    parser.add_argument("--targets", default=",".join(TARGETS), metavar="T,...", help="default: all")
    parser.add_argument("--jobs", type=int, default=JOBS, metavar="N", help="at a time (default: 2)")
    parser.add_argument(
        "--bytes", type=Path, metavar="FILE", help="write the libraries' SHA-256 and do nothing else"
    )
    chosen = parser.parse_args(arguments)
    folder: Path = chosen.docs / "results"
    wanted = chosen.targets.split(",")
    if unknown := set(wanted) - set(targets.list_targets()):
        raise UsageError(
            f"no such target: {', '.join(sorted(unknown))}",
            f"there are {', '.join(targets.list_targets())}",
            "choose other --targets",
        )
    pairs = [
        (model, target)
        for model in registry.list_compressed()
        if chosen.only in model
        for target in wanted
        if computes(model, target)
    ]
    if not pairs:
        raise UsageError(
            f"no shipped compressed network has {chosen.only!r} in its name",
            f"there are {', '.join(registry.list_compressed()) or 'none'}",
            "choose another --only",
        )
    if chosen.bytes is not None:
        with _progress(len(pairs)) as tell:
            return _write_bytes(pairs, chosen.bytes, max(1, chosen.jobs), tell)
    folder.mkdir(parents=True, exist_ok=True)
    with _progress(len(pairs)) as tell:
        failed = verify_all(pairs, folder, max(1, chosen.jobs), tell)
    disk.write(chosen.docs / "results.md", page(read_all(folder)))
    return 1 if failed else 0


def verify_all(
    pairs: Sequence[tuple[str, str]], folder: Path, jobs: int, tell: Callable[[str], None]
) -> list[str]:
    """Verifies what is not known to be right, and keeps every result as soon as it is there.

    Args:
        pairs: networks and targets.
        folder: of the raw results.
        jobs: how many at a time.
        tell: given a line for every pair, when it is done.

    Returns:
        The names of those that failed.
    """
    known: Json = read_all(folder).get(Path(KEPT).stem, {}).get("results", {})
    models = set(registry.list_compressed())
    results = {name: result for name, result in known.items() if result["model"] in models}
    for result in results.values():
        result["outdated"] = result["digest"] != digest(result["model"], result["target"])
    failed = []

    def note(name: str, result: Json, before: str = "") -> None:
        if failure(result):
            failed.append(name)
        tell(f"{name}: {failure(result) or outcome(result)}{before}")

    waiting = []
    for pair in pairs:
        name = _name(*pair)
        if name in results and not results[name]["outdated"] and not failure(results[name]):
            note(name, results[name], " (known)")
        else:
            waiting.append(pair)
    write_json(folder / KEPT, _stored(results))
    pool = ThreadPoolExecutor(jobs)
    try:
        started = {pool.submit(_verify_again, *pair, results.get(_name(*pair))): pair for pair in waiting}
        for done in as_completed(started):
            name = _name(*started[done])
            results[name] = done.result()
            write_json(folder / KEPT, _stored(results))
            note(name, results[name])
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


def _write_bytes(pairs: Sequence[tuple[str, str]], path: Path, jobs: int, tell: Callable[[str], None]) -> int:
    found: dict[str, str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        started = {pool.submit(library_sha256, *pair): _name(*pair) for pair in pairs}
        for done in as_completed(started):
            found[started[done]] = done.result()
            tell(f"{found[started[done]]}  {started[done]}")
            disk.write(path, json.dumps(dict(sorted(found.items())), indent=0) + "\n")
    return 0


def library_sha256(model: str, target: str) -> str:
    """SHA-256 of the library that a build makes of a network today; it is compiled in a process of its own."""
    program = (
        "import hashlib, sys\n"
        "from edgecsi import pipeline, target\n"
        "options = pipeline.BuildOptions(sys.argv[1], sys.argv[2], dry_run=True)\n"
        "board = target.load(sys.argv[2])\n"
        "source = pipeline.load(options, board)\n"
        "draft = pipeline.generate(pipeline.lower(options, source.name, source.model, board), source.model)\n"
        "print(hashlib.sha256(draft.files[draft.manifest.library]).hexdigest())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, model, target], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ToolchainError(f"{model} cannot be built for {target}", done.stderr[-300:], "build it by hand")
    return done.stdout.split()[-1]


def _verify_again(model: str, target: str, known: Json | None) -> Json:
    """What is known holds as long as the library has the same bytes."""
    if known is not None and not failure(known) and "library_sha256" in known:
        try:
            if library_sha256(model, target) == known["library_sha256"]:
                return known | {"digest": digest(model, target), "outdated": False}
        except EdgecsiError:
            pass  # verify() tells what is wrong
    return verify(model, target)


def verify(model: str, target: str) -> Json:
    """Builds a network for a target, runs it, and tells what was found; never raises for what it finds."""
    detector = registry.find(model.partition("+")[0]).cr is None
    emulated = bool(targets.load(target).missing_on_this_cpu())
    device = "emulate" if emulated else "local"
    data = f"mimo:{TRANSMISSIONS}" if detector else "test"
    build = ["build", model, "--target", target, "-o", "bundle"]
    run = ["eval", "bundle", "--data", data, "--device", device, "--model", model, "--json", "found.json"]
    run += [] if detector else ["--samples", str(SAMPLES[device])]
    result: Json = {
        "model": model,
        "target": target,
        "cpu": targets.load(target).emulate if emulated else "native",
        "digest": digest(model, target),
        "outdated": False,
        "figure": "BER" if detector else "NMSE",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commands": [" ".join(["edgecsi", *command]) for command in (build, run)],
    }
    try:
        with disk.scratch(runs=True) as scratch:
            for command in (build, run):
                run_edgecsi(command, scratch, threads=1)
            found = json.loads((scratch / "found.json").read_text(encoding="utf-8"))
            bundle = read_bundle(scratch / "bundle")
            library = bundle.manifest.files[bundle.manifest.library]
            result |= {"library_bytes": library.bytes, "library_sha256": library.sha256}
        own, pytorch = found["nmse_db"], found["nmse_db_pytorch"]
        apart = own - pytorch if not detector else 0.0
        if detector:
            own, pytorch = _mean(found["bit_error_rates"]["fullycon"]), pytorch_error_rate(model)
            one_bit = 1 / (TRANSMISSIONS * 20 * 6)
            apart = 10 * math.log10(max(own, one_bit) / max(pytorch, one_bit))
        return result | {
            "samples": found["samples"],
            "edgecsi": own,
            "pytorch": pytorch,
            "difference_db": apart,
            "differences": {entry: d["max_rel_diff"] for entry, d in found["differences"].items()},
        }
    except Exception as error:  # one pair must not cost the others; what it was stands in the page
        return result | {"error": words(error)}


def failure(result: Json) -> str:
    """Why a result is no success, in a few words; nothing if it is one."""
    if "error" in result:
        return f"failed: {result['error'][1] or result['error'][0]}"
    if not abs(result["difference_db"]) <= verdict.NMSE_DB:
        return f"failed: {abs(result['difference_db']):.3f} dB from PyTorch"
    return ""


def outcome(result: Json) -> str:
    """A success in a few words."""
    figures = f"{result['edgecsi']:.4g}, PyTorch {result['pytorch']:.4g}"
    return f"{result['figure']} {figures}, {abs(result['difference_db']):.1e} dB apart"


@cache
def pytorch_error_rate(model: str) -> float:
    """Mean bit error rate over the SNRs of PyTorch's simulation of a detector, on the data that ``edgecsi eval
    --data mimo:...`` draws."""
    import torch

    from edgecsi.models import fullycon
    from edgecsi.models.load import load_model

    module = load_model(model).entries["full"].module

    def detect(received: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(received)).numpy()

    spec = fullycon.parse_spec(f"mimo:{TRANSMISSIONS}")
    rates = fullycon.error_rates(detect, transmissions=spec.per_epoch, seed=spec.seed)
    return _mean(rates["fullycon"])


def digest(model: str, target: str) -> str:
    """SHA-256 of all that a result depends on: weights, edgecsi's sources, target, versions, samples."""
    weights = (registry.WEIGHTS / f"{model}.safetensors").read_bytes()
    rest = (_sources(), targets.load(target), machine().versions, SAMPLES, TRANSMISSIONS)
    return hashlib.sha256(weights + repr(rest).encode()).hexdigest()


@cache
def _sources() -> str:
    """SHA-256 of edgecsi's own files, but for what only reports, and what made the weights."""
    package = Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        within = path.relative_to(package)
        apart = within.parts[0] in ("bench", "cli", "recipes", "compress")
        if path.suffix in (".py", ".toml", ".j2", ".c", ".npz") and not apart:
            total.update(f"{within}\0".encode() + path.read_bytes())
    return total.hexdigest()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Lines on stderr, over a bar if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    parts = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*parts, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=total)

        def tell(line: str) -> None:
            bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            bar.advance(task)

        yield tell


def _stored(results: Json) -> Json:
    return {
        "kind": "shipped",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dataclasses.asdict(machine()),
        "tolerance_db": verdict.NMSE_DB,
        "results": dict(sorted(results.items())),
    }


def _name(model: str, target: str) -> str:
    return f"{model} {target}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    leave_own_records_out()
    sys.exit(main())
