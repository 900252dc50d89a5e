"""Compact design: ConvCsiNet against ConvSquCsiNet (Guo et al., arXiv 1907.13269, first case)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from edgecsi.compress.experiments.common import CALIBRATION, Result, Say, channels, figures
from edgecsi.compress.size import stored_bytes
from edgecsi.models import registry
from edgecsi.models.load import load_model
from edgecsi.train import train

_NETWORKS = ("convcsinet-cr16", "convsqucsinet-cr16")
_SAMPLES, _EPOCHS = 4000, 3


def run(quick: bool, say: Say) -> Result:
    """Both networks from random weights, trained alike, and what they take."""
    profile, _, seed = CALIBRATION.split(":")
    data = f"{profile}:{300 if quick else _SAMPLES}:{seed}"
    epochs = 1 if quick else _EPOCHS
    held_out = channels(quick)
    rows: list[dict[str, Any]] = []
    curves: dict[str, tuple[list[float], list[float], list[float]]] = {}
    for name in _NETWORKS:
        example = torch.full(registry.CSI_SHAPE, 0.5)
        cost = registry.cost(registry.create(name), example)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / f"{name}.safetensors"
            result = train(name, data, out, epochs=epochs, threads=torch.get_num_threads())
            module = load_model(str(out)).module
        found = figures(module, held_out, stored_bytes(module))
        rows.append(
            {"model": name, "weights": cost.parameters, "MACs": cost.macs, "epochs": epochs, **found}
            | {"bytes_share": None}
        )
        say(f"{name}: {found['nmse_db']:.2f} dB")
        curves[name] = (
            [float(e.epoch) for e in result.history],
            [e.score for e in result.history],
            [],
        )
    rows[1]["bytes_share"] = round(rows[1]["bytes"] / rows[0]["bytes"], 4)
    about = (
        f"Both networks trained alike from random weights: {epochs} epochs of `{data}`, far from the end of "
        "their curves; the figures compare the two designs at an equal, small budget and say nothing about "
        "the best either can do."
    )
    return Result(
        "guo-csi",
        "Fire modules in place of 3x3 convolutions",
        about,
        rows,
        ("epoch", "NMSE (dB)", False),
        curves,
    )
