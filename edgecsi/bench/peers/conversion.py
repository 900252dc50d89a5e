"""What several peers need: quiet conversion, PyTorch to ONNX, versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from edgecsi.bench.peers.protocol import Array, entry_module
from edgecsi.errors import ToolchainError

if TYPE_CHECKING:
    from torch import nn


def missing(*packages: str) -> str | None:
    """Which of these import names is not installed, as a reason; None if all are."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def version_of(distribution: str) -> str:
    """The installed version of a distribution, ``unknown`` if it carries none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@contextlib.contextmanager
def converting(engine: str) -> Iterator[None]:
    """Keeps a converter quiet, and turns whatever it raises into a ToolchainError naming ``engine``.

    Converters warn, log and print (also from C++, past Python's streams) about their own insides, which would
    bury the report; an error still carries the converter's own words.

    Raises:
        ToolchainError: the code inside failed.
    """
    disabled = logging.root.manager.disable
    try:
        with warnings.catch_warnings(), silent_streams():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            yield
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ToolchainError(
            f"{engine} cannot take this network",
            f"its converter says: {said.strip()[:300]}",
            f"leave {engine} out of --against, or update it",
        ) from error
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def silent_streams() -> Iterator[None]:
    """Sends file descriptors 1 and 2 nowhere, so that native libraries are silent too."""
    with contextlib.ExitStack() as stack:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        for descriptor in (1, 2):
            kept = os.dup(descriptor)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, descriptor)
            os.dup2(nowhere, descriptor)
        yield


def to_onnx(module: nn.Module, examples: Sequence[Array], entry: str) -> bytes:
    """One entry as an ONNX model with its weights inside, serialised."""
    import torch

    program = torch.onnx.export(
        entry_module(module, entry), tuple(map(torch.from_numpy, examples)), dynamo=True, verbose=False
    )
    if program is None:
        raise ValueError("torch.onnx.export returned nothing")
    serialised: bytes = program.model_proto.SerializeToString()
    return serialised
