"""Raw results in docs/results: one JSON a measurement, in a folder for each kind of CPU."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from edgecsi import disk
from edgecsi.errors import DataError

KINDS = ("scenario", "fact", "limits", "cycles", "shipped", "knobs", "self-check", "before")
Json = dict[str, Any]


def own_folder(folder: Path, cpu: str) -> Path:
    """Where results of a CPU go: the folder itself if it holds none or mostly that CPU's, else one beside them in it,
    so that the figures of one CPU never replace those of another, nor stray ones make a folder theirs."""
    kept = Counter(_cpu(entry) for entry in read_all(folder).values()) if folder.is_dir() else Counter[str]()
    del kept[""]
    return folder if not kept or kept.most_common(1)[0][0] == cpu else folder / slug_of(cpu)


def page_of(docs: Path, folder: Path) -> Path:
    """The page of a folder of results: results.md, or for another CPU than the first one results-<cpu>.md."""
    return docs / ("results.md" if folder == docs / "results" else f"results-{folder.name}.md")


def slug_of(cpu: str) -> str:
    """A CPU's name as a file's: ``intel-xeon-gold-6338``."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)", "", cpu.lower())).strip("-") or "unknown"


def _cpu(entry: Json) -> str:
    machine = entry["result"]["machine"] if "result" in entry else entry.get("machine") or {}
    return str(machine.get("cpu", ""))


def read_all(folder: Path) -> dict[str, Json]:
    """The raw results there are, by name.

    Raises:
        DataError: one of them is broken.
    """
    found: dict[str, Json] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(
                f"{path} is no raw result", str(error), "delete it, and measure it again"
            ) from None
        if isinstance(stored, dict) and stored.get("kind") in KINDS:  # reports of trainings lie there too
            found[path.stem] = stored
    return found


def write_json(path: Path, value: Json) -> None:
    """Writes a raw result, one line per list of numbers; whole or not at all."""
    disk.write(path, _compact(value, 0) + "\n")


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two marks of a page, if it has them."""
    page = path.read_text("utf-8") if path.is_file() else ""
    before, opened, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if opened and closed:
        disk.write(path, before + begin + text + end + after)


def _compact(value: Any, depth: int) -> str:
    """Readable JSON that breaks lines between the fields of objects only."""
    if isinstance(value, dict) and value:
        inner = " " * (depth + 1)
        fields = [
            f"{inner}{json.dumps(str(key))}: {_compact(item, depth + 1)}" for key, item in value.items()
        ]
        return "{\n" + ",\n".join(fields) + "\n" + " " * depth + "}"
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        return "[" + ", ".join(_compact(item, depth) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def leave_own_records_out() -> None:
    """From here on builds of this process and its children know the records that ship only: what somebody tuned on this
    machine is nobody else's figure."""
    os.environ["EDGECSI_DATA"] = "/nonexistent/edgecsi"
