"""The zoo: every network edgecsi knows by name.

A name is a family and, for CSI networks, a compression ratio: ``csinet-cr4``, ``fullycon``. Listing names
imports no torch; making a network or counting its operations does.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecsi.errors import ModelError
from edgecsi.names import nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

RATIOS = (4, 8, 16, 32, 64)
CSI_SHAPE = (1, 2, 32, 32)
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Family:
    """Networks that differ only in their compression ratio; ``edgecsi.models.<name>.<name>`` makes them."""

    name: str
    description: str
    paper: str
    input_shape: tuple[int, ...] = CSI_SHAPE
    entries: tuple[str, ...] = ("encoder", "decoder", "full")
    ratios: tuple[int, ...] = RATIOS


@dataclass(frozen=True)
class ModelInfo:
    """What there is to know about a zoo network without making it.

    ``cr`` is the denominator of the compression ratio, None for a detector; ``input_shape`` has a batch of 1.
    """

    name: str
    family: str
    cr: int | None
    input_shape: tuple[int, ...]
    entries: tuple[str, ...]
    description: str
    paper: str

    @property
    def weights(self) -> Path | None:
        """The shipped weights, or None."""
        path = WEIGHTS / f"{self.name}.safetensors"
        return path if path.is_file() else None


@dataclass(frozen=True)
class EntryCost:
    """Work and size of one entry: multiply-accumulates of a batch of 1, and parameters."""

    macs: int
    parameters: int


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "csinet",
            "dense codeword, two RefineNets of 3×3 convolutions",
            "Wen, Shih, Jin 2018, arXiv 1712.08919",
        ),
        Family(
            "crnet",
            "dense codeword, multi-resolution convolutions up to 1×9 and 9×1",
            "Lu, Wang, Song 2020, arXiv 1910.14322",
        ),
        Family(
            "clnet",
            "complex input layer, spatial gate and squeeze-excite in the encoder, hard sigmoid",
            "Ji, Li 2021, arXiv 2102.07507",
        ),
        Family(
            "convcsinet",
            "no dense layer: convolutions with pooling down and upsampling up",
            "Cao, Shih, Guo, Wen, Jin 2021, arXiv 2005.00438",
        ),
        Family(
            "convsqucsinet",
            "ConvCsiNet with Fire modules in place of its 3×3 convolutions",
            "Guo, Wang, Wen, Jin, Li 2020, arXiv 1907.13269",
        ),
        Family(
            "fullycon",
            "MIMO detector, 20 BPSK users on 30 antennas, five dense layers",
            "Samuel, Diskin, Wiesel 2019, arXiv 1805.07631",
            input_shape=(1, 30),
            entries=("full",),
            ratios=(),
        ),
    )
}


def list_models() -> list[ModelInfo]:
    """Every network of the zoo, family by family."""
    return [_info(family, cr) for family in FAMILIES.values() for cr in family.ratios or (None,)]


def list_compressed() -> list[str]:
    """Names of the compressed networks that ship, a model and a recipe: ``csinet-cr4+int8-weights``."""
    return sorted(path.stem for path in WEIGHTS.glob("*+*.safetensors"))


def ships(name: str) -> bool:
    """Whether this names a network of the zoo, or a compressed one that ships; both are edgecsi's own."""
    return name in {info.name for info in list_models()} or name in list_compressed()


def find(name: str) -> ModelInfo:
    """The zoo network of this name.

    Raises:
        ModelError: there is none; the message suggests the nearest names.
    """
    models = {info.name: info for info in list_models()}
    if name in models:
        return models[name]
    near = nearest(name, [*models, *list_compressed()])
    raise ModelError(
        f"{name!r} is no model of the zoo",
        f"nearest: {', '.join(near)}" if near else f"families: {', '.join(FAMILIES)}",
        "see `edgecsi models`, or give FILE.py:factory, package:factory or FILE.safetensors",
    )


def create(name: str, /, **config: Any) -> nn.Module:
    """A zoo network with random weights, in eval mode.

    Args:
        name: ``csinet-cr4``, or a family with its configuration: ``create("csinet", cr=4)``.
        config: arguments of the family's function.

    Raises:
        ModelError: unknown name or configuration.
    """
    if name not in FAMILIES:
        info = find(name)
        name, own = info.family, {} if info.cr is None else {"cr": info.cr}
        config = {**own, **config}
    family = FAMILIES[name]
    make = getattr(importlib.import_module(f"edgecsi.models.{name}"), name)
    wanted = set(inspect.signature(make).parameters)
    if set(config) != wanted or ("cr" in wanted and config["cr"] not in family.ratios):
        raise ModelError(
            f"{name} cannot be configured with {config or 'nothing'}",
            f"it takes cr = {', '.join(map(str, family.ratios))}" if wanted else "it has no configuration",
            "see `edgecsi models`",
        )
    model: nn.Module = make(**config).eval()
    return model


def cost(module: nn.Module, example_input: Tensor) -> EntryCost:
    """Multiply-accumulates of convolutions, dense layers and matrix products, and the number of parameters.

    The network is run once; products hidden in functional calls (attention) are counted too.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(example_input)
    return EntryCost(counter.get_total_flops() // 2, sum(p.numel() for p in module.parameters()))


def _info(family: Family, cr: int | None) -> ModelInfo:
    name = family.name if cr is None else f"{family.name}-cr{cr}"
    return ModelInfo(
        name, family.name, cr, family.input_shape, family.entries, family.description, family.paper
    )
