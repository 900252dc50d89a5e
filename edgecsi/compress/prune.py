"""Pruning: gradual, by magnitude or by its effect on the loss, in patterns that kernels can use.

The share of zeros grows with the cubic ramp of Zhu & Gupta (arXiv 1710.01878) while the network trains on;
what was pruned stays exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgecsi.compress.choose import dense_layers, say_left
from edgecsi.compress.recipe import Pattern, Prune, matches
from edgecsi.errors import ModelError, NoLayer, RecipeError

_FISHER_DECAY = 1e-3  # of the running mean of squared gradients, a step
_GRID = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # sparsities at which a layer's sensitivity is measured


def prunable(module: nn.Module, step: Prune, example: Tensor | None = None) -> dict[str, nn.Linear]:
    """The dense layers a step prunes, by name. If it names none, those that its pattern does not divide are left.

    Args:
        example: one input, to tell which layers the network calls; only these can be reconstructed.

    Raises:
        RecipeError: none, or the pattern does not divide a layer that is named; all such layers are named.
    """
    pattern = Pattern.parse(step.pattern)
    found = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and matches(name, step.layers, step.exclude)
    }
    if not found:
        raise NoLayer(
            "there is no layer to prune",
            f"no dense layer is called like {list(step.layers)} and not like {list(step.exclude)}",
            "change layers or exclude",
        )
    if step.criterion == "reconstruct" and example is not None:
        found = dense_layers(module, example, step.layers, step.exclude, "prune by reconstruction")
    undivided = {name: layer for name, layer in found.items() if _shape(pattern, layer.weight) is None}
    wrong = [f"{name} {list(layer.weight.shape)}" for name, layer in undivided.items()]
    if step.layers == ("*",) and len(wrong) < len(found):
        say_left(f"not pruned, as {step.pattern} does not divide them", dict(undivided))
        return {name: layer for name, layer in found.items() if name not in undivided}
    if wrong:
        raise RecipeError(
            f"{step.pattern} does not divide {', '.join(wrong)}",
            "blocks of outputs x inputs must fill a layer's weight [outputs, inputs]",
            "choose another pattern, or exclude these layers",
        )
    return found


def ramp(done: float, final: float, length: float) -> float:
    """Sparsity at the share `done` of the training: a cubic from 0, at `final` after the share `length`."""
    if length <= 0 or done >= length:
        return final
    return final * (1 - (1 - done / length) ** 3)


def mask(worth: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """Which weights stay: bool, of the shape of `worth` ``[O, I]``; the least worthy blocks are False."""
    if pattern.group:
        groups = worth.reshape(len(worth), -1, pattern.group)
        # on the way to N:M every group loses one weight after the other
        gone = min(round(sparsity * pattern.group), pattern.group - pattern.keep)
        keep = torch.ones_like(groups, dtype=torch.bool)
        if gone:
            keep.scatter_(-1, groups.topk(gone, -1, largest=False).indices, False)
        return keep.reshape(worth.shape)
    return _expand(_smallest(_blocks(worth, pattern), sparsity), worth.shape)


def global_masks(worth: Mapping[str, Tensor], pattern: Pattern, sparsity: float) -> dict[str, Tensor]:
    """Masks of several layers whose blocks are ranked together, by their worth per weight."""
    if pattern.group:
        return {name: mask(value, pattern, sparsity) for name, value in worth.items()}
    blocks = {name: _blocks(value, pattern) for name, value in worth.items()}
    size = {name: worth[name].numel() // blocks[name].numel() for name in worth}
    per_weight = torch.cat([blocks[name].flatten() / size[name] for name in worth])
    weights = torch.cat([torch.full((blocks[name].numel(),), float(size[name])) for name in worth])
    order = per_weight.argsort()
    gone = torch.zeros_like(per_weight, dtype=torch.bool)
    gone[order[weights[order].cumsum(0) <= sparsity * float(weights.sum()) + 0.5]] = True
    masks, start = {}, 0
    for name, value in blocks.items():
        keep = ~gone[start : start + value.numel()].reshape(value.shape)
        start += value.numel()
        if not keep.any():  # a layer is never emptied by its neighbours: its best block stays
            keep.view(-1)[value.argmax()] = True
        masks[name] = _expand(keep, worth[name].shape)
    return masks


class Pruner:
    """Holds the masks of a network and makes them grow.

    Args:
        module: changed in place by :meth:`apply`.
        step: what to do.
        score: of the network, lower is better; for ``scope = "sensitivity"`` only.
        example: one input, see :func:`prunable`.

    Raises:
        RecipeError: nothing to prune, or a pattern that does not fit.
        ModelError: the wanted sparsity would leave a layer without a weight.
    """

    def __init__(
        self,
        module: nn.Module,
        step: Prune,
        score: Callable[[nn.Module], float] | None = None,
        example: Tensor | None = None,
    ) -> None:
        self.step = step
        self.pattern = Pattern.parse(step.pattern)
        self.layers = prunable(module, step, example)
        self.masks = {name: layer.weight.detach() != 0 for name, layer in self.layers.items()}
        self.final = False  # the masks have reached the wanted sparsity and stay
        # running means of squared gradients
        watched = self.layers if step.criterion == "fisher" else {}
        self.fisher = {name: torch.zeros_like(layer.weight) for name, layer in watched.items()}
        self.shares = dict.fromkeys(self.layers, step.share)
        if step.scope == "sensitivity" and not self.pattern.group:
            assert score is not None
            self.shares = self._shares_by_sensitivity(module, score)
        for name, layer in self.layers.items():
            if (
                step.scope != "global"
                and not mask(layer.weight.detach().square(), self.pattern, self.shares[name]).any()
            ):
                raise ModelError(
                    f"{name} would lose all its weights",
                    f"at {self.shares[name]:.1%} of {step.pattern} not one block is left",
                    "prune less, in smaller blocks, or exclude the layer",
                )

    def observe(self) -> None:
        """See the gradients of a step."""
        for name, mean in self.fisher.items():
            gradient = self.layers[name].weight.grad
            if gradient is not None:  # of a layer that took part
                mean.lerp_(gradient.square(), _FISHER_DECAY)

    def update(self, done: float) -> None:
        """Bring the masks to where the ramp is at the share `done` of the training, and apply them."""
        worth = {}
        for name, layer in self.layers.items():
            worth[name] = layer.weight.detach().square()
            if self.fisher:
                worth[name] *= self.fisher[name]
            worth[name] *= self.masks[name]
        if self.step.scope == "global":
            self.masks = global_masks(worth, self.pattern, ramp(done, self.step.share, self.step.ramp))
        else:
            for name, value in worth.items():
                sparsity = ramp(done, self.shares[name], self.step.ramp)
                self.masks[name] = mask(value, self.pattern, sparsity)
        self.final = self.finished(done)
        self.apply()

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the masks that ``state()`` gave."""
        self.masks, self.final = dict(state["masks"]), bool(state["final"])
        self.fisher = dict(state["fisher"])

    def state(self) -> dict[str, Any]:
        """What must survive a restart."""
        return {"masks": dict(self.masks), "final": self.final, "fisher": dict(self.fisher)}

    @torch.no_grad()
    def apply(self) -> None:
        """Set what is pruned to exactly zero."""
        for name, layer in self.layers.items():
            layer.weight.mul_(self.masks[name])

    def finished(self, done: float) -> bool:
        """True once the masks grow no more."""
        return done >= self.step.ramp

    @torch.no_grad()
    def _shares_by_sensitivity(
        self, module: nn.Module, score: Callable[[nn.Module], float]
    ) -> dict[str, float]:
        """Sparsity of each layer at which the costs, measured one layer at a time, add up to least.

        Greedy: the layer whose next step of the grid costs least per weight goes on, until enough is gone.
        """
        before = score(module)
        costs: dict[str, list[float]] = {}
        for name, layer in self.layers.items():
            weight = layer.weight.clone()
            costs[name] = [0.0]
            for sparsity in _GRID:
                layer.weight.copy_(weight * mask(weight.square(), self.pattern, sparsity))
                costs[name].append(max(score(module) - before, costs[name][-1]))
            layer.weight.copy_(weight)
        grid = (0.0, *_GRID)
        size = {name: layer.weight.numel() for name, layer in self.layers.items()}
        level = dict.fromkeys(self.layers, 0)
        wanted = self.step.share * sum(size.values())

        def gone() -> float:
            return sum(size[name] * grid[level[name]] for name in level)

        def price(name: str) -> float:
            i = level[name]
            return (costs[name][i + 1] - costs[name][i]) / (size[name] * (grid[i + 1] - grid[i]))

        last = min(level)
        while gone() < wanted and (open_ := [name for name in level if level[name] < len(_GRID)]):
            last = min(open_, key=price)
            level[last] += 1
        shares = {name: grid[i] for name, i in level.items()}
        shares[last] = max(0.0, shares[last] - (gone() - wanted) / size[last])
        return shares


