"""ExecuTorch with its XNNPACK back end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgecsi import verdict
from edgecsi.bench.peers.conversion import converting, missing, version_of
from edgecsi.bench.peers.protocol import Array, Run, entry_module

if TYPE_CHECKING:
    from torch import nn


class ExecuTorch:
    """fp32, partitioned to XNNPACK, one thread; called through its Python binding."""

    name = "executorch"
    install = "pip install executorch"
    allowed = verdict.OTHER_ENGINE

    def available(self) -> str | None:
        return missing("executorch")

    def version(self) -> str:
        return version_of("executorch")

    def prepare(self, module: nn.Module, example: Array, entry: str) -> Run:
        with converting(self.name):
            import torch
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
            from executorch.extension.pybindings import portable_lib

            exported = torch.export.export(entry_module(module, entry), (torch.from_numpy(example),))
            lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            program: bytes = lowered.to_executorch().buffer
            # It takes every core until told otherwise.
            portable_lib._unsafe_reset_threadpool(1)
            loaded = portable_lib._load_for_executorch_from_buffer(program)

        def run(x: Array, keep: bytes = program) -> Array:
            # The loaded program points into the bytes it was loaded from: `keep` holds them.
            output: Array = loaded.forward([torch.from_numpy(x)])[0].numpy()
            return output

        return run
