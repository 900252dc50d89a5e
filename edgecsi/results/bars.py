"""Whether a bar is reached: only by a valid measurement of today's code, with its peer, by the whole protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from edgecsi.results.files import Json
from edgecsi.results.scenarios import FACTS, SCENARIOS, Fact, Scenario

LEAST = 0.93
"""Of the runs of a library against itself, whose interval must hold 1."""
CLOSE = 0.02
"""Largest difference between bench's C call and what the bundle's own program prints."""
PEERS = {"onnxruntime": "ONNX Runtime", "openvino-bf16": "OpenVINO in bf16"}
"""The engines that bars are ratios to, in words."""
_COMPILER = ("kernels", "lower", "codegen", "ops", "_targets")


@cache
def code_digest() -> str:
    """SHA-256 of the sources that make a library: a result of others is stale."""
    package = Path(__file__).parents[1]
    total = hashlib.sha256()
    for folder in _COMPILER:
        for path in sorted((package / folder).rglob("*")):
            if path.suffix in (".py", ".toml", ".j2"):
                total.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def stale(entry: Json) -> bool:
    """Whether a row was measured with other code than today's."""
    return entry.get("code") != code_digest()


def doubts(entry: Json | None) -> str:
    """Why a measurement reaches no bar, whatever its figure; empty if it may."""
    if entry is None:
        return "not measured"
    if "error" in entry:
        return f"failed: {(entry['error'][1] or entry['error'][0])[:120]}"
    validity = entry["validity"] if "result" not in entry else entry["result"]["validity"]
    emulated = entry["kind"] == "scenario" and entry["result"]["instructions"] is not None
    if validity["state"] != "valid" and not emulated:  # instructions are counted, not timed
        return f"{validity['state']}: {'; '.join(validity['reasons'])}"
    if entry.get("quick") and not emulated:
        return "the quick protocol"
    return "measured before a change" if stale(entry) else ""


def figure(entry: Json, scenario: Scenario | Fact) -> float | None:
    """What is held against the bar; None if the peer is missing."""
    if isinstance(scenario, Fact):
        return float(entry["value"])
    result = entry["result"]
    if scenario.device == "emulate":
        return None if result["instructions"] is None else float(result["instructions"]) / 1e6
    if scenario.batch:
        gains = [
            gain for gain in (result["throughput"] or {}).get("gains", []) if gain["to"] == "onnxruntime"
        ]
        return float(gains[0]["ratio"]["ratio"]) if gains else None
    found = to_peer(entry, scenario.peer)
    return float(found["warm"]["ratio"]) if found else None


def to_peer(entry: Json, peer: str = "onnxruntime") -> Json | None:
    """The comparison with another engine, if it was measured."""
    comparisons: list[Json] = entry["result"]["comparisons"]
    return next((found for found in comparisons if found["to"] == peer), None)


def reached(entry: Json | None, scenario: Scenario | Fact) -> str:
    """``yes``, or why not; empty where there is no bar."""
    if scenario.bar is None:
        return ""
    if entry is None or "error" in entry:
        return f"no: {doubts(entry)}"
    value = figure(entry, scenario)
    if value is None:
        return f"no: {PEERS[getattr(scenario, 'peer', 'onnxruntime')]} was not measured beside it"
    least = isinstance(scenario, Scenario) and scenario.batch > 0
    return held_against(value, scenario.bar, entry, least)


def held_against(value: float, bar: float, entry: Json, least: bool = False) -> str:
    """``yes``, or why not: a figure that may be no more than a bar; no less, with ``least``."""
    off = bar / value - 1 if least else value / bar - 1
    if off > 0:
        return f"no, {off:.0%} {'below' if least else 'above'}"
    doubt = doubts(entry)
    return f"not shown: {doubt}" if doubt else "yes"


def open_bars(stored: Mapping[str, Json]) -> Iterator[tuple[Scenario | Fact, str]]:
    """Every bar that is not reached, and why."""
    every: list[Scenario | Fact] = [*SCENARIOS, *FACTS]
    for scenario in every:
        found = reached(stored.get(scenario.name), scenario)
        if found and found != "yes":
            yield scenario, found


def held(check: Json) -> bool:
    """Whether enough intervals of the self-check hold the truth."""
    return bool(check["held"] >= LEAST * check["runs"])


def program_difference(check: Json) -> float:
    """The figure of the bundle's program over that of bench, less 1."""
    return float(check["program"]["us"] / check["program"]["bench_us"] - 1)
