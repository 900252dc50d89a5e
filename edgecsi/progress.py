"""How long work says where it is."""

from collections.abc import Callable

Progress = Callable[[float, float, str], None]
"""Called with (done, in all, what is being done); 0 in all means that nobody knows how long it will take."""
