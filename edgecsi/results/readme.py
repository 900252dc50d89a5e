"""The figures of README.md, written between its marks from the raw results, with the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgecsi.bench.result import Machine
from edgecsi.report.text import number
from edgecsi.results.bars import doubts, to_peer
from edgecsi.results.files import Json, write_between
from edgecsi.results.tables import markdown

BEGIN, END = "<!-- report -->\n", "<!-- /report -->"
ROWS = {
    "csinet-cr4-full": "fp32",
    "csinet-cr4-prune90-bsr16x4-int8-dynamic": "90 % zero in 16×4 blocks, the rest int8, convolutions fp32 (ships: "
    "`csinet-cr4+prune90-bsr16x4-int8-dynamic`)",
    "csinet-cr4-prune90-bsr16x4-int8-dynamic-int16": "the same, convolutions int16 (ships: "
    "`csinet-cr4+prune90-bsr16x4-int8-dynamic+int16`)",
    "csinet-cr4-prune90-bsr16x4-int8": "the same zeros, every layer int8 (ships: `csinet-cr4+prune90-bsr16x4-int8`)",
}


def figures(stored: Mapping[str, Json]) -> str:
    """The paragraph and the table, from the raw results by name; a row with a doubt says which."""
    known = {name: entry for name in ROWS if (entry := stored.get(name)) is not None and "error" not in entry}
    rows = [["µs, median", "edgecsi", "ONNX Runtime fp32", "edgecsi takes"]]
    for name, entry in known.items():
        found = to_peer(entry)
        if found is None:
            continue
        engines = {engine["name"]: engine["warm"]["median"] for engine in entry["result"]["engines"]}
        doubt = doubts(entry)
        title = ROWS[name] + (f" *({doubt})*" if doubt else "")
        times = (number(engines["edgecsi"]), number(engines["onnxruntime"]))
        rows.append([title, *times, f"{found['warm']['ratio']:.3f} of its time"])
    machines = {Machine(**entry["result"]["machine"]).cpu for entry in known.values()}
    where = ", ".join(sorted(machines)) or "a machine that is still to be measured"
    return (
        f"CsiNet CR 1/4 on one thread of {where}, batch 1, both engines in turns "
        f"(`python -m edgecsi.results.run`):\n\n{markdown(rows)}\n\n"
        "Every build holds answers against PyTorch's: the library's, for another processor under QEMU; where QEMU is "
        "missing, those of the same network with kernels for this machine. Libraries need libc and libm only.\n"
    )


def write_readme(path: Path, kinds: Sequence[Mapping[str, Json]]) -> None:
    """Put figures between the marks of a README, if it has them: those of the kind of CPU with the fewest doubts."""

    def sound(stored: Mapping[str, Json]) -> int:
        return sum(name in stored and not doubts(stored[name]) for name in ROWS)

    write_between(path, BEGIN, END, figures(max(kinds, key=sound)))
