"""Everything edgecsi raises on purpose, one branch per exit code.

    EdgecsiError
    ├── UsageError          2   the command line does not make sense
    ├── InputError          3   something the user gave is bad
    │   ├── ModelError          a model, factory or checkpoint
    │   │   └── UnsupportedOperators   all of them, with module paths
    │   ├── DataError           channels, .npy, .npz, .mat
    │   ├── TargetError         a target file or name
    │   ├── RecipeError         a compression recipe
    │   └── BundleError         a bundle, its manifest or its library
    ├── ToolchainError      4   a compiler, linker, emulator or package is missing or broken
    ├── DeviceError         5   a device or the way to it
    │   ├── Unreachable         there is no way to it: nothing was done there
    │   └── ConnectionLost      the way to it broke off in between
    └── CheckFailed         6   it ran, and the answer is wrong or too slow

An error is three lines: what happened, why, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence


def shown(value: object) -> str:
    """A value from a file or a command line, as an error may show it: on one line, and not longer than that."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


class EdgecsiError(Exception):
    """Base of all errors that are the user's to act on.

    Args:
        what: what happened, naming the file, layer or host.
        why: the cause, in one line.
        fix: what to do next, in one line.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        # Parts of a message may come from a stranger's file: a terminal must not obey them.
        self.what, self.why, self.fix = _printable(what, 600), _printable(why, 2800), _printable(fix, 590)
        super().__init__(self.what)

    def __str__(self) -> str:
        return "\n".join(line for line in (self.what, self.why, self.fix) if line)


class Notice(UserWarning):
    """Something the user should know although the work goes on: a Python warning; the command line prints a line."""


def _printable(text: str, most: int) -> str:
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


class UsageError(EdgecsiError):
    exit_code = 2


class InputError(EdgecsiError):
    exit_code = 3


class ModelError(InputError):
    pass


class UnsupportedOperators(ModelError):
    """Operators that cannot be lowered.

    Args:
        operators: pairs (operator, module path and line), every one that was met.
        why, fix: where the usual ones do not fit.
    """

    def __init__(
        self,
        operators: Sequence[tuple[str, str]],
        why: str = "neither edgecsi nor TVM has a definition of them",
        fix: str = "rewrite them with supported operators (docs/supported.md), "
        "or compile the part that is supported (--entry)",
    ) -> None:
        self.operators = list(operators)
        listed = ", ".join(f"{name} (in {path or 'the top module'})" for name, path in self.operators)
        super().__init__(f"{len(self.operators)} operator(s) cannot be lowered: {listed}", why, fix)


class DataError(InputError):
    pass


class TargetError(InputError):
    pass


class RecipeError(InputError):
    pass


class NoLayer(RecipeError):
    """A step of a recipe has nothing to change in this network."""


class BundleError(InputError):
    pass


class ToolchainError(EdgecsiError):
    exit_code = 4


class DeviceError(EdgecsiError):
    exit_code = 5


class Unreachable(DeviceError):
    pass


class ConnectionLost(DeviceError):
    pass


class CheckFailed(EdgecsiError):
    exit_code = 6
