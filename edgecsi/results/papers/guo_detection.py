"""FullyCon compressed: bit error rate over the SNR (Guo et al., arXiv 1907.13269, second case)."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgecsi.compress import apply_post_training
from edgecsi.compress import recipe as recipes
from edgecsi.compress.cluster import finish_sharing, start_sharing
from edgecsi.compress.prune import prunable
from edgecsi.compress.recipe import Cluster, Pattern, Prune
from edgecsi.compress.reconstruct import drop_unread, reconstruct
from edgecsi.compress.size import stored_bytes
from edgecsi.models import fullycon
from edgecsi.models.load import LoadedModel, load_model
from edgecsi.results import zoo
from edgecsi.results.papers.common import (
    CONTROL,
    Curve,
    Experiment,
    Finished,
    ModelTimer,
    Row,
    Say,
    fingerprint,
    shipped,
    zeros,
)

NAME = "guo-detection"
_TRANSMISSIONS = {8.0: 50_000, 9.0: 50_000, 10.0: 100_000, 11.0: 200_000, 12.0: 600_000, 13.0: 3_000_000}
"""By SNR: some thousand errors of the dense network, so that a change of 10 % stands clear of chance."""
_QUICK = {8.0: 20_000, 10.0: 20_000}
_CHUNK = 25_000
_BAR = 1.1  # largest ratio to the dense network's bit error rate
_EPOCHS = 8
_FIRST = ("*fc1",)
_PRUNE = """[[steps]]
do = "prune"
pattern = "unstructured"
sparsity = {sparsity}
ramp = 0.4
epochs = {epochs}
lr = 2e-3
teacher = 0.6
"""
_FOUR_BITS = """[[steps]]
do = "quantize"
mode = "weights"
bits = 4
epochs = {epochs}
lr = 1e-4
teacher = 0.6
"""


@dataclass(frozen=True)
class _Count:
    """Wrong bits of a network at one SNR beside those of the dense one, on the same transmissions.

    Attributes:
        errors, dense_errors: wrong bits. bits: sent.
        spread: deviation of ``errors``, from the spread between transmissions.
        paired: deviation of ``errors / dense_errors``. Errors that both make cancel in it.
    """

    errors: int
    dense_errors: int
    bits: int
    spread: float
    paired: float

    @property
    def ratio(self) -> float:
        return self.errors / self.dense_errors


def run(quick: bool, say: Say, time: ModelTimer | None = None) -> Experiment:
    """Dense, pruned at several rates, 8/6/4 bits, clustered, and what ships; the same noise for all.

    Every network and every count is kept in the cache when it is done.
    """
    dense = load_model("fullycon")
    size = stored_bytes(dense.module)
    plan = _QUICK if quick else _TRANSMISSIONS
    counts = _Counts(dense.module)
    rows: list[Row] = []
    ratios: list[Row] = []
    curves: dict[str, Curve] = {}
    for method in _networks(dense, quick, say):
        name, stored = method.name, stored_bytes(method.module)
        found = {snr: counts.at(method.module, snr, transmissions) for snr, transmissions in plan.items()}
        smaller = round(size / stored, 1)
        row: Row = {"method": name, "epochs": method.epochs, "bytes": stored, "smaller": smaller}
        timed = Finished(NAME).latency(method.model, time, say) if method.model else {}
        row |= {key: timed.get(key) for key in ("library_bytes", "latency_us")}
        rows.append(row | {f"BER {snr:g} dB": one.errors / one.bits for snr, one in found.items()})
        rows[-1]["fewest errors"] = min(one.errors for one in found.values())
        compared = {f"{snr:g} dB": _against_dense(one) for snr, one in found.items()}
        ratios.append(
            {"method": name, "smaller": smaller, **compared, "within 10 %": _verdict(found.values())}
        )
        curves[name] = (
            list(found),
            [one.errors / one.bits for one in found.values()],
            [1.96 * one.spread / one.bits for one in found.values()],
        )
        say(f"{name}: {', '.join(compared.values())} ({ratios[-1]['within 10 %']})")
    about = (
        "Bit error rate of FullyCon (20 BPSK users, 30 antennas, the fixed 0.6-Toeplitz channel). At every SNR all "
        "networks see the same transmissions, bits and noise, so the errors that both make cancel where a network is "
        "compared with the dense one: the intervals (95 %) are those of the ratio. *within 10 %*: `yes` if no "
        "interval reaches beyond +10 %, `no` if one lies beyond it as a whole. The error bars of the figure are 95 % "
        "intervals of each rate alone. *epochs* of training follow the dense network's; *dense, more epochs* is that "
        "training without compression. *bytes* by `edgecsi.compress.size`; *library_bytes*: the constants of the "
        "library built for this machine, which may store a layer densely where that is faster; *latency_us*: median "
        "of its C call."
    )
    axes = ("SNR (dB)", "bit error rate", True)
    title = "FullyCon compressed"
    summary = ("Bit errors against the dense network's", ratios)
    return Experiment(NAME, title, about, rows, axes, {title: curves}, summary)


def _against_dense(one: _Count) -> str:
    return f"{100 * (one.ratio - 1):+.1f} ± {196 * one.paired:.1f} %"


def _verdict(counts: Collection[_Count]) -> str:
    low, high = (max(one.ratio + sign * 1.96 * one.paired for one in counts) for sign in (-1, 1))
    return "yes" if high <= _BAR else "no" if low > _BAR else "perhaps"


class _Counts:
    """Counts wrong bits, or remembers them.

    Args:
        dense: the network that others are compared with.
    """

    def __init__(self, dense: nn.Module) -> None:
        self._finished = Finished(NAME)
        self._dense_hash = fingerprint(dense)
        self._dense_wrong = cache(partial(wrong_bits, dense))

    def at(self, module: nn.Module, snr: float, transmissions: int) -> _Count:
        settings = {
            "network": fingerprint(module), "dense": self._dense_hash, "snr": snr, "transmissions": transmissions,
        }  # fmt: skip
        make = partial(self._count, module, snr, transmissions)
        return _Count(**self._finished.row(settings, make))

    def _count(self, module: nn.Module, snr: float, transmissions: int) -> Row:
        dense, own = self._dense_wrong(snr, transmissions), wrong_bits(module, snr, transmissions)
        return asdict(compare(own, dense))


def compare(own: NDArray[np.uint8], dense: NDArray[np.uint8]) -> _Count:
    """From the wrong bits of every transmission, ``[N]`` each."""
    errors, reference, count = int(own.sum()), int(dense.sum()), len(own)
    spread = float(own.std()) * math.sqrt(count)
    # of a ratio of two sums over the same transmissions: linearised, as surveys do
    left = own - dense * (errors / max(reference, 1))
    paired = math.sqrt(float(np.square(left).sum())) / max(reference, 1)
    return _Count(errors, reference, count * fullycon.USERS, spread, paired)


@torch.no_grad()
def wrong_bits(network: nn.Module, snr: float, transmissions: int) -> NDArray[np.uint8]:
    """Number of wrong bits of every transmission, ``[transmissions]``; the same transmissions for the same SNR."""
    rng = np.random.default_rng((2026, round(10 * snr)))
    parts = []
    for _ in range(-(-transmissions // _CHUNK)):
        received, sent = fullycon.transmit(_CHUNK, snr, rng)
        wrong = (network(torch.from_numpy(received)) > 0) != (torch.from_numpy(sent) > 0)
        parts.append(wrong.sum(1).to(torch.uint8).numpy())
    return np.concatenate(parts)[:transmissions]


@dataclass(frozen=True)
class _Method:
    """A network to be measured: its name, the epochs of training behind it, and MODEL if it is a file."""

    name: str
    epochs: int
    module: nn.Module
    model: str | None = None


def _networks(dense: LoadedModel, quick: bool, say: Say) -> list[_Method]:
    received, _ = fullycon.transmit(4000, fullycon.TRAINING_SNR_DB, np.random.default_rng(5))
    samples = torch.from_numpy(received)

    def trained(name: str, text: str, epochs: int) -> _Method:
        epochs, data = (1, "mimo:5000") if quick else (epochs, zoo.TRANSMISSIONS)
        text = text.replace("{epochs}", str(epochs))
        path = Finished(NAME).network("fullycon", text, data, say, batch=1000)
        return _Method(name, epochs, load_model(path).module, path)

    found = [_Method("dense", 0, dense.module, "fullycon")]
    for sparsity in (0.5,) if quick else (0.5, 0.7):
        copied = copy.deepcopy(dense.module)
        step = Prune(pattern="unstructured", sparsity=sparsity)
        reconstruct(copied, prunable(copied, step), Pattern.parse("unstructured"), sparsity, samples)
        found.append(_Method(f"{zeros(copied):.0%} zeros, untrained", 0, copied))
    copied = copy.deepcopy(dense.module)
    step = Prune(pattern="columns", sparsity=0.5, exclude=_FIRST)
    reconstruct(copied, prunable(copied, step), Pattern.parse("columns"), step.share, samples)
    drop_unread(copied, samples)
    found.append(_Method("half of the neurons, untrained", 0, copied))
    for sparsity in (0.8,) if quick else (0.7, 0.8, 0.9):
        found.append(trained(f"{sparsity:.0%} zeros", _PRUNE.replace("{sparsity}", str(sparsity)), _EPOCHS))
    for bits in (8,) if quick else (8, 6, 4):
        text = f'[[steps]]\ndo = "quantize"\nmode = "weights"\nbits = {bits}'
        module = apply_post_training(dense.module, samples[:1], recipes.parse(text, "bits"), samples)
        found.append(_Method(f"{bits}-bit weights, untrained", 0, module))
    for name, exclude in (
        ("16 clusters, untrained", ()),
        ("16 clusters but for the first layer, untrained", _FIRST),
    ):
        clustered = copy.deepcopy(dense.module)
        start_sharing(clustered, Cluster(centroids=16, exclude=exclude), samples)
        finish_sharing(clustered)
        found.append(_Method(name, 0, clustered))
    if quick:
        return found
    found.append(trained("4-bit weights", _FOUR_BITS, _EPOCHS))
    for made in shipped("fullycon", dense.sha256, say):
        found.append(_Method(made.recipe, made.epochs, load_model(made.model).module, made.model))
    control = CONTROL.replace("{lr}", "2e-3")
    found.insert(1, trained("dense, more epochs", control, max(method.epochs for method in found)))
    return found
