"""A network from whatever MODEL says, split into the entries that can be compiled."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecsi import file_kinds
from edgecsi.errors import ModelError
from edgecsi.models import factories, registry
from edgecsi.models.checkpoint_files import read_metadata, read_state
from edgecsi.models.checkpoints import check_module, load_weights, sha256
from edgecsi.models.entries import Part, entries_of, runs

if TYPE_CHECKING:
    from torch import Tensor, nn

_MAX_INPUT = 1 << 24


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to be compiled or compressed.

    ``sha256`` is that of the checkpoint, None if the weights came from no file; ``metadata`` is what a
    ``.safetensors`` says about itself (model, config, command, seed, data, NMSE, versions). ``fp32`` is the whole
    network before it was compressed, None if it was not, or if its weights are not at hand.
    """

    name: str
    module: nn.Module
    example_input: Tensor
    entries: dict[str, Part]
    more_inputs: tuple[Tensor, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    sha256: str | None = None
    fp32: Part | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Examples of all its inputs."""
        return (self.example_input, *self.more_inputs)

    @property
    def recipe(self) -> str | None:
        """What its file says it was compressed by, None if it was not."""
        found = json.loads(self.metadata.get("compression", "{}")).get("recipe")
        return found if isinstance(found, str) else None


def load_model(
    spec: str,
    weights: str | None = None,
    input_shape: Sequence[int] | None = None,
    *,
    allow_random: bool = False,
) -> LoadedModel:
    """Find, make and check a network.

    Args:
        spec: a zoo name, one with a recipe whose result ships (``csinet-cr4+int8-static``),
            ``package.module:factory``, ``path/file.py:factory``, or a ``.safetensors`` file that names its
            model. A factory returns a module, ``(module, example_input)``, ``(module, (input, input, …))``, or
            ``(module, {name: input})``; it is the user's own code and is executed.
            Its arguments, if it wants any, are literals: ``file.py:make(cr=4)``.
        weights: file to take the weights from, or ``encoder.pth,decoder.pth``.
        input_shape: shape of the input with its batch; needed if neither zoo nor factory tells. An example that has
            this shape is kept, for it knows the type, and the inputs beside it.
        allow_random: give a zoo network without weights seeded random ones (tests and latency only).

    Returns:
        the network in eval mode, with entries ``encoder``, ``decoder`` and ``full`` if it has ``encoder`` and
        ``decoder`` children or ``encode`` and ``decode`` methods, else ``full`` alone.

    Raises:
        ModelError: nothing of that name, a factory that fails, weights that do not fit, or a network that
            does not run.
    """
    from edgecsi.models.parametrised import make_plain
    from edgecsi.models.state import as_pytorch_means_it, copy_of, keep_tensors_only

    files = [Path(part) for part in weights.split(",")] if weights else []
    name, module, examples, family, own_weights = _make(spec, has_weights=bool(weights))
    as_pytorch_means_it(
        module, examples or ((_example(input_shape),) if input_shape is not None else ()), name
    )
    keep_tensors_only(module, name)
    files = files or own_weights
    metadata: dict[str, str] = {}
    before: nn.Module | None = None
    if files:
        given = module
        module, metadata = _with_weights(copy_of(module), files, family)
        before = _before_compression(given, name, family, metadata)
    elif family is not None:
        if not allow_random:
            raise ModelError(
                f"{name} ships without weights",
                "an untrained network answers nonsense",
                f"train it (`edgecsi train {name} --data …`) and give the file, or pass --weights FILE",
            )
        _randomise(module)
    make_plain(module.eval())
    if "compression" not in metadata:
        check_module(module, name)
    if input_shape is not None and (not examples or examples[0].shape != tuple(input_shape)):
        if len(examples) > 1:
            raise ModelError(
                f"{name} takes {len(examples)} inputs, and --input-shape is that of one",
                f"its example inputs are {', '.join(str(list(x.shape)) for x in examples)}",
                "return others from the factory",
            )
        examples = (_example(input_shape),)
    if not examples:
        raise ModelError(
            f"the input of {name} is not known",
            "the factory returned a module without an example input",
            "pass --input-shape, for instance 1,2,32,32, or return (module, example_input)",
        )
    if not runs(module, examples):
        module.float()  # saved in half or double precision; one that runs as it is stays as it is
    return LoadedModel(
        name=name,
        module=module,
        example_input=examples[0],
        entries=entries_of(name, module, *examples),
        more_inputs=examples[1:],
        metadata=metadata,
        sha256=sha256(files) if files else None,
        fp32=entries_of(name, before, *examples)["full"] if before is not None else None,
    )


def _before_compression(
    made: nn.Module, name: str, family: str | None, metadata: Mapping[str, str]
) -> nn.Module | None:
    """The network that a compressed one was made from; None if nothing was compressed, or its weights are others than
    those that ship or that the factory gives.

    Args:
        made: as zoo or factory make it. metadata: of the file of weights.
    """
    if "compression" not in metadata:
        return None
    source = json.loads(metadata["compression"]).get("weights_sha256")
    if family is not None:
        shipped = registry.find(name).weights if name not in registry.FAMILIES else None
        if shipped is None or source != sha256([shipped]):
            return None
        load_weights(made, [shipped], family=family)
    elif source is not None:
        return None
    return made.eval()


def _make(spec: str, has_weights: bool) -> tuple[str, nn.Module, tuple[Tensor, ...], str | None, list[Path]]:
    """(name, module, example inputs, zoo family, files of its own weights)."""
    if "+" in spec and (variant := registry.WEIGHTS / f"{spec}.safetensors").is_file():
        spec = str(variant)  # a compressed network that ships: model+recipe
    if spec.endswith(".safetensors"):
        path = Path(spec)
        name, config = _recorded_model(path)
        return (*_from_zoo(name, config), [path])
    if spec.endswith(".py"):
        names = factories.factories_in(Path(spec))
        raise ModelError(
            f"{spec} is a file; which of its functions makes the network?",
            f"it has {', '.join(names) or 'none'}",
            f"give {spec}:{names[0] if names else 'make'}",
        )
    if ":" in spec:
        name, module, examples = factories.make(spec)
        compiled = dict(module.named_children()).get("_orig_mod")  # what torch.compile wraps
        return name, compiled or module, examples, None, []
    if Path(spec).is_file():
        raise ModelError(
            f"{spec} is {file_kinds.describe(Path(spec)) or 'a file'}, and no network",
            "weights go into a network, which is code: a function of a Python file, or a name of the zoo",
            f"give FILE.py:factory --weights {shlex.quote(spec)}, or FILE.safetensors that compress or train wrote",
        )
    shipped = registry.find(spec).weights
    return (*_from_zoo(spec, {}), [shipped] if shipped and not has_weights else [])


def _with_weights(
    module: nn.Module, files: list[Path], family: str | None
) -> tuple[nn.Module, dict[str, str]]:
    """The network with the weights of its files; a compressed file also says how the layers changed."""
    if len(files) == 1 and files[0].suffix == ".safetensors" and "compression" in read_metadata(files[0]):
        from edgecsi.models.compressed.store import rebuild
        from edgecsi.models.parametrised import make_plain

        make_plain(module.eval())
        state, metadata = read_state(files[0], sum(value.numel() for value in module.state_dict().values()))
        return rebuild(module, metadata, state), metadata
    return module, load_weights(module, files, family=family)


def _recorded_model(path: Path) -> tuple[str, dict[str, Any]]:
    metadata = read_metadata(path)
    if "model" not in metadata:
        raise ModelError(
            f"{path} does not say which model it belongs to",
            "its metadata has no 'model'; it was not written by edgecsi train or compress",
            f"name the model and pass the file as weights: MODEL --weights {path}",
        )
    try:
        config = json.loads(metadata.get("config", "{}"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is damaged", "its 'config' is no JSON table", "train or compress again")
    if ":" in metadata["model"]:  # a file may be a stranger's: it makes nobody run code
        raise ModelError(
            f"{path} was made from {metadata['model']}",
            "that is code, and runs only if you name it",
            f"give {shlex.quote(metadata['model'])} --weights {shlex.quote(str(path))} instead of the file",
        )
    return metadata["model"], config


def _from_zoo(name: str, config: dict[str, Any]) -> tuple[str, nn.Module, tuple[Tensor, ...], str]:
    family = registry.FAMILIES.get(name) or registry.FAMILIES[registry.find(name).family]
    return name, registry.create(name, **config), (_example(family.input_shape),), family.name


def _example(shape: Sequence[int]) -> Tensor:
    """An input that looks like CSI: 0.5 with the spread of real channels. Always the same."""
    import torch

    if not shape or any(n < 1 for n in shape) or math.prod(shape) > _MAX_INPUT:
        raise ModelError(
            f"input shape {list(shape)} is not possible",
            f"every dimension is at least 1, and all together at most {_MAX_INPUT:,} numbers",
            "pass for instance --input-shape 1,2,32,32",
        )
    generator = torch.Generator().manual_seed(0)
    return 0.5 + 0.025 * torch.randn(tuple(shape), generator=generator)


def _randomise(module: nn.Module) -> None:
    """Seeded weights, and normalisations that are not the identity, so that mistakes in folding them show."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (part.weight, 0.5, 1.5),
                    (part.bias, -0.1, 0.1),
                    (part.running_mean, -0.1, 0.1),
                    (part.running_var, 0.5, 1.5),
                ):
                    assert tensor is not None
                    tensor.uniform_(low, high, generator=generator)
            elif isinstance(part, torch.nn.Linear | torch.nn.Conv2d):
                bound = math.sqrt(3 / part.weight[0].numel())
                part.weight.uniform_(-bound, bound, generator=generator)
                if part.bias is not None:
                    part.bias.uniform_(-0.1, 0.1, generator=generator)
