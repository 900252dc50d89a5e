"""Recipes that need no training, as ``edgecsi build --recipe`` applies them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgecsi.channels.files import SAMPLE
from edgecsi.channels.shipped import test_set
from edgecsi.compress import recipe as recipes
from edgecsi.compress.halve import halve
from edgecsi.compress.loss import say_loss, unless_nothing_to_do
from edgecsi.compress.quantize import quantize
from edgecsi.compress.recipe import Halve, Quantize, Recipe
from edgecsi.errors import RecipeError
from edgecsi.models.compressed.taken_apart import in_parent
from edgecsi.models.rows import as_it_was, in_rows
from edgecsi.models.state import copy_of

if TYPE_CHECKING:
    from edgecsi.models.load import LoadedModel

_JUDGED_SAMPLES = 64


def compressed(model: LoadedModel, recipe: str | Path | Recipe, calib: str | None) -> LoadedModel:
    """A network with a recipe that needs no training applied, and the one before beside it; errors as for
    :func:`apply_post_training`.

    Args:
        calib: data to fit layers to, see :func:`edgecsi.channels.files.load`; of several inputs by their names.
    """
    from edgecsi.models.entries import entries_of

    rows, read = in_rows(model)
    try:
        calibration = torch.from_numpy(read(calib, None)) if calib else None
        module = as_it_was(apply_post_training(rows.module, rows.example_input, recipe, calibration))
    finally:
        as_it_was(rows.module)
    entries = entries_of(model.name, module, *model.inputs)
    fp32 = model.fp32 if "compression" in model.metadata else model.entries.get("full")
    return replace(model, module=module, entries=entries, fp32=fp32)


def apply_post_training(
    module: nn.Module, example_input: Tensor, recipe: str | Path | Recipe, calibration: Tensor | None = None
) -> nn.Module:
    """Apply a recipe that needs no training to a copy of a network, as ``edgecsi build --recipe`` does.

    Args:
        calibration: float32 ``[N, …]``, inputs to find ranges with; needed for static quantisation only.

    Returns:
        a new module in eval mode. The zeros of the weights are kept. A loss of more than 1 dB, on the calibration data
        or the channels that ship, is said (:class:`edgecsi.errors.Notice`).

    Raises:
        RecipeError: the recipe needs training. DataError: it needs calibration data.
    """
    chosen = recipe if isinstance(recipe, Recipe) else recipes.load(recipe)
    if not chosen.post_training:
        raise RecipeError(
            f"recipe {chosen.name} trains",
            "a build applies recipes that only quantise; training takes hours and data",
            f"edgecsi compress MODEL --recipe {chosen.name} --data DATA -o OUT.safetensors, then build OUT",
        )
    copied = in_parent(copy_of(module))
    inputs = calibration
    if inputs is None and tuple(example_input.shape[1:]) == SAMPLE:
        inputs = torch.from_numpy(test_set(_JUDGED_SAMPLES))
    for number, step in enumerate(chosen.steps):
        assert isinstance(step, Quantize | Halve)
        with unless_nothing_to_do(number, step.do, chosen.name):
            if isinstance(step, Halve):
                copied = halve(copied, step, example_input, inputs)
            else:
                copied = quantize(copied, step, calibration, example_input)
    if inputs is not None:
        say_loss(f"recipe {chosen.name}", module.eval(), copied, inputs[:_JUDGED_SAMPLES])
    return copied
