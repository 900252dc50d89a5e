"""OpenVINO's CPU plugin, in fp32 and in bf16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecsi import cpu, verdict
from edgecsi.bench.peers.conversion import converting, missing, to_onnx, version_of
from edgecsi.bench.peers.protocol import Array, Run

if TYPE_CHECKING:
    from torch import nn

OPTIONS = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    # Pinned to a core that something else uses, it waits; no other engine is pinned.
    "ENABLE_CPU_PINNING": False,
}
PRECISION = "INFERENCE_PRECISION_HINT"
BF16 = {"avx512_bf16", "amx_bf16"}
"""CPU features, as Linux names them, one of which it needs; without them it would only make believe."""


class OpenVINO:
    """fp32, one stream, one thread; reads the same ONNX model as ONNX Runtime."""

    name = "openvino"
    install = "pip install openvino onnx onnxscript"
    allowed = verdict.OTHER_ENGINE
    precision = "f32"  # unless it is told, it silently computes in bf16 where the CPU can

    def available(self) -> str | None:
        return missing("openvino", "onnx", "onnxscript")

    def version(self) -> str:
        return version_of("openvino")

    def prepare(self, module: nn.Module, example: Array, entry: str) -> Run:
        with converting(self.name):
            import openvino

            core = openvino.Core()
            options = OPTIONS | {PRECISION: self.precision}
            compiled = core.compile_model(core.read_model(to_onnx(module, [example], entry)), "CPU", options)
            if (given := compiled.get_property(PRECISION).to_string()) != self.precision:
                raise ValueError(f"asked for {self.precision}, it computes in {given}")
            request = compiled.create_infer_request()

        def run(x: Array) -> Array:
            # Shared inputs save it a copy. The output is copied, as the next call would overwrite it.
            return np.asarray(request.infer([x], share_inputs=True)[0])

        return run


class OpenVINOBf16(OpenVINO):
    """The same in bf16, which has eight binary digits for fp32's twenty-four: answers are less exact."""

    name = "openvino-bf16"
    allowed = verdict.BF16_ENGINE
    precision = "bf16"

    def __init__(self) -> None:
        if not BF16 & cpu.features():
            self.install = "leave it out of --against, or take openvino"

    def available(self) -> str | None:
        if not BF16 & cpu.features():
            return f"this CPU has no arithmetic in bf16 (Linux names neither of {', '.join(sorted(BF16))})"
        return super().available()