def _shape(pattern: Pattern, weight: Tensor) -> tuple[int, int] | None:
    """Block size on this weight, None if it does not divide it."""
    outputs, inputs = weight.shape
    if pattern.group:
        return (1, pattern.group) if inputs % pattern.group == 0 else None
    rows, columns = pattern.rows or outputs, pattern.columns or inputs
    return (rows, columns) if outputs % rows == 0 and inputs % columns == 0 else None


def _blocks(worth: Tensor, pattern: Pattern) -> Tensor:
    """Sum over every block."""
    size = _shape(pattern, worth)
    assert size is not None
    rows, columns = size
    if rows == columns == 1:
        return worth
    return worth.reshape(len(worth) // rows, rows, -1, columns).sum((1, 3))


def _expand(blocks: Tensor, shape: torch.Size) -> Tensor:
    rows, columns = shape[0] // blocks.shape[0], shape[1] // blocks.shape[1]
    return blocks.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def _smallest(blocks: Tensor, sparsity: float) -> Tensor:
    """Bool: all but the `sparsity` smallest blocks."""
    gone = round(sparsity * blocks.numel())
    keep = torch.ones(blocks.numel(), dtype=torch.bool)
    if gone:
        keep[blocks.flatten().topk(gone, largest=False, sorted=False).indices] = False
    return keep.reshape(blocks.shape)
