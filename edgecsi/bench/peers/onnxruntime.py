"""ONNX Runtime: the reference all ratios are given to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgecsi import verdict
from edgecsi.bench.peers.conversion import converting, missing, to_onnx, version_of
from edgecsi.bench.peers.protocol import Array, Run, RunSeveral

if TYPE_CHECKING:
    from torch import nn


class OnnxRuntime:
    """CPU provider, all graph optimisations, one thread; ``torch.onnx.export`` converts."""

    name = "onnxruntime"
    install = "pip install onnxruntime onnx onnxscript"
    allowed = verdict.OTHER_ENGINE

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
            model = to_onnx(module, [example], entry)
            return [_run(_session(model, count)) for count in threads]

    def prepare_several(self, module: nn.Module, examples: Sequence[Array], entry: str) -> RunSeveral:
        with converting(self.name):
            session = _session(to_onnx(module, examples, entry), threads=1)
        names = [described.name for described in session.get_inputs()]

        def run(*inputs: Array) -> tuple[Array, ...]:
            return tuple(session.run(None, dict(zip(names, inputs, strict=True))))

        return run


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: Any) -> Run:
    name: str = session.get_inputs()[0].name

    def run(x: Array) -> Array:
        output: Array = session.run(None, {name: x})[0]
        return output

    return run
