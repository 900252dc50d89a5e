"""How long work says where it is."""

from collections.abc import Callable

Progress = Callable[[float, float, str], None]
"""Called with (done, in all, what is being done)."""
