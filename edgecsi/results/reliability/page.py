"""docs/reliability.md, made from what the campaign counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from edgecsi.results.reliability.damage import ways
from edgecsi.results.reliability.deployment import SUITES, section
from edgecsi.results.reliability.faults import KILL, NAMES
from edgecsi.results.reliability.fuzz import Kind, Tally
from edgecsi.results.reliability.tuning import section as tuning_section

MENDED = (
    "golden values that end early or claim another shape gave an EOFError, and left the file open",
    "an `.npz` named `.npy` gave an AttributeError",
    "names from a file could carry control characters and 20,000 letters into an error message",
    "a full or failing temporary folder made LLVM end the process while it wrote machine code",
    "a state folder that could not be removed after the work was done was reported as a bug",
    "a lock that could not be closed after the work was done was reported as a bug",
    "a call interrupted in `run_many` left threads that wrote into freed arrays",
    "a workspace of up to 1 MB was taken from the stack without looking whether there was one",
    "zip archives of several disks, or of a version nobody knows, gave a traceback",
    "values of thousands of letters from a recipe or a file's metadata were shown whole in an error",
    "a Ctrl-C in the moment in which a build forks its compiler was lost, and a compiler that hangs had no end",
    "a build that was killed left its compiler running",
    "a temporary folder stayed where the disk refused once to open it",
    "a network with integers among its tensors was refused by every device it was deployed to",
    "golden values where equal numbers stood could refuse a right bundle on a device",
    "a bundle that takes a single number could be timed nowhere, nor run by its own example in Python",
    "a manifest could claim other shapes for a batch entry than for its entry, by which `run_many` reads",
    "a batch of a network with several inputs ended the build, and a single number in it was read beyond its place",
    "a network whose answer hangs on the order of equal values, which the build's check met first, was called a bug",
    "`inspect --layers` of a bundle without layers ended in a traceback",
)
"""What the campaign found before its figures here, each with a test now."""


def page(
    fuzz: Mapping[str, Any],
    faults: Mapping[str, Any],
    memory: Mapping[str, Any],
    tuning: Mapping[str, int],
    *suites: Mapping[str, int],
) -> str:
    """The text of the page, from the files of results; the last ones are those of ``SUITES``."""
    parts = [
        "# What edgecsi survives",
        (
            "Made by `python -m edgecsi.results.reliability page` from "
            "`docs/results/reliability-*.json`; each part says the command that repeats it, or goes on "
            "counting. Two minutes of the first and a part of the others run in CI."
        ),
        *(_fuzz(Tally.of(dict(fuzz))) if fuzz else []),
        *(_faults(faults) if faults else []),
        *(text for suite, counts in zip(SUITES, suites, strict=True) for text in section(suite, counts)),
        *tuning_section(tuning),
        *_memory(memory),
        "## Found and mended",
        "\n".join(f"- {text}" for text in MENDED),
    ]
    return "\n\n".join(parts) + "\n"


def _fuzz(tally: Tally) -> list[str]:
    rows: dict[str, tuple[int, Kind]] = {}
    for name, kind in tally.kinds.items():
        reader = name.partition(":")[0]
        kinds, total = rows.get(reader, (0, Kind()))
        summed = Kind(
            total.executions + kind.executions, total.read + kind.read, total.refused + kind.refused
        )
        rows[reader] = kinds + 1, summed
    executions = sum(kind.executions for kind in tally.kinds.values())
    table = [
        "| reader | kinds of damage | files | refused, typed | could be read all the same |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {kinds} | {k.executions:,} | {k.refused:,} | {k.read:,} |"
            for name, (kinds, k) in sorted(rows.items())
        ),
        (
            f"| **all** | **{len(tally.kinds)}** | **{executions:,}** | "
            f"**{sum(k.refused for _, k in rows.values()):,}** | **{sum(k.read for _, k in rows.values()):,}** |"
        ),
    ]
    found = "\n".join(f"- {name} ({where})" for name, where in sorted(tally.findings.items()))
    return [
        "## Broken and hostile files",
        "    python -m edgecsi.results.reliability fuzz --minutes 120",
        (
            f"Good files are damaged in {len(tally.kinds)} ways ({', '.join(ways('bytes'))}; by "
            "structure: fields that are "
            "missing, of another type, out of range or nested too deeply, headers and directories that "
            "lie, bombs, pickles "
            "that run a program) and read by every reader there is. A file must be read or refused "
            "with an error of three "
            "printable lines, within 2 seconds of CPU time and 2 GB, and nothing in it may be run. hypothesis "
            "draws the damage and "
            "shrinks what it finds."
        ),
        "\n".join(table),
        f"{tally.cpu_seconds / 3600:.2f} CPU hours of the processes that damage and read, of which "
        f"at least {tally.reading_seconds / 3600:.2f} inside of readers; {len(tally.errors)} different errors were met; "
        + (f"not mended yet:\n\n{found}" if found else "nothing is open."),
    ]


def _faults(works: Mapping[str, Any]) -> list[str]:
    table = [
        "| work | calls on files | of these failed | fault points | finished all the same | refused, typed | killed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, work in sorted(works.items()):
        failed = work["points"].get(NAMES[KILL], 0)  # the one fault that each call has
        numbers = [sum(work["calls"].values()), failed, sum(work["points"].values())]
        numbers += [work["outcomes"].get(what, 0) for what in ("finished", "refused", "killed")]
        table.append(f"| {name} | {' | '.join(f'{n:,}' for n in numbers)} |")
    points = sum(sum(work["points"].values()) for work in works.values())
    table.append(f"| **all** | | | **{points:,}** | | | |")
    findings = {name: where for work in works.values() for name, where in work["findings"].items()}
    found = "\n".join(f"- {name} ({where})" for name, where in sorted(findings.items()))
    return [
        "## Faults at system calls",
        "    python -m edgecsi.results.reliability faults",
        (
            "Calls on files of the output, the cache or the temporary folder (open, read, write, flush, lock, "
            "rename, …) fail one at a time, in every way that such a call can, with ENOSPC, EIO, EACCES or EINTR, "
            "and once the process is killed in its place; without `--every N` all of them do. "
            "The previous output or "
            "the new one must stand there whole, without a traceback and without anything left behind; "
            "what is interrupted "
            "goes on; and after a kill the same command works."
        ),
        "\n".join(table),
        f"Not mended yet:\n\n{found}" if found else "Nothing is open.",
    ]


def _memory(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    open_ = "\n".join(f"- {text}" for text in found["findings"])
    done = Counter(pair.rpartition(" for ")[2] for pair in found.get("zoo", []))
    zoo = ", ".join(f"{count} for {target}" for target, count in done.items()) or "none yet"
    return [
        "## Memory",
        "    python -m edgecsi.results.reliability memory --minutes 60",
        (
            "Random networks (dense and convolutional ones, attention, tables, several tensors, of odd sizes, with "
            "zeros, in fp32, int16, int8 and half precision, for batches) are compiled for every target that runs "
            "here, ARM under QEMU, and called with a guard page on either side of every array and of the workspace, "
            "at 18 alignments, memory around and in them filled with three patterns, and with inputs of nothing but "
            "NaN, infinity, the largest numbers or places outside of every table. Not a byte beyond may be read or "
            "written, every call must give the same bits, and take at most 32 KB of stack."
        ),
        "    python -m edgecsi.results.reliability memory --zoo",
        (
            "The same for the networks of the zoo, compiled for ARM too. A library for x86 that needs no "
            "AVX-512, which valgrind lacks, valgrind's memcheck watches as well, driver and kernels, with every array "
            "and the workspace a block of the heap of exactly its size."
        ),
        f"{found['networks']:,} networks, {found['libraries']:,} libraries, {found['entries']:,} entries, "
        f"{found['calls']:,} calls, {found.get('watched', 0):,} entries watched by valgrind; "
        f"networks of the zoo: {zoo}; "
        f"the deepest stack was {found['stack_bytes']:,} bytes; "
        f"{found['seconds'] / 3600:.2f} hours on the clock. "
        + (f"Open:\n\n{open_}" if open_ else "Nothing is open."),
    ]
