"""LiteRT (formerly TensorFlow Lite) with XNNPACK.

Its converter, litert-torch, asks for an older typing_extensions than other tools do. It may therefore
live in an environment of its own, whose Python is named by ``EDGECSI_LITERT_PYTHON``; only the runtime
is needed here.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgecsi import disk, verdict
from edgecsi.bench.peers.conversion import converting, missing, version_of
from edgecsi.bench.peers.protocol import Array, Run, entry_module

if TYPE_CHECKING:
    from torch import nn

CONVERTER = "EDGECSI_LITERT_PYTHON"
CONVERT = """
import sys, torch, litert_torch
program = torch.export.load(sys.argv[1])
litert_torch.convert(program.module(), program.example_inputs[0]).export(sys.argv[2])
"""


class LiteRT:
    """fp32, one thread, the interpreter's Python API."""

    name = "litert"
    allowed = verdict.OTHER_ENGINE
    install = (
        f"pip install ai-edge-litert litert-torch (or {CONVERTER}=/path/to/python that has litert-torch)"
    )

    def available(self) -> str | None:
        return missing("ai_edge_litert") or (None if os.environ.get(CONVERTER) else missing("litert_torch"))

    def version(self) -> str:
        return version_of("ai-edge-litert")

    def prepare(self, module: nn.Module, example: Array, entry: str) -> Run:
        with converting(self.name):
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(model_content=_convert(module, example, entry), num_threads=1)
            interpreter.allocate_tensors()
            source: int = interpreter.get_input_details()[0]["index"]
            target: int = interpreter.get_output_details()[0]["index"]
            interpreter.set_tensor(source, example)
            interpreter.invoke()

        def run(x: Array) -> Array:
            interpreter.set_tensor(source, x)
            interpreter.invoke()
            output: Array = interpreter.get_tensor(target)
            return output

        return run


def _convert(module: nn.Module, example: Array, entry: str) -> bytes:
    """One entry as a LiteRT model, made by whichever Python has the converter."""
    import torch

    own = importlib.util.find_spec("litert_torch") is not None
    python = sys.executable if own else os.environ[CONVERTER]
    with disk.scratch(runs=True) as folder:
        source, target = Path(folder, "model.pt2"), Path(folder, "model.tflite")
        exported = torch.export.export(entry_module(module, entry), (torch.from_numpy(example),))
        torch.export.save(exported, source)
        command = [python, "-c", CONVERT, str(source), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode != 0 or not target.exists():
            raise ValueError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
        return target.read_bytes()
