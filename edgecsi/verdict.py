"""What counts as right: every tolerance of edgecsi, and the one measure of a difference.

Differences are those of the outputs, relative to the largest output of the reference. numpy only, so that whoever
judges can ask here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgecsi.errors import CheckFailed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FP32 = 1e-5
"""A library against PyTorch at build: what other orders of fp32 sums amount to."""
NARROW = 2e-5
"""The same, where weights are int8 or clustered: PyTorch's simulation sums these in double precision, so all rounding
is the library's."""
AMPLIFIED = 4.0
"""Times what moving every result by a unit in its last place does to PyTorch's own answer: an fp32 network that
amplifies rounding is held to that."""
AMPLIFIED_MOST = 1e-3
"""And to this at the most."""
DECIDED = 1e-2
"""Where that alone moves a number further, a value lay on an edge (argmax, sort, round, x > 0) and rounding decides."""
UNDECIDED = 0.05
"""The most of an answer's numbers that rounding may decide; the others are compared."""
QUANTISED = 0.1
"""The most that fp32 rounding before a quantiser may be found to move the answers of a network; see
`edgecsi.rounding`."""
ELSEWHERE = 10.0
"""Other data, devices and C libraries than the build's check met may move an answer so many times further."""
OTHER_ENGINE = FP32 * ELSEWHERE
"""Another engine with the same weights."""
BF16_ENGINE = 0.05
"""And one that computes in bf16, of eight binary digits: of networks of ten layers it is found to be 0.02 off."""
SAME_WEIGHTS = 1e-3
"""Beyond this, two fp32 networks have different weights."""
KERNEL = 2e-5
"""A kernel against its reference in numpy."""
TIES = 1e-4
"""Share of whole numbers that may fall to the other side, because the value they were rounded from lay on the edge."""
NMSE_DB = 0.01
"""How far the NMSE (or the bit error rate, in dB) may be from PyTorch's."""
WORTH_SAYING_DB = 1.0
"""A loss of accuracy beyond this is said in words."""


@dataclass(frozen=True)
class Accuracy:
    """The NMSE in dB of one network on its way into a library, None where it is not known; the same figures under the
    same names wherever accuracy is shown.

    Attributes:
        fp32: of the network before compression. compressed: of the compressed network in PyTorch; None as well if
            nothing was compressed. library: of the library.
    """

    fp32: float | None
    compressed: float | None
    library: float | None

    @classmethod
    def of(
        cls, recipe: str | None, fp32: float | None, pytorch: float | None, library: float | None
    ) -> Accuracy:
        """Of a library whose network had this `recipe` applied, if any: PyTorch's answer is then the compressed one."""
        return cls(pytorch, None, library) if recipe is None else cls(fp32, pytorch, library)

    @property
    def loss(self) -> float | None:
        """What the library lost against the fp32 network, in dB; of two perfect answers nothing."""
        if self.fp32 is None or self.library is None:
            return None
        return 0.0 if self.fp32 == self.library else self.library - self.fp32

    def named(self) -> dict[str, str]:
        """What is known, by its name; a loss worth saying is said in words."""
        steps = {
            "fp32 network": self.fp32,
            "compressed network in PyTorch": self.compressed,
            "library": self.library,
        }
        lines = {name: f"NMSE {value:.2f} dB" for name, value in steps.items() if value is not None}
        if self.loss is not None:
            lines["loss"] = f"{round(self.loss, 2) + 0.0:.2f} dB{self._in_words(self.loss)}"
        return lines

    @staticmethod
    def _in_words(loss: float) -> str:
        if not WORTH_SAYING_DB < loss < math.inf:
            return ""
        return f": its errors have {10 ** (loss / 10):.1f} times the power of the fp32 network's"


@dataclass(frozen=True)
class Difference:
    """An answer against the right one: the largest difference of an output, and that relative to the largest output."""

    max_abs_diff: float
    max_rel_diff: float


def decibels_apart(found: float | None, reference: float | None) -> float:
    """How far two NMSE in dB are apart, 0 if one is not known. Below what rounding does to an answer both are the same: a
    network that gives back its input is off by the last bit or two, and which ones is nobody's fault."""
    if found is None or reference is None:
        return 0.0
    least = 20 * math.log10(FP32)
    return abs(max(found, least) - max(reference, least))


