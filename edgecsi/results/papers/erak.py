"""CsiNet pruned, quantised, clustered and both (Erak & Abou-Zeid, arXiv 2304.01914), on our channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edgecsi.compress.size import stored_bytes
from edgecsi.models.load import load_model
from edgecsi.results.papers.common import (
    CALIBRATION,
    CONTROL,
    Curve,
    Experiment,
    Finished,
    ModelTimer,
    Row,
    Say,
    change,
    channels,
    figures,
    shipped,
)

NAME = "erak"
PAPER = {
    "model": "CsiNet",
    "method": "Erak & Abou-Zeid: pruned and quantised",
    "size": "−86.5 %",
    "time": "−76.2 %",
}
_SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
_EPOCHS, _LR = 1, 3e-4
_PRUNE = """[[steps]]
do = "prune"
pattern = "unstructured"
sparsity = {sparsity}
scope = "global"
criterion = "reconstruct"
codeword = "group"
epochs = {epochs}
lr = {lr}
"""


@dataclass(frozen=True)
class _Method:
    """A network to be measured: what it is called, MODEL as the command line takes it, and the training behind it."""

    name: str
    model: str
    epochs: int = 0
    lr: float = 0.0


def run(quick: bool, say: Say, time: ModelTimer | None = None) -> Experiment:
    """Dense, pruned at five rates, and every compressed CsiNet that ships; for each dense network two controls, trained
    on as the recipe does that trains most, in epochs times learning rate: all of it, and all but its dense layers.

    Every network and every row is kept in the cache when it is done.
    """
    rows: list[Row] = []
    panels: dict[str, dict[str, Curve]] = {}
    joint: list[Row] = [dict(PAPER)]
    for name in ("csinet-cr16",) if quick else ("csinet-cr4", "csinet-cr16"):
        found = _Network(name, quick, say, time).rows()
        rows += found
        panels[name] = {
            "pruned, unstructured": _curve([row for row in found if "zeros" in row["method"]]),
            "shipped recipes": _curve([row for row in found if "zeros" not in row["method"]]),
        }
        shown = ("model", "method", "size", "library_size", "time", "loss_db", "loss_to_control_db")
        is_joint = [row for row in found if row["method"].startswith("prune") and "int8" in row["method"]]
        joint += [{key: row[key] for key in shown} for row in is_joint]
    about = (
        "NMSE and rho on the shipped test set (UMi drops). *bytes*: the weights as stored (`edgecsi.compress.size`), "
        "*size* its change; *gzip_bytes*: of the raw tensors, as papers count; *library_bytes*: the constants of the "
        "library built for this machine, *library_size* their change. *latency_us*: median of the C call of the whole "
        "network, one thread, *time* its change. *loss_db* is against the dense network, *loss_to_control_db* against "
        "the dense network trained on as the recipe that trains most, in epochs times learning rate: all of it or all "
        "but its dense layers, whichever ends better. Zeros are "
        f"unstructured, found by reconstruction and followed by {_EPOCHS} epoch; the other rows are the shipped "
        "networks."
    )
    axes = ("stored bytes", "NMSE (dB)", False)
    return Experiment(NAME, "CsiNet compressed", about, rows, axes, panels, ("Against the paper", joint))


class _Network:
    """One dense network and all that is made of it."""

    def __init__(self, name: str, quick: bool, say: Say, time: ModelTimer | None) -> None:
        self.name, self.quick, self.say, self.time = name, quick, say, time
        self.finished = Finished(NAME)
        self.held_out: NDArray[Any] = channels(quick)
        self.dense = load_model(name)
        self.size = stored_bytes(self.dense.module)
        self.data = "umi:300:seed=1" if quick else CALIBRATION

    def rows(self) -> list[Row]:
        dense = self._measure(_Method("dense", self.name))
        rows: list[Row] = []
        methods = [_Method("dense", self.name), *self._pruned(), *self._shipped()]
        most = max(methods, key=lambda method: method.epochs * method.lr)
        for method in methods:
            found = self._measure(method) | self.finished.latency(method.model, self.time, self.say)
            control = dense if method.epochs == 0 else self._control(most)
            row: Row = {"model": self.name, "method": method.name, "epochs": method.epochs}
            row["loss_db"] = round(found["nmse_db"] - dense["nmse_db"], 3)
            row["loss_to_control_db"] = round(found["nmse_db"] - control["nmse_db"], 3)
            row |= {key: found[key] for key in ("nmse_db", "rho", "bytes")}
            row |= {"size": change(found["bytes_share"]), "gzip_bytes": found["gzip_bytes"]}
            rows.append(row)
            for key, short in (("library_bytes", "library_size"), ("latency_us", "time")):
                before, now = rows[0].get(key), found.get(key)
                row[key] = now
                row[short] = change(now / (before or now)) if now else None
            self.say(
                f"{self.name} {method.name}: {row['nmse_db']:.2f} dB ({row['loss_db']:+.2f}), {row['size']}"
            )
        return rows

    def _pruned(self) -> list[_Method]:
        methods = []
        for sparsity in (0.9,) if self.quick else _SPARSITIES:
            epochs = 1 if self.quick else _EPOCHS
            text = _PRUNE.format(sparsity=sparsity, epochs=epochs, lr=_LR)
            methods.append(_Method(f"{sparsity:.0%} zeros", self._made(text), epochs, _LR))
        return methods

    def _shipped(self) -> list[_Method]:
        found = shipped(self.name, self.dense.sha256, self.say)
        return [_Method(s.recipe, s.model, s.epochs, s.lr) for s in found[: 1 if self.quick else None]]

    def _control(self, most: _Method) -> Row:
        """The dense network, trained on as the method that trains most; the better of two ways."""
        text = CONTROL.format(epochs=most.epochs, lr=most.lr)
        paths = [self._made(text), self._made(text + 'freeze = ["*fc"]\n')]
        rows = [self._measure(_Method(f"dense, {most.epochs} epochs more", path)) for path in paths]
        return min(rows, key=lambda row: float(row["nmse_db"]))

    def _made(self, text: str) -> str:
        return self.finished.network(self.name, text, self.data, self.say)

    def _measure(self, method: _Method) -> Row:
        loaded = load_model(method.model)
        settings = {"model": self.name, "weights": loaded.sha256, "held out": len(self.held_out)}
        return self.finished.row(settings, lambda: figures(loaded.module, self.held_out, self.size))


def _curve(rows: Sequence[Row]) -> Curve:
    """NMSE over the stored bytes."""
    points = sorted((float(row["bytes"]), float(row["nmse_db"])) for row in rows)
    return [size for size, _ in points], [nmse for _, nmse in points], []
