"""Quantisation: batch normalisation folded, ranges calibrated, layers replaced by their integer form.

Inputs of a CSI network lie around 0.5 with a deviation of a few hundredths. The error of an int8 weight times
0.5 would drown the signal, so such a constant is subtracted before quantising and its exact response goes
into the bias: for a padded convolution as a map, because the response differs at the border.

Further in, images are mostly background: large values that hardly differ from sample to sample. Rounding them
makes an error that hardly differs either, so it is measured and taken back through the bias (Nagel et al.,
arXiv 1906.04721), position by position where an image has so few channels that a map of it costs next to
nothing. And a trained dense layer has large weights on inputs that never vary, which rounding makes vary. So
each layer is fitted anew, by least squares, to give the fp32 network's output from the rounded input, and its
weights are rounded so that their errors cancel.

Three things make a step finer. The inputs of a dense layer behind an image differ in size by orders of magnitude, few
delay taps hold the energy: from each its mean is subtracted, they are multiplied with a gain each, and the weights
divided by it (Xiao et al., arXiv 2211.10438). The channels between two convolutions are brought to one range
(:func:`equalise`). And a layer may take its input in two planes of codes, `wide` in a recipe.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from edgecsi.compress.choose import left_in_fp32, say_left
from edgecsi.compress.quantize.fit import fit, importance
from edgecsi.compress.quantize.fold import equalise, fold_batch_norm
from edgecsi.compress.quantize.ranges import Input, calibrate, kinds_of, layers_of
from edgecsi.compress.quantize.rounded import Rounded
from edgecsi.compress.recipe import Quantize, matches
from edgecsi.compress.watch import Tell, in_order, say_nothing
from edgecsi.errors import DataError, Notice
from edgecsi.models.compressed.taken_apart import take_apart

_TRIED_SAMPLES = 128
_FEW_SAMPLES = 8


def quantize(
    module: nn.Module, step: Quantize, samples: Tensor | None, example: Tensor, tell: Tell = say_nothing
) -> nn.Module:
    """Replace the layers of a trained network by their integer form, in place, without training.

    Arguments and errors are those of :func:`start_rounding`.
    """
    start_rounding(module, step, samples, example, tell)
    finish_rounding(module)
    return module.eval()


@torch.no_grad()
def start_rounding(
    module: nn.Module, step: Quantize, samples: Tensor | None, example: Tensor, tell: Tell = say_nothing
) -> None:
    """Make the network compute with rounded weights and inputs, in place, as accurately as data allows.

    Args:
        samples: float32 ``[N, …]`` to find ranges and mean errors with; may be missing unless static.
        example: one input, to see the network's structure with. tell: told of every layer.

    Raises:
        RecipeError: nothing to quantise. DataError: static without samples, or with bad ones.
    """
    kept = [name for name, _ in module.named_modules() if matches(name, step.keep_fp32)]
    take_apart(module, example, kept, images=step.mode == "static")
    fold_batch_norm(module, example)
    if samples is None or len(samples) == 0:
        if step.mode == "static":
            raise DataError(
                "static quantisation needs calibration data",
                "the range of every layer's input is measured on it",
                "give --calib DATA, or use int8-dynamic",
            )
        for name, dense in layers_of(module, step, example).items():
            module.set_submodule(name, Rounded(dense, step, Input()))
        return
    samples = samples[: step.samples]
    if step.mode != "weights" and len(samples) < _FEW_SAMPLES:
        warnings.warn(
            Notice(
                f"layers are fitted to {len(samples)} sample(s) only; give some hundred (--calib, samples)"
            ),
            stacklevel=2,
        )
    if step.mode == "static":
        equalise(module, layers_of(module, step, example), samples[:_TRIED_SAMPLES])
    tell("measuring ranges", 0, 0)
    found = {} if step.mode == "weights" else calibrate(module, samples, step)
    reference = copy.deepcopy(module)
    layers = layers_of(module, step, example)
    # in the order of the network, so that a layer also makes up for what is left of the errors before it
    order = in_order(module, layers, samples[:1])
    weights = importance(reference, order, samples)
    for number, (name, shapes) in enumerate(order.items()):
        tell(f"rounding {name}", number, len(order))
        rounded = Rounded(layers[name], step, found.get(name, Input()), shapes)
        module.set_submodule(name, rounded)
        fit(rounded, reference.get_submodule(name), module, reference, samples, weights[name])
        if isinstance(rounded.layer, nn.Linear):
            rounded.chosen = None if step.epochs else rounded.chosen  # the weight is going to move
        else:
            # A convolution has so few weights that moving one by a step is felt: the codes that were chosen
            # together stay, and training fits the biases, the steps and the dense layers to them.
            rounded.layer.weight.requires_grad_(False)


@torch.no_grad()
def finish_rounding(module: nn.Module) -> None:
    """Replace what :func:`start_rounding` put in by integer layers, in place; what stays fp32 against the step's will
    is said."""
    step: Quantize | None = None
    for name, part in list(module.named_modules()):
        if isinstance(part, Rounded):
            step = part.step
            module.set_submodule(name, part.integer())
    if step is not None:
        say_left("stay in fp32", left_in_fp32(module, kinds_of(step), step.keep_fp32))
