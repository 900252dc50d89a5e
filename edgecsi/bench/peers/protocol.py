"""What every engine can do, and which part of a model it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgecsi.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[np.float32]
Run = Callable[[Array], Array]
RunSeveral = Callable[..., tuple[Array, ...]]


class Peer(Protocol):
    """An inference engine.

    Attributes:
        name: as in ``--against``.
        install: the command that installs it, or what to do where that would not help.
        allowed: how far its answer may be from PyTorch's, relative to the largest output.
    """

    name: str
    install: str
    allowed: float

    def available(self) -> str | None:
        """Why it cannot be used here; None if it can."""
        ...

    def version(self) -> str:
        """The installed version."""
        ...

    def prepare(self, module: nn.Module, example: Array, entry: str) -> Run:
        """Converts one entry of a model for this engine, one thread.

        Args:
            module: the whole model, in eval mode, float32.
            example: an input of the entry, batch first, float32.
            entry: ``encoder``, ``decoder`` or ``full``.

        Returns:
            a function from an array shaped like ``example`` to the output.

        Raises:
            ToolchainError: the engine cannot convert this network.
        """
        ...


@runtime_checkable
class Batched(Peer, Protocol):
    """An engine that can also be measured with batches on several threads."""

    def prepare_threads(
        self, module: nn.Module, example: Array, entry: str, threads: Sequence[int]
    ) -> list[Run]:
        """As :meth:`Peer.prepare`, once for each number of threads."""
        ...


@runtime_checkable
class Several(Peer, Protocol):
    """An engine that also takes networks of several inputs, outputs, or integers."""

    def prepare_several(self, module: nn.Module, examples: Sequence[Array], entry: str) -> RunSeveral:
        """As :meth:`Peer.prepare`: a function from all inputs to all outputs, in the order of the entry's."""
        ...


def entry_module(module: nn.Module, entry: str) -> nn.Module:
    """The part of a model that is an entry: the child (or the method ``encode`` / ``decode``) of that name.

    Raises:
        UsageError: the model has no such part.
    """
    from torch import nn

    if entry == "full":
        return module
    part: Any = getattr(module, entry, None)
    if isinstance(part, nn.Module):
        return part
    method: Any = getattr(module, entry.removesuffix("r"), None)
    if callable(method):
        return _method_module(module, method)
    raise UsageError(
        f"the model has no entry {entry!r}",
        f"{type(module).__name__} has neither a child {entry!r} nor a method {entry.removesuffix('r')!r}",
        "use --entry full",
    )


def _method_module(module: nn.Module, method: Callable[..., Any]) -> nn.Module:
    from torch import nn

    class Method(nn.Module):
        """A model seen through one of its methods; shares the weights."""

        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: Any) -> Any:
            return method(*inputs)

    return Method().eval()
