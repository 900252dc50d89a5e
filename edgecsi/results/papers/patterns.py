"""NMSE against sparsity for every pattern of zeros, without a single epoch of training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.compress.recipe import Pattern
from edgecsi.compress.size import stored_bytes
from edgecsi.models.load import load_model
from edgecsi.results.papers.common import (
    Curve,
    Experiment,
    Finished,
    ModelTimer,
    Prunable,
    Row,
    Say,
    channels,
    figures,
    training_samples,
    zeros,
)

NAME = "patterns"
_PATTERNS = ("bsr16x4", "bsr16x1", "bsr8x1", "bsr4x1", "2:4", "rows", "columns", "unstructured")
_ROTATED = ("2:4", "rows", "columns")  # the codeword by its principal components; grouped for the others
_SPARSITIES = {
    "csinet-cr16": (0.5, 0.6, 0.7, 0.8, 0.9),
    "csinet-cr4": (0.7, 0.8, 0.9, 0.95),
}
_SAMPLES = 10_000
_BUDGET_DB = 0.5


def run(quick: bool, say: Say, time: ModelTimer | None = None) -> Experiment:
    """CsiNet at 1/16 and 1/4 with every pattern; each row is kept when it is done."""
    count = 300 if quick else _SAMPLES
    rows: list[Row] = []
    summary: list[Row] = []
    panels: dict[str, dict[str, Curve]] = {}
    for name, sparsities in {"csinet-cr16": (0.5, 0.9)}.items() if quick else _SPARSITIES.items():
        found = _rows(
            name, ("bsr16x4", "2:4") if quick else _PATTERNS, sparsities, count, channels(quick), say
        )
        rows += found
        panels[name] = {}
        for row in found:
            curve = panels[name].setdefault(row["pattern"], ([], [], []))
            curve[0].append(row["zeros"])
            curve[1].append(row["loss_db"])
        summary += [{"model": name, "pattern": p, "zeros": at_budget(c)} for p, c in panels[name].items()]
    about = (
        f"Pruned by reconstruction from {count} samples, no training; the codeword is grouped by parts of the image, "
        f"or rotated to its principal components for {', '.join(_ROTATED)}. Loss in NMSE against the same dense "
        "network, on the shipped test set (UMi drops). `rows` are whole outputs of a dense layer, `columns` whole "
        "inputs; 2:4 has one sparsity only."
    )
    return Experiment(
        NAME,
        "What zeros cost, by pattern",
        about,
        rows,
        ("zeros", "loss (dB)", False),
        panels,
        (f"Zeros that cost {_BUDGET_DB} dB, interpolated", by_model(summary)),
        (-0.2, 3.0),
    )


def _rows(
    name: str,
    patterns: Sequence[str],
    sparsities: Sequence[float],
    count: int,
    held_out: NDArray[Any],
    say: Say,
) -> list[Row]:
    finished = Finished(NAME)
    loaded = load_model(name)
    size = stored_bytes(loaded.module)
    settings = {"model": name, "weights": loaded.sha256, "samples": count, "held out": len(held_out)}
    base = finished.row(settings, lambda: figures(loaded.module, held_out, size))["nmse_db"]

    @cache
    def network(together: int) -> Prunable:
        return Prunable(loaded.module, training_samples(count), together)

    def make(pattern: str, sparsity: float) -> Row:
        together = 0 if pattern in _ROTATED else Pattern.parse(pattern).rows
        module = network(together).pruned(pattern, sparsity)
        return {"zeros": round(zeros(module), 4), **figures(module, held_out, size)}

    rows = []
    for pattern in patterns:
        for sparsity in (0.5,) if ":" in pattern else sparsities:
            one = {**settings, "pattern": pattern, "sparsity": sparsity}
            found = finished.row(one, partial(make, pattern, sparsity))
            loss = round(found["nmse_db"] - base, 3)
            rows.append({"model": name, "pattern": pattern, "loss_db": loss, **found})
            say(f"{name} {pattern} {found['zeros']:.0%}: {found['nmse_db']:.2f} dB ({loss:+.2f})")
    return rows


def at_budget(curve: Curve) -> str:
    """Sparsity at which the loss crosses the budget, or the end of the curve that it lies beyond."""
    share, loss = np.asarray(curve[0]), np.maximum.accumulate(np.asarray(curve[1]))
    if loss[0] > _BUDGET_DB:
        return f"below {share[0]:.0%}"
    if loss[-1] <= _BUDGET_DB:
        return f"{share[-1]:.0%} or more"
    after = int(np.argmax(loss > _BUDGET_DB))
    part = (_BUDGET_DB - loss[after - 1]) / (loss[after] - loss[after - 1])
    return f"{share[after - 1] + part * (share[after] - share[after - 1]):.1%}"


def by_model(rows: list[Row]) -> list[Row]:
    """One row a pattern, one column a model."""
    table: dict[str, Row] = {}
    for row in rows:
        table.setdefault(row["pattern"], {"pattern": row["pattern"]})[row["model"]] = row["zeros"]
    return list(table.values())
