"""What low rank costs CsiNet 1/16, without training: ``python -m edgecsi.results.low_rank``.

Scored on all of the shipped test set, each half with the components that the other half shows.
"""

from __future__ import annotations

import copy
import sys

import numpy as np
import torch

from edgecsi.channels.metrics import nmse_db
from edgecsi.channels.shipped import test_set
from edgecsi.compress.low_rank import factor_layers
from edgecsi.compress.recipe import LowRank
from edgecsi.models.load import load_model

STEPS = (LowRank(energy=0.99), LowRank(energy=0.9), LowRank(budget=0.25))


@torch.no_grad()
def score(step: LowRank | None, name: str = "csinet-cr16") -> tuple[float, list[dict[str, int]]]:
    """NMSE in dB, and the ranks of both halves."""
    module = load_model(name).module.eval()
    x = torch.from_numpy(test_set())
    found, ranks = torch.empty_like(x), []
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    for seen, unseen in (order.chunk(2), order.chunk(2)[::-1]):
        small = copy.deepcopy(module)
        ranks.append({} if step is None else factor_layers(small, step, x[seen]))
        found[unseen] = small(x[unseen])
    return nmse_db(x.numpy(), found.numpy()), ranks


def main() -> None:
    """A line for the dense network and for every step."""
    for step in (None, *STEPS):
        nmse, ranks = score(step)
        what = (
            "dense" if step is None else f"budget {step.budget}" if step.budget else f"energy {step.energy}"
        )
        sys.stdout.write(f"{what}: {nmse:.2f} dB, ranks {ranks}\n")


if __name__ == "__main__":
    main()
