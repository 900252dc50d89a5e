"""OpenVINO's CPU plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecsi.bench.peers.conversion import converting, missing, to_onnx, version_of
from edgecsi.bench.peers.protocol import Array, Run

if TYPE_CHECKING:
    from torch import nn

OPTIONS = {
    # Without this hint it silently computes in bf16 where the CPU can.
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    # Pinned to a core that something else uses, it waits; no other engine is pinned.
    "ENABLE_CPU_PINNING": False,
}


class OpenVINO:
    """fp32, one stream, one thread; reads the same ONNX model as ONNX Runtime."""

    name = "openvino"
    install = "pip install openvino onnx onnxscript"

    def available(self) -> str | None:
        return missing("openvino", "onnx", "onnxscript")

    def version(self) -> str:
        return version_of("openvino")

    def prepare(self, module: nn.Module, example: Array, entry: str) -> Run:
        with converting(self.name):
            import openvino

            core = openvino.Core()
            compiled = core.compile_model(core.read_model(to_onnx(module, [example], entry)), "CPU", OPTIONS)
            request = compiled.create_infer_request()

        def run(x: Array) -> Array:
            # Shared inputs save it a copy. The output is copied, as the next call would overwrite it.
            return np.asarray(request.infer([x], share_inputs=True)[0])

        return run
