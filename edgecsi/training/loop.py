"""The training loop that all compression steps share: deterministic, and resumable after every epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgecsi.errors import ModelError, RecipeError
from edgecsi.training.train import (
    Reconstruction,
    Task,
    keep_statistics,
    make_optimizer,
    schedule,
    weights_called,
)

State = dict[str, Any]
AfterStep = Callable[[float], None]


@dataclass
class Hooks:
    """What a step does to the loop.

    Attributes:
        after_step: called after every step of the optimiser with the share of the training that is done.
        acceptable: whether the network at this share may be the best one (a ramp still going on may not).
        state, load: what of the step must survive a restart, as tensors and plain numbers.
        save: called with everything that must survive, after every epoch.
        report: called after every epoch with (epoch, loss, score).
    """

    after_step: AfterStep = lambda done: None
    acceptable: Callable[[float], bool] = lambda done: True
    state: Callable[[], State] = dict
    load: Callable[[State], None] = lambda state: None
    save: Callable[[State], None] = lambda state: None
    report: Callable[[int, float, float], None] = lambda epoch, loss, score: None


@dataclass(frozen=True)
class Plan:
    """How long and how fast a step trains, and after whom.

    Attributes:
        epochs, lr: as in the recipe. first_epoch: where the order of the data goes on, so that no two phases
            of a run see the same order.
        teacher: network to imitate. imitation: weight of that, 0 to 1.
    """

    epochs: int
    lr: float
    first_epoch: int = 0
    teacher: nn.Module | None = None
    imitation: float = 0.0
    hooks: Hooks = field(default_factory=Hooks)


@contextmanager
def frozen(module: nn.Module, layers: tuple[str, ...]) -> Iterator[None]:
    """The weights of some layers (glob patterns) do not train meanwhile.

    Raises:
        RecipeError: there is no such layer.
    """
    weights = weights_called(module, layers, RecipeError)
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def fine_tune(module: nn.Module, task: Task, plan: Plan, resumed: State | None = None) -> float:
    """Train a network in place and leave its best acceptable weights in it.

    Args:
        resumed: what ``hooks.save`` was last given, to go on from there.

    Returns:
        the best score on held-out data.

    Raises:
        ModelError: the loss became NaN or infinite.
    """
    hooks = plan.hooks
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, plan.lr)
    best, best_state, done_epochs = math.inf, copy.deepcopy(module.state_dict()), 0
    if resumed is not None:
        module.load_state_dict(resumed["model"])
        optimizer.load_state_dict(resumed["optimizer"])
        best, best_state, done_epochs = resumed["best"], resumed["best_state"], resumed["epoch"]
        hooks.load(resumed["step"])
    elif hooks.acceptable(0.0):
        best = score(module, task)
    total = plan.epochs * task.steps
    for epoch in range(done_epochs + 1, plan.epochs + 1):
        module.train()
        keep_statistics(module)  # a network that is trained already has good ones
        running = 0.0
        batches = task.batches(plan.first_epoch + epoch)
        for step, (x, target) in enumerate(batches, (epoch - 1) * task.steps):
            for group in optimizer.param_groups:
                group["lr"] = plan.lr * schedule(step / total)
            optimizer.zero_grad(set_to_none=True)
            loss = _loss(module, task, plan, x, target)
            running += loss.item()
            if not math.isfinite(running):
                raise ModelError(
                    f"the loss became {running} in epoch {epoch}",
                    "the training diverged, or the data or weights hold such numbers",
                    "lower lr in the recipe; the last good state is kept",
                )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            hooks.after_step((step + 1) / total)
        current = score(module, task)
        if hooks.acceptable(epoch / plan.epochs) and current < best:
            best, best_state = current, copy.deepcopy(module.state_dict())
        hooks.save(
            {
                "epoch": epoch,
                "model": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "best": best,
                "best_state": best_state,
                "step": hooks.state(),
            }
        )
        hooks.report(epoch, running / task.steps, current)
    module.load_state_dict(best_state)
    module.eval()
    return best


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
