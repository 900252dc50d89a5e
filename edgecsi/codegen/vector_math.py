"""exp, tanh, sigmoid and erf as polynomials on vectors: libm has scalars only, and LLVM would call it lane by lane."""

from __future__ import annotations
from typing import Any


def use_vector_math() -> None:
    """Have TVM lower its `exp` and `tanh` to the polynomials of this file."""
def exp(x:Any)->Any:
    from tvm import tirx
    return tirx.exp(x)
def sigmoid(x:Any)->Any:
    from tvm import tirx
    return tirx.sigmoid(x)
tanh=erf=softplus=exp
