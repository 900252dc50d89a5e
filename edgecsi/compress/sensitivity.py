"""What each layer alone costs that a recipe changes, without training: where int8 or zeros hurt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from edgecsi.compress import recipe as recipes
from edgecsi.compress.codeword import change_codeword
from edgecsi.compress.halve import chosen as halved
from edgecsi.compress.halve import halve, prepare
from edgecsi.compress.prune import Pruner, global_masks, mask
from edgecsi.compress.quantize import quantize
from edgecsi.compress.quantize.ranges import layers_of
from edgecsi.compress.recipe import Halve, Pattern, Prune, Quantize, Recipe
from edgecsi.compress.reconstruct import FIT_SAMPLES, Reference, reconstruct
from edgecsi.compress.size import density
from edgecsi.errors import RecipeError
from edgecsi.models.rows import in_rows
from edgecsi.training.loop import score
from edgecsi.training.tasks import first_inputs, make_task


@dataclass(frozen=True)
class LayerCost:
    """What a step costs that is done to one layer alone: the network's score then, and that less the score
    of the network as it was; of a network that reconstructs nothing, the share of its answers' power that is wrong."""

    step: str
    layer: str
    score: float
    cost: float


@dataclass(frozen=True)
class LayerCosts:
    """The price of every layer that a recipe changes.

    Attributes:
        metric: ``nmse_db`` or ``ber``, on held-out data. before: its value for the network as it is.
        layers: worst first, step by step.
        budget: what all int8 layers together may cost: 0.3 dB, a tenth of the bit error rate, or a
            thousandth of the answers' power.
        keep_fp32: the fewest layers to keep, worst first, so that the costs of the others add up to less.
    """

    metric: str
    before: float
    layers: tuple[LayerCost, ...]
    budget: float
    keep_fp32: tuple[str, ...]


def layer_costs(
    model: str,
    recipe: str | Path | Recipe,
    data: str | Path,
    *,
    weights: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> LayerCosts:
    """What each layer costs that a recipe's ``prune``, ``quantize`` and ``halve`` steps change, one at a time, without
    training.

    Every layer is tried on the network as it was given, so the price of a ``quantize`` step is that of int8
    alone, whatever comes before it in the recipe.

    Args:
        progress: called with (done, wanted, what) while channels are generated and before every layer.

    Raises:
        RecipeError: the recipe neither prunes nor quantises. ModelError, DataError: as :func:`compress`.
    """
    from edgecsi.models.load import load_model

    def tell(done: int, total: int, what: str) -> None:
        if progress is not None:
            progress(done, total, what)

    chosen = recipe if isinstance(recipe, Recipe) else recipes.load(recipe)
    steps = [step for step in chosen.steps if isinstance(step, Prune | Quantize | Halve)]
    if not steps:
        raise RecipeError(
            f"recipe {chosen.name} neither prunes nor quantises",
            "sensitivity is the price of zeros or of fewer bits, layer by layer",
            "try int8-static",
        )
    loaded, read = in_rows(load_model(model, weights))
    generating = partial(tell, what=f"generating {data}")
    task = make_task(loaded, str(data), 100, seed, generating, read)

    def rate(module: nn.Module) -> float:
        return score(module, task)

    before = rate(loaded.module)
    found: list[LayerCost] = []
    for step in steps:
        samples = first_inputs(task, step.samples if isinstance(step, Quantize) else FIT_SAMPLES)
        if isinstance(step, Halve):
            changed = _changed_by_halving(loaded.module, step, loaded.example_input, samples)
        elif isinstance(step, Quantize):
            changed = _changed_by_int8(loaded.module, step, samples, loaded.example_input)
        else:
            changed = _changed_by_pruning(loaded.module, step, samples, rate)
        costs = []
        for number, (name, module) in enumerate(changed, 1):
            tell(number, 0, f"{step.do}: {name}")
            after = rate(module)
            cost = 10 ** (after / 10) if task.metric == "difference_db" else after - before
            costs.append(LayerCost(step.do, name, after, cost))
        found += sorted(costs, key=lambda cost: -cost.cost)
    budget = {"nmse_db": 0.3, "ber": before / 10}.get(task.metric, 1e-3)
    quantised = [cost for cost in found if cost.step == Quantize.do]
    kept = 0
    while sum(max(cost.cost, 0.0) for cost in quantised[kept:]) > budget:
        kept += 1
    return LayerCosts(
        task.metric, before, tuple(found), budget, tuple(cost.layer for cost in quantised[:kept])
    )


def _changed_by_int8(
    module: nn.Module, step: Quantize, samples: Tensor, example: Tensor
) -> Iterator[tuple[str, nn.Module]]:
    """(layer, copy of the network with this layer alone in int8)."""
    names = list(layers_of(module, step, example))
    for name in names:
        kept = (*step.keep_fp32, *(other for other in names if other != name))
        yield (
            name,
            quantize(copy.deepcopy(module), replace(step, keep_fp32=kept, epochs=0), samples, example),
        )


def _changed_by_halving(
    module: nn.Module, step: Halve, example: Tensor, samples: Tensor
) -> Iterator[tuple[str, nn.Module]]:
    """(layer, copy of the network with this layer alone in 16 bits)."""
    module = copy.deepcopy(module)
    prepare(module, step, example)
    for name in halved(module, step, example):
        yield name, halve(copy.deepcopy(module), replace(step, layers=(name,)), example, samples)


def _changed_by_pruning(
    module: nn.Module, step: Prune, samples: Tensor, rate: Callable[[nn.Module], float]
) -> Iterator[tuple[str, nn.Module]]:
    """(layer, copy of the network with this layer alone pruned as far as the step would)."""
    pattern = Pattern.parse(step.pattern)
    module = copy.deepcopy(module)
    change_codeword(module, step, samples)
    pruner = Pruner(module, step, rate, samples[:1])
    shares = pruner.shares
    if step.scope == "global" and step.criterion == "reconstruct" and not pattern.group:
        shares = Reference(module, pruner.layers, samples).share_out(pattern, step.share)
    elif step.scope == "global":
        worth = {name: layer.weight.detach().square() for name, layer in pruner.layers.items()}
        masks = global_masks(worth, pattern, step.share)
        shares = {name: 1 - density(kept) for name, kept in masks.items()}
    for name in pruner.layers:
        alone = copy.deepcopy(module)
        layer = alone.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        if step.criterion == "reconstruct":
            reconstruct(alone, {name: layer}, pattern, {name: shares[name]}, samples)
        with torch.no_grad():
            layer.weight.mul_(mask(layer.weight.square(), pattern, shares[name]))
        yield name, alone
