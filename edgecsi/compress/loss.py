"""What a compression costs, in dB, and how much of that is said or refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgecsi.errors import NoLayer, Notice
from edgecsi.models.rows import one_tensor
from edgecsi.verdict import WORTH_SAYING_DB

TOO_MUCH_DB = 3.0
"""A loss beyond this is refused unless it is accepted."""
_NOTICED_DIFFERENCE_DB = -13.0  # of answers, to those of before: 3 dB more are as bad as 3 dB of NMSE
_LEAST_BER = 1e-6  # lower ones are a matter of chance


def loss_db(metric: str, before: float, after: float) -> float:
    """What was lost, in dB: of NMSE (``nmse_db``), of a bit error rate (``ber``), or of the likeness to the first answers
    (``difference_db``)."""
    if metric == "nmse_db":
        return after - before
    if metric == "difference_db":
        return max(after, before, _NOTICED_DIFFERENCE_DB) - max(before, _NOTICED_DIFFERENCE_DB)
    return 10 * math.log10(max(after, _LEAST_BER) / max(before, _LEAST_BER))


def say_untrained(model: str, nmse_db: float) -> None:
    """Say in words if a network reconstructs nothing."""
    if nmse_db > 0:
        said = Notice(f"{model} looks untrained: NMSE {nmse_db:.2f} dB; an answer without content has 0 dB")
        warnings.warn(said, stacklevel=3)


def say_loss(name: str, before: nn.Module, after: nn.Module, x: Tensor) -> None:
    """Say in words if a compressed network is much worse on inputs ``[N, …]`` than the network was."""
    found = loss_of(before, after, x)
    if found is not None and found[0] > WORTH_SAYING_DB:
        warnings.warn(Notice(f"{name} loses {found[0]:.1f} dB: {found[1]}"), stacklevel=3)


@contextmanager
def unless_nothing_to_do(number: int, step: str, recipe: str) -> Iterator[None]:
    """A step, from 0, of a recipe: the first needs a layer to change; what follows says that it has none, and what was
    done before it is kept."""
    try:
        yield
    except NoLayer as error:
        if number == 0:
            raise
        said = Notice(f"step {number + 1} ({step}) of {recipe} changes nothing: {error.what}, {error.why}")
        warnings.warn(said, stacklevel=4)


@torch.no_grad()
def loss_of(before: nn.Module, after: nn.Module, x: Tensor) -> tuple[float, str] | None:
    """What a compressed network loses on inputs ``[N, …]``, in dB and in words; None if it has nothing to lose there. One
    that reconstructs is judged by its NMSE, if that is any good; others by how far their answers are from those of
    before."""
    from edgecsi.channels.metrics import nmse_db

    try:
        was, now = one_tensor(before(x)), one_tensor(after(x))
    except (RuntimeError, ValueError, AssertionError):  # a network may take its example's batch alone
        return None
    figures = [nmse_db(x.numpy(), y.numpy()) for y in (was, now)] if was.shape == x.shape else [math.inf] * 2
    if figures[0] < 0:
        text = f"NMSE of the fp32 network {figures[0]:.2f} dB, of the compressed network in PyTorch {figures[1]:.2f} dB"
        return loss_db("nmse_db", *figures), text
    if was.shape == x.shape and x.shape[1:] == (2, 32, 32):
        return None  # an untrained network for channels has nothing to lose
    power = float((was - was.mean(0)).square().mean() + 1e-6 * was.square().mean())
    apart = float((now - was).square().mean()) / max(power, 1e-30)
    if not apart < math.inf:
        return None
    difference = 10 * math.log10(max(apart, 1e-30))
    text = f"its answers in PyTorch differ from the fp32 network's by {difference:.1f} dB of their power"
    return loss_db("difference_db", -math.inf, difference), text
