"""ONNX Runtime: the reference all ratios are given to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgecsi.bench.peers import Array, Run
from edgecsi.bench.peers.conversion import converting, missing, to_onnx, version_of

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
        with converting(self.name):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.inter_op_num_threads = 1
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            session = onnxruntime.InferenceSession(
                to_onnx(module, example, entry), options, providers=["CPUExecutionProvider"]
            )
            name: str = session.get_inputs()[0].name

        def run(x: Array) -> Array:
            output: Array = session.run(None, {name: x})[0]
            return output

        return run
