"""ONNX Runtime: the reference all ratios are given to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgecsi.bench.peers.conversion import converting, missing, to_onnx, version_of
from edgecsi.bench.peers.protocol import Array, Run

if TYPE_CHECKING:
    from torch import nn


class OnnxRuntime:
    """CPU provider, all graph optimisations, one thread; ``torch.onnx.export`` converts."""

    name = "onnxruntime"
    install = "pip install onnxruntime onnx onnxscript"

    def available(self) -> str | None:
        return missing("onnxruntime", "onnx", "onnxscript")

    def version(self) -> str:
        return version_of("onnxruntime")

    def prepare(self, module: nn.Module, example: Array, entry: str) -> Run:
        (run,) = self.prepare_threads(module, example, entry, [1])
        return run

    def prepare_threads(
        self, module: nn.Module, example: Array, entry: str, threads: Sequence[int]
    ) -> list[Run]:
        """One session for each number of intra-op threads, all of the same ONNX model."""
        with converting(self.name):
            model = to_onnx(module, example, entry)
            return [_session(model, count) for count in threads]


def _session(model: bytes, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name: str = session.get_inputs()[0].name

    def run(x: Array) -> Array:
        output: Array = session.run(None, {name: x})[0]
        return output

    return run
