"""The loop that trains, for networks from scratch and for every step of a compression alike.

Deterministic, and resumable after every epoch: what must survive is handed out as one dictionary.
"""

from __future__ import annotations

import copy
import ctypes
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgecsi.errors import EdgecsiError, ModelError
from edgecsi.training.tasks import Reconstruction

if TYPE_CHECKING:
    from edgecsi.training.tasks import Task

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""
FINAL_LR = 0.01
"""The last learning rate, as a share of the highest."""
LARGEST_BASIS = 256
"""Sides of a weight up to this long get an eigenbasis. Longer ones are the channel's own angles and delays, which
hardly correlate, and would take most of the time."""

State = dict[str, Any]


@dataclass(frozen=True)
class Epoch:
    """What one epoch did.

    ``score`` is the validation NMSE in dB, or the bit error rate of a detector; ``best`` the lowest so far.
    """

    epoch: int
    loss: float
    score: float
    best: float
    seconds: float


@dataclass
class Hooks:
    """What the caller does to the loop.

    Attributes:
        after_step: called after every step of the optimiser with the share of the training that is done.
        acceptable: whether the network at this share may be the best one (a ramp still going on may not).
        state, load: what of the caller must survive a restart, as tensors and plain numbers.
        save: called with everything that must survive, before the first epoch and after every one.
        report: called after every epoch. progress: called with (epoch, its steps done, all its steps) now and then.
    """

    after_step: Callable[[float], None] = lambda done: None
    acceptable: Callable[[float], bool] = lambda done: True
    state: Callable[[], State] = dict
    load: Callable[[State], None] = lambda state: None
    save: Callable[[State], None] = lambda state: None
    report: Callable[[Epoch], None] = lambda epoch: None
    progress: Callable[[int, int, int], None] = lambda epoch, done, total: None


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train, and after whom.

    Attributes:
        epochs: passes over the data. lr: highest learning rate.
        first_epoch: where the order of the data goes on, so that no two phases of a run see the same order.
        settled: share of the training after which batch normalisation keeps the statistics it has: those of a
            batch differ from them by a few per cent, more than a good network errs. A network that begins with
            good ones always keeps them.
        teacher: network to imitate. imitation: weight of that, 0 to 1.
    """

    epochs: int
    lr: float
    first_epoch: int = 0
    settled: float = 0.0
    teacher: nn.Module | None = None
    imitation: float = 0.0
    hooks: Hooks = field(default_factory=Hooks)


def fit(module: nn.Module, task: Task, plan: Plan, resumed: State | None = None) -> list[Epoch]:
    """Train a network in place and leave its best acceptable weights in it.

    Args:
        resumed: what ``hooks.save`` was last given, to go on from there.

    Returns:
        all epochs, those before a restart too.

    Raises:
        ModelError: the loss became NaN or infinite, or the state to go on from is damaged.
    """
    hooks = plan.hooks
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, plan.lr)
    best, best_state = math.inf, copy.deepcopy(module.state_dict())
    history: list[Epoch] = []

    def save() -> None:
        hooks.save(
            {
                "model": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "best": best,
                "best_state": best_state,
                "history": [asdict(past) for past in history],
                "step": hooks.state(),
            }
        )

    if resumed is not None:
        try:
            module.load_state_dict(resumed["model"])
            optimizer.load_state_dict(resumed["optimizer"])
            best, best_state = resumed["best"], resumed["best_state"]
            history = [Epoch(**past) for past in resumed["history"]]
            hooks.load(resumed["step"])
        # whatever is wrong with it, the advice is the same
        except Exception as error:
            raise ModelError(
                "the interrupted run cannot go on",
                " ".join(f"its state is damaged: {type(error).__name__}: {error}".split())[:200],
                "start over with --restart",
            ) from error
    elif hooks.acceptable(0.0):
        best = score(module, task)
    if resumed is None and plan.epochs:
        save()  # what was done before the first epoch is not done again
    for epoch in range(len(history) + 1, plan.epochs + 1):
        started = time.monotonic()
        loss = _one_epoch(module, optimizer, task, plan, epoch)
        now = score(module, task)
        _refuse_divergence(now, epoch)
        if hooks.acceptable(epoch / plan.epochs) and now < best:
            best, best_state = now, copy.deepcopy(module.state_dict())
        lowest = min(now, *(past.score for past in history)) if history else now
        history.append(Epoch(epoch, loss, now, lowest, time.monotonic() - started))
        save()
        hooks.report(history[-1])
    module.load_state_dict(best_state)
    module.eval()
    return history


def _one_epoch(
    module: nn.Module, optimizer: torch.optim.Optimizer, task: Task, plan: Plan, epoch: int
) -> float:
    """Mean loss of the epoch."""
    module.train()
    if epoch > plan.settled * plan.epochs:
        keep_statistics(module)
    total = plan.epochs * task.steps
    running = 0.0
    for step, (x, target) in enumerate(task.batches(plan.first_epoch + epoch), (epoch - 1) * task.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * schedule(step / total)
        optimizer.zero_grad(set_to_none=True)
        loss = _loss(module, task, plan, x, target)
        running += loss.item()
        _refuse_divergence(running, epoch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        plan.hooks.after_step((step + 1) / total)
        plan.hooks.progress(epoch, step + 1 - (epoch - 1) * task.steps, task.steps)
    return running / task.steps


def _refuse_divergence(number: float, epoch: int) -> None:
    if not math.isfinite(number):
        raise ModelError(
            f"the loss became {number} in epoch {epoch}",
            "the training diverged, or the data or weights hold such numbers",
            "lower the learning rate, or look for damaged samples with `edgecsi data info`",
        )


@torch.no_grad()
def score(module: nn.Module, task: Task) -> float:
    """The network's score on held-out data, lower is better: NMSE in dB, or the bit error rate."""
    module.eval()
    return task.score(module)


