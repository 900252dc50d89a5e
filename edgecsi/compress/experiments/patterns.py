"""NMSE against sparsity for every pattern of zeros, without a single epoch of training."""

from __future__ import annotations

import numpy as np

from edgecsi.compress.experiments.common import (
    Result,
    Say,
    channels,
    figures,
    pruned,
    training_samples,
    zeros,
)
from edgecsi.compress.size import stored_bytes
from edgecsi.models.load import load_model

_PATTERNS = ("unstructured", "bsr4x1", "bsr8x1", "bsr16x1", "bsr16x4", "2:4")
_SPARSITIES = (0.6, 0.75, 0.85, 0.9, 0.95)
_BUDGET_DB = 0.5


def run(quick: bool, say: Say) -> Result:
    """CsiNet at 1/16 with every pattern, at 1/4 with the blocks (single weights take too long there)."""
    samples = training_samples(300 if quick else 1500)
    held_out = channels(quick)
    rows = []
    curves: dict[str, tuple[list[float], list[float], list[float]]] = {}
    plan = [("csinet-cr16", pattern) for pattern in _PATTERNS]
    plan += [("csinet-cr4", pattern) for pattern in ("bsr16x1", "bsr16x4")]
    if quick:
        plan = [("csinet-cr16", "bsr16x4"), ("csinet-cr16", "2:4")]
    for name, pattern in plan:
        dense = load_model(name).module
        size = stored_bytes(dense)
        base = figures(dense, held_out, size)["nmse_db"]
        curve: tuple[list[float], list[float], list[float]] = ([], [], [])
        sparsities = (0.5,) if ":" in pattern else ((0.5, 0.9) if quick else _SPARSITIES)
        for sparsity in sparsities:
            module = pruned(dense, pattern, sparsity, samples)
            found = figures(module, held_out, size)
            row = {"model": name, "pattern": pattern, "zeros": round(zeros(module), 4), **found}
            row["loss_db"] = round(found["nmse_db"] - base, 3)
            rows.append(row)
            say(f"{name} {pattern} {sparsity:.0%}: {found['nmse_db']:.2f} dB ({row['loss_db']:+.2f})")
            curve[0].append(row["zeros"])
            curve[1].append(row["loss_db"])
        curves[f"{name} {pattern}"] = curve
    about = (
        "Pruned by reconstruction with the codeword rotated to its principal components, no training; loss "
        "in NMSE against the same dense network, on the shipped test set (CDL-A/C). Sparsity that costs "
        f"{_BUDGET_DB} dB, by interpolation: {_at_budget(curves)}."
    )
    return Result(
        "patterns", "What zeros cost, by pattern", about, rows, ("zeros", "loss (dB)", False), curves
    )


def _at_budget(curves: dict[str, tuple[list[float], list[float], list[float]]]) -> str:
    parts = []
    for label, (share, loss, _) in curves.items():
        if len(share) < 2:
            continue
        x, y = np.asarray(share), np.maximum.accumulate(np.asarray(loss))
        if y[0] > _BUDGET_DB:
            parts.append(f"{label} below {x[0]:.0%}")
        elif y[-1] <= _BUDGET_DB:
            parts.append(f"{label} above {x[-1]:.0%}")
        else:
            parts.append(f"{label} {np.interp(_BUDGET_DB, y, x):.1%}")
    return ", ".join(parts)
