"""FullyCon compressed: bit error rate over the SNR (Guo et al., arXiv 1907.13269, second case)."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from edgecsi.compress import apply_post_training, zoo
from edgecsi.compress import recipe as recipes
from edgecsi.compress.cluster import finish_sharing, start_sharing
from edgecsi.compress.experiments.common import Result, Say, zeros
from edgecsi.compress.prune import prunable
from edgecsi.compress.recipe import Cluster, Pattern, Prune
from edgecsi.compress.reconstruct import reconstruct
from edgecsi.compress.size import stored_bytes
from edgecsi.models import fullycon
from edgecsi.models.load import load_model

_SHIPPED = (
    "int8-dynamic",
    "int8-static",
    "prune90",
    "prune90-bsr4x1",
    "cluster16",
    "prune70-bsr4x1-int8",
    "prune72-bsr4x1-int8",
)
_ERRORS = 100  # wanted at every point
_CHUNK = 50_000
_MOST = 2_000_000


def run(quick: bool, say: Say) -> Result:
    """Dense, pruned at several rates, 8/6/4 bits, clustered, and what ships; the same noise for all."""
    dense = load_model("fullycon")
    size = stored_bytes(dense.module)
    received, _ = fullycon.transmit(4000, fullycon.TRAINING_SNR_DB, np.random.default_rng(5))
    samples = torch.from_numpy(received)
    networks: dict[str, nn.Module] = {"dense": dense.module}
    for sparsity in (0.5,) if quick else (0.3, 0.5, 0.7):
        copied = copy.deepcopy(dense.module)
        step = Prune(pattern="unstructured", sparsity=sparsity)
        reconstruct(copied, prunable(copied, step), Pattern.parse("unstructured"), sparsity, samples)
        networks[f"{zeros(copied):.0%} zeros, untrained"] = copied
    for bits in (8,) if quick else (8, 6, 4):
        text = f'[[steps]]\ndo = "quantize"\nmode = "weights"\nbits = {bits}'
        networks[f"{bits}-bit weights"] = apply_post_training(
            dense.module, dense.example_input, recipes.parse(text, "bits"), samples
        )
    clustered = copy.deepcopy(dense.module)
    start_sharing(clustered, Cluster(centroids=16), samples)
    finish_sharing(clustered)
    networks["16 clusters, untrained"] = clustered
    if not quick:
        for recipe in _SHIPPED:
            if (path := zoo.path_of("fullycon", recipe)).exists():
                networks[recipe] = load_model(str(path)).module

    snrs = (8.0, 10.0) if quick else fullycon.TEST_SNR_DB
    rates: dict[str, tuple[list[float], list[float], list[float]]] = {n: ([], [], []) for n in networks}
    for snr in snrs:
        wrong, bits_sent = _count(networks, snr, 2 * _CHUNK if quick else _MOST)
        for name in networks:
            rate = wrong[name] / bits_sent
            rates[name][0].append(snr)
            rates[name][1].append(rate)
            rates[name][2].append(1.96 * math.sqrt(rate * (1 - rate) / bits_sent))
        say(f"{snr:g} dB: dense {wrong['dense'] / bits_sent:.3g}, {bits_sent:,} bits")
    rows: list[dict[str, Any]] = []
    for name, module in networks.items():
        stored = stored_bytes(module)
        row: dict[str, Any] = {"method": name, "bytes": stored, "smaller": round(size / stored, 1)}
        row |= {f"BER {snr:g} dB": rate for snr, rate in zip(rates[name][0], rates[name][1], strict=True)}
        worst = max(r / d - 1 for r, d in zip(rates[name][1], rates["dense"][1], strict=True))
        rows.append(row | {"worst change": f"{worst:+.1%}"})
    about = (
        "Bit error rate of FullyCon (20 BPSK users, 30 antennas, the fixed 0.6-Toeplitz channel). All "
        f"networks see the same transmissions, until each has {_ERRORS} errors at every SNR; error bars are "
        "95 % intervals."
    )
    axes = ("SNR (dB)", "bit error rate", True)
    return Result("guo-detection", "FullyCon compressed", about, rows, axes, rates)


@torch.no_grad()
def _count(networks: dict[str, nn.Module], snr: float, most: int) -> tuple[dict[str, int], int]:
    """Wrong bits of each network, and bits sent, in chunks until all have enough errors."""
    rng = np.random.default_rng((2026, round(10 * snr)))
    wrong = dict.fromkeys(networks, 0)
    sent_bits = 0
    while sent_bits < most * fullycon.USERS and (min(wrong.values()) < _ERRORS or sent_bits == 0):
        received, sent = fullycon.transmit(_CHUNK, snr, rng)
        x, positive = torch.from_numpy(received), torch.from_numpy(sent) > 0
        for name, network in networks.items():
            wrong[name] += int(((network(x) > 0) != positive).sum())
        sent_bits += sent.size
    return wrong, sent_bits