def _loss(module: nn.Module, task: Task, plan: Plan, x: Tensor, target: Tensor) -> Tensor:
    if plan.teacher is None or plan.imitation == 0:
        return task.loss(module(x), target)
    share, teacher = plan.imitation, plan.teacher
    with torch.no_grad():
        wanted = teacher(x)
    output = module(x)
    return (1 - share) * task.loss(output, target) + share * _imitation(task, output, wanted)


def _imitation(task: Task, output: Tensor, wanted: Tensor) -> Tensor:
    """Distance from the teacher: as from the data for channels, cross-entropy of the bits for a detector
    (Hinton et al., arXiv 1503.02531)."""
    if isinstance(task, Reconstruction):
        return task.loss(output, wanted)
    return nn.functional.binary_cross_entropy_with_logits(output, wanted.sigmoid())


def schedule(done: float) -> float:
    """Learning rate as a share of the highest, at this share (0 to 1) of the training: linear warm-up, then
    half a cosine down to ``FINAL_LR``."""
    if done < WARM_UP:
        return (done + 1e-3) / (WARM_UP + 1e-3)
    angle = math.pi * (done - WARM_UP) / (1 - WARM_UP)
    return FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(angle)) / 2


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """SOAP (Vyas et al., arXiv 2409.11321): Adam in the eigenbases of the gradients.

    The few convolutions behind a dense layer are so ill-conditioned that Adam alone learns for hundreds of epochs
    and is not done.
    """
    from pytorch_optimizer import SOAP

    return SOAP(parameters, lr, weight_decay=0.0, max_precondition_dim=LARGEST_BASIS)


def keep_statistics(network: nn.Module) -> None:
    """Batch normalisation in it is what it will be in the end, an affine map: it learns, its statistics stay."""
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


@contextmanager
def frozen(network: nn.Module, layers: tuple[str, ...], error: type[EdgecsiError]) -> Iterator[None]:
    """The weights of some dense layers and convolutions (glob patterns) do not train meanwhile.

    Raises:
        EdgecsiError: of the kind asked for; a pattern matches no layer.
    """
    kinds = nn.Linear | nn.Conv2d
    found = {name: part.weight for name, part in network.named_modules() if isinstance(part, kinds)}
    for pattern in layers:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise error(
                "there is no layer to freeze",
                f"no dense layer or convolution is called like {pattern}",
                f"change freeze; the layers are {', '.join(found)}",
            )
    weights = [weight for name, weight in found.items() if any(fnmatchcase(name, glob) for glob in layers)]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def keep_freed_memory() -> None:
    """Have glibc keep freed buffers for the next step: giving them back costs a quarter of the time."""
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
    mallopt(m_mmap_threshold, 32 << 20)
    mallopt(m_trim_threshold, 512 << 20)
    mallopt(m_top_pad, 64 << 20)
