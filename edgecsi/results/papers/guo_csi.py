"""Compact design: ConvCsiNet against ConvSquCsiNet (Guo et al., arXiv 1907.13269, first case)."""

from __future__ import annotations

import json

from edgecsi.compress.size import stored_bytes
from edgecsi.models import registry
from edgecsi.models.load import load_model
from edgecsi.results.papers.common import (
    CALIBRATION,
    Curve,
    Experiment,
    Finished,
    ModelTimer,
    Row,
    Say,
    change,
    channels,
    figures,
)
from edgecsi.training.loop import Epoch
from edgecsi.training.train import train

NAME = "guo-csi"
_NETWORKS = ("convcsinet-cr16", "convsqucsinet-cr16")
_EPOCHS, _LR = 12, 2e-3


def run(quick: bool, say: Say, time: ModelTimer | None = None) -> Experiment:
    """Both networks from random weights, trained alike, and what they take.

    A training that was killed goes on with its last epoch; weights and curves stay in the cache.
    """
    data = "umi:300:seed=1" if quick else CALIBRATION
    epochs = 1 if quick else _EPOCHS
    held_out = channels(quick)
    finished = Finished(NAME)
    rows: list[Row] = []
    curves: dict[str, Curve] = {}
    for name in _NETWORKS:

        def tell(epoch: Epoch, total: int, name: str = name) -> None:
            say(f"{name}, epoch {epoch.epoch}/{total}: {epoch.score:.2f} dB, {epoch.seconds:.0f} s")

        path = finished.path({"model": name, "data": data, "epochs": epochs, "lr": _LR}, ".safetensors")
        curve = path.with_suffix(".json")  # the training writes it last
        if not curve.is_file():
            train(name, data, path, epochs=epochs, lr=_LR, progress=tell)
        history = json.loads(curve.read_text("utf-8"))["history"]
        loaded = load_model(str(path))
        size = stored_bytes(loaded.module)
        cost = registry.cost(registry.create(name), loaded.example_input)
        found = figures(loaded.module, held_out, rows[0]["bytes"] if rows else size)
        row: Row = {"model": name, "weights": cost.parameters, "MACs": cost.macs, "epochs": epochs, **found}
        row["latency_us"] = finished.latency(str(path), time, say).get("latency_us")
        rows.append(row)
        say(f"{name}: {found['nmse_db']:.2f} dB")
        curves[name] = ([float(past["epoch"]) for past in history], [past["score"] for past in history], [])
    wide, squeezed = rows
    about = (
        f"Both networks trained alike from random weights: {epochs} epochs of `{data}`, the same order of samples, "
        "the same schedule of the learning rate; NMSE and rho on the shipped test set (UMi drops), the curves on "
        "held-out samples. Fire modules against 3x3 convolutions: weights "
        f"{change(squeezed['weights'] / wide['weights'])}, MACs {change(squeezed['MACs'] / wide['MACs'])}, NMSE "
        f"{squeezed['nmse_db'] - wide['nmse_db']:+.2f} dB."
    )
    title = "Fire modules in place of 3x3 convolutions"
    return Experiment(NAME, title, about, rows, ("epoch", "NMSE (dB)", False), {title: curves})
