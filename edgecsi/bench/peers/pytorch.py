"""PyTorch itself, eager: where every network comes from, and what "right" means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgecsi import verdict
from edgecsi.bench.peers.conversion import missing, version_of
from edgecsi.bench.peers.protocol import Array, Run, RunSeveral, entry_module

if TYPE_CHECKING:
    from torch import nn


class PyTorch:
    """Eager mode under ``inference_mode``, one thread."""

    name = "torch"
    install = "pip install torch"
    allowed = verdict.OTHER_ENGINE

    def available(self) -> str | None:
        return missing("torch")

    def version(self) -> str:
        return version_of("torch")

    def prepare(self, module: nn.Module, example: Array, entry: str) -> Run:
        import torch

        torch.set_num_threads(1)
        part = entry_module(module, entry).eval()

        def run(x: Array) -> Array:
            with torch.inference_mode():
                output: Array = part(torch.from_numpy(x)).numpy()
            return output

        return run

    def prepare_several(self, module: nn.Module, examples: Sequence[Array], entry: str) -> RunSeveral:
        import torch
        from torch.utils import _pytree

        torch.set_num_threads(1)
        part = entry_module(module, entry).eval()

        def run(*inputs: Array) -> tuple[Array, ...]:
            with torch.inference_mode():
                leaves = _pytree.tree_leaves(part(*map(torch.from_numpy, inputs)))
            return tuple(leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor))

        return run
