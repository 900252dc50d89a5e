"""The compressed networks that ship, and how they are made: ``python -m edgecsi.results.zoo [--only TEXT]``.

Every job is resumable and skipped when its file is there, so the program can be stopped and started at will.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from edgecsi import target as targets
from edgecsi.compress import recipe as recipes

CHANNELS = "umi:24000:seed=1"
TRANSMISSIONS = "mimo:500000"

_RECIPES = {
    "csinet-cr4": (
        "prune90-bsr16x4-int8", "prune90-bsr16x4-int8-dynamic", "int8-static",
    ),
    "csinet-cr16": ("prune75-bsr16x4-int8", "prune75-bsr16x4-int8-dynamic", "prune90-bsr16x4-int8-dynamic"),
    "crnet-cr16": ("prune75-bsr16x4-int8", "prune75-bsr16x4-int8-dynamic", "prune90-bsr16x4-int8-dynamic"),
}  # fmt: skip
_FOR_ALL = (
    "int8-trained", "int8-weights", "int8-dynamic", "cluster16", "prune90", "prune90-bsr16x1", "prune90-bsr16x4",
)  # fmt: skip
_DETECTOR = (
    "columns50-int8-dynamic", "prune75-bsr4x1-int8-weights", "int8-weights", "int8-dynamic", "int8-static", "cluster16",
    "prune90", "prune90-bsr4x1",  # 16 does not divide its layers
)  # fmt: skip
_NARROWED = {
    "csinet-cr4+prune90-bsr16x4-int8-dynamic": ("int16", "f16"),
    "csinet-cr16+prune90-bsr16x4-int8-dynamic": ("int16",),
}
"""Shipped networks again with convolutions in 16 bits, so that nothing is trained."""


def computes(network: str, target: str) -> bool:
    """Whether a target computes in what the last recipe of a network asks for."""
    chosen, last = targets.load(target), network.rpartition("+")[2]
    return {"int16": chosen.arch == "x86_64", "f16": chosen.half == "f16"}.get(last, True)


def jobs() -> list[tuple[str, str, str]]:
    """Network, recipe and data of every compressed network that ships."""
    pairs = [(network, recipe) for network, own in _RECIPES.items() for recipe in (*own, *_FOR_ALL)]
    pairs += [("fullycon", recipe) for recipe in _DETECTOR]
    pairs += [(network, recipe) for network, own in _NARROWED.items() for recipe in own]
    return [(n, r, TRANSMISSIONS if n == "fullycon" else CHANNELS) for n, r in pairs]


def path_of(network: str, recipe: str) -> Path:
    """Where a compressed network ships."""
    from edgecsi.models.registry import WEIGHTS

    return WEIGHTS / f"{network}+{recipe}.safetensors"


def make(network: str, recipe: str, data: str) -> None:
    """Make one of them, unless it is there."""
    from edgecsi.compress.run import CompressProgress, compress

    def report(at: CompressProgress) -> None:
        if at.phase:
            return
        now = time.strftime("%H:%M:%S")
        place = f"step {at.step}/{at.steps} {at.kind}, epoch {at.epoch}/{at.epochs}"
        print(f"{now} {network} {recipe}: {place}, score {at.score:.5g}", flush=True)

    out = path_of(network, recipe)
    if out.exists():
        return
    result = compress(network, recipes.load(recipe), data, out, batch=1000 if data == TRANSMISSIONS else 100,
                      progress=report)  # fmt: skip
    share = result.bytes_after / result.bytes_before
    print(f"{out.name}: {result.metric} {result.before:.5g} -> {result.after:.5g}, {share:.1%} of the bytes")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m edgecsi.results.zoo", description=__doc__)
    parser.add_argument("--only", default="", help="jobs whose NETWORK+RECIPE contains this text")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(options.threads)
    for network, recipe, data in jobs():
        if options.only in f"{network}+{recipe}":
            make(network, recipe, data)


if __name__ == "__main__":
    main(sys.argv[1:])
