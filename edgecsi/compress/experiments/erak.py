"""CsiNet pruned, quantised, clustered and both (Erak & Abou-Zeid, arXiv 2304.01914), on our channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgecsi.compress import apply_post_training, zoo
from edgecsi.compress import recipe as recipes
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

_SPARSITIES = (0.8, 0.95)
_SHIPPED = (
    "int8-weights",
    "int8-dynamic",
    "int8-static",
    "cluster16",
    "prune90",
    "prune90-bsr16x1",
    "prune90-bsr16x4",
    "prune75-bsr16x4-int8",
    "prune80-bsr16x4-int8",
    "prune90-bsr16x4-int8",
)


def run(quick: bool, say: Say) -> Result:
    """Dense, pruned at two rates, and every compressed CsiNet that ships."""
    samples = training_samples(300 if quick else 1000)
    held_out = channels(quick)
    rows: list[dict[str, Any]] = []
    curves: dict[str, tuple[list[float], list[float], list[float]]] = {}
    for name in ("csinet-cr16",) if quick else ("csinet-cr4", "csinet-cr16"):
        dense = load_model(name)
        size = stored_bytes(dense.module)
        base = figures(dense.module, held_out, size)["nmse_db"]

        def add(name: str, method: str, module: Any, size: int = size, base: float = base) -> None:
            found = figures(module, held_out, size)
            loss = round(found["nmse_db"] - base, 3)
            rows.append({"model": name, "method": method, "loss_db": loss, **found, **latency(name, method)})
            share = f"{found['bytes_share']:.1%} of the bytes"
            say(f"{name} {method}: {found['nmse_db']:.2f} dB ({loss:+.2f}), {share}")

        add(name, "dense", dense.module)
        curve: tuple[list[float], list[float], list[float]] = ([1.0], [base], [])
        for sparsity in (0.8,) if quick else _SPARSITIES:
            module = pruned(dense.module, "bsr16x4", sparsity, samples)
            add(name, f"16x4 blocks, {zeros(module):.0%} zeros, untrained", module)
            curve[0].append(rows[-1]["bytes_share"])
            curve[1].append(rows[-1]["nmse_db"])
        curves[f"{name}, pruned"] = curve
        both: tuple[list[float], list[float], list[float]] = ([], [], [])
        if quick:
            small = apply_post_training(
                dense.module, dense.example_input, recipes.load("int8-dynamic"), samples
            )
            add(name, "int8-dynamic", small)
        for recipe in () if quick else _SHIPPED:
            if (path := zoo.path_of(name, recipe)).exists():
                add(name, recipe, load_model(str(path)).module)
                both[0].append(rows[-1]["bytes_share"])
                both[1].append(rows[-1]["nmse_db"])
        if both[0]:
            order = sorted(range(len(both[0])), key=lambda i: both[0][i])
            curves[f"{name}, shipped recipes"] = (
                [both[0][i] for i in order],
                [both[1][i] for i in order],
                [],
            )
    about = (
        "NMSE, rho and stored bytes (`edgecsi.compress.size`; gzip of the raw tensors beside it) on the "
        "shipped test set (CDL-A/C). Rows called *untrained* are pruned by reconstruction without training; "
        "the others are the shipped weights. The paper reports −86.5 % size and −76.2 % time for pruning "
        "with quantisation. Latencies come from built bundles and are empty until there are some."
    )
    return Result(
        "erak", "CsiNet compressed", about, rows, ("share of the fp32 bytes", "NMSE (dB)", False), curves
    )


def latency(name: str, method: str) -> dict[str, Any]:
    """Median microseconds of a bundle's full entry on this machine.

    They come from ``bench-results``: the JSON reports that ``edgecsi bench`` wrote there as
    ``MODEL+RECIPE.json`` (``MODEL.json`` for dense). Empty if there is none.
    """
    import json

    stem = name if method == "dense" else f"{name}+{method}"
    path = Path("bench-results") / f"{stem}.json"
    if not path.is_file():
        return {"latency_us": None}
    report = json.loads(path.read_text())
    return {"latency_us": report.get("median_us")}
