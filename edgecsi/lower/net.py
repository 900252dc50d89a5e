"""The last net: what a pass or TVM did not expect of a network is the network's refusal, by pass and operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgecsi.errors import EdgecsiError, ModelError


@contextmanager
def net(name: str, operator: str = "", path: str = "") -> Iterator[None]:
    """Turn an unexpected failure inside into a `ModelError`; ``--debug`` shows where it was.

    Args:
        name: the pass. operator, path: what it worked on, if that is known.
    """
    try:
        yield
    except (EdgecsiError, MemoryError, OSError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        words = (lines[-1] if lines else "")[:200]
        about = f"{operator} (in {path or 'the top module'})" if operator else "the network"
        raise ModelError(
            f"{about} cannot be lowered: {name} does not know this form of it",
            f"{type(error).__name__}: {words}",
            "write it with other operators (docs/supported.md); --debug shows where it failed, please report that",
        ) from error