def difference(y: NDArray[Any], expected: NDArray[Any]) -> Difference:
    """Compare two arrays of one shape. NaN and infinity are right where the right answer has the same; anywhere else
    they are an infinite difference."""
    import numpy as np  # here only: every manifest that is read comes by

    finite = np.isfinite(expected)
    if not (np.isfinite(y) == finite).all() or not np.array_equal(
        y[~finite], expected[~finite], equal_nan=True
    ):
        return Difference(float("inf"), float("inf"))
    wanted = expected[finite].astype(np.float64)
    apart = float(np.max(np.abs(y[finite].astype(np.float64) - wanted), initial=0.0))
    largest = float(np.max(np.abs(wanted), initial=0.0)) or 1.0
    return Difference(apart, apart / largest)


def within_rounding(
    y: NDArray[Any],
    expected: NDArray[Any],
    moved: NDArray[np.float64],
    least: float = FP32,
    coarseness: float = 1.0,
) -> float | None:
    """The bar that an answer passes if rounding explains its difference to the right one; None if it does not.

    Args:
        moved: how far rounding alone moves each number of `expected`. least: what is allowed where that is nothing.
        coarseness: how much wider both bounds are, for networks that compute in less than fp32.
    """
    import numpy as np

    finite = np.isfinite(expected)
    reach = moved / (float(np.max(np.abs(expected[finite]), initial=0.0)) or 1.0)
    edges = finite & (reach > DECIDED * coarseness)
    if edges.sum() > UNDECIDED * edges.size:
        return None
    most = AMPLIFIED_MOST * coarseness
    bar = max(least, min(AMPLIFIED * float(np.max(reach[finite & ~edges], initial=0.0)), most))
    return bar if difference(np.where(edges, expected, y), expected).max_rel_diff <= bar else None


def difference_but_ties(y: NDArray[Any], expected: NDArray[Any]) -> Difference:
    """As :func:`difference`; of whole numbers a few (:data:`TIES`) may be on the other side."""
    import numpy as np

    if np.isfinite(expected).all() and y.shape == expected.shape and (expected == np.round(expected)).all():
        ties = np.abs(y.astype(np.float64) - expected) > 0
        if 0 < ties.sum() <= max(1, int(TIES * ties.size)) and ties.size > 100:
            y = np.where(ties, expected, y)
    return difference(y, expected)


def with_ties_of(y: NDArray[Any], expected: NDArray[Any], allowed: float) -> NDArray[Any]:
    """The right answer, but for numbers that are further than `allowed` from it: these as in `y`, an answer that was
    found right but for what rounding decides."""
    import numpy as np

    largest = float(np.max(np.abs(expected[np.isfinite(expected)]).astype(np.float64), initial=0.0)) or 1.0
    with np.errstate(invalid="ignore"):  # infinity from infinity
        near = np.abs(y.astype(np.float64) - expected) <= allowed * largest
    same = (y == expected) | (np.isnan(y) & np.isnan(expected))
    return np.where(near | same, expected, y)


def require(name: str, y: NDArray[Any], expected: NDArray[Any], allowed: float) -> Difference:
    """Compare what is about to be used with what is right.

    Args:
        name: whose answer it is, for the error. allowed: the largest relative difference.

    Raises:
        CheckFailed: another shape, not finite, or further away than `allowed`.
    """
    if y.shape != expected.shape:
        raise CheckFailed(
            f"{name} returns shape {list(y.shape)}",
            f"PyTorch returns {list(expected.shape)} for the same input",
            "check that both come from the same model and entry",
        )
    found = difference(y, expected)
    if not found.max_rel_diff <= allowed:
        raise CheckFailed(
            f"{name} answers wrongly: it differs from PyTorch by {found.max_abs_diff:.3g}",
            f"that is {found.max_rel_diff:.3g} of the largest output; {allowed:.3g} is accepted",
            "a wrong answer is not timed: rebuild, or check the weights",
        )
    return found


def elsewhere(allowed: float | None, quantised: bool) -> float:
    """The bar for a library on other data or another device than its build checked.

    Args:
        allowed: what the build allowed; None if it checked nothing. quantised: whether weights are narrower than fp32.
    """
    if allowed is None:
        return QUANTISED if quantised else FP32 * ELSEWHERE
    return min(allowed * ELSEWHERE, QUANTISED)
