"""Recipes: what to do to a network, a small TOML file whose name says it all (``prune90-bsr16x1-int8``).

    description = "..."
    [[steps]]
    do = "prune"
    pattern = "bsr16x1"
    sparsity = 0.9

Steps run in order, each on the result of the one before. The fields of the classes below are the keys a step
may have (written with ``-`` for ``_``); any other key is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from edgecsi.errors import RecipeError, shown
from edgecsi.names import suggestion
from edgecsi.schema import Fraction, between, convert, decode_toml, read_bytes

_MAX_BYTES = 1 << 16
_MAX_STEPS = 20
_FIX = "correct the recipe"


Names = tuple[str, ...]
"""Of layers, as glob patterns."""
Epochs = Annotated[int, between(0, 100_000)]
Rate = Annotated[float, between(1e-8, 1.0)]


@dataclass(frozen=True)
class Pattern:
    """Which weights are zero together.

    ``rows`` x ``columns`` neighbouring outputs x inputs form a block; 0 means all of them. With ``group`` > 0
    it is N:M instead: of every ``group`` neighbouring inputs ``keep`` stay.
    """

    name: str
    rows: int = 1
    columns: int = 1
    keep: int = 0
    group: int = 0

    @staticmethod
    def parse(name: str) -> Pattern:
        """Read ``unstructured``, ``bsr16x4``, ``2:4``, ``rows`` or ``columns``.

        Raises:
            RecipeError: none of these.
        """
        if name in ("unstructured", "rows", "columns"):
            return Pattern(name, rows=0 if name == "columns" else 1, columns=0 if name == "rows" else 1)
        if (match := re.fullmatch(r"bsr(\d{1,4})x(\d{1,4})", name)) and min(map(int, match.groups())) > 0:
            return Pattern(name, int(match[1]), int(match[2]))
        if (match := re.fullmatch(r"(\d{1,2}):(\d{1,2})", name)) and 0 < int(match[1]) < int(match[2]):
            return Pattern(name, keep=int(match[1]), group=int(match[2]))
        raise RecipeError(
            f"there is no pattern {shown(name)}",
            "patterns are unstructured, rows, columns, bsr{ROWS}x{COLUMNS} and N:M with N < M",
            "for example bsr16x1 (16 neighbouring outputs, 1 input) or 2:4",
        )


@dataclass(frozen=True)
class Prune:
    """Set weights to zero, gradually, while the network trains on.

    Attributes:
        pattern: which weights go together, see :class:`Pattern`. With ``columns`` the neurons that only made pruned
            inputs go too.
        sparsity: share of the weights of the chosen layers that is zero in the end; N:M patterns state it
            themselves.
        scope: ``layer`` prunes every layer by that share; ``global`` ranks the blocks of all layers together;
            ``sensitivity`` measures what each layer costs and shares the zeros out so that the sum costs
            least.
        criterion: what a weight is worth: ``magnitude`` (w²); ``fisher`` (w²·E[g²], the increase of the loss
            to second order, from the optimiser's running mean of squared gradients); or ``reconstruct``: what
            the output loses when the weights that stay make up for it, found in closed form from data. Then
            there is no ramp: the network is pruned at once, and all epochs recover.
        layers: names of the layers to prune (glob patterns). exclude: and of those not to.
        epochs: training in total. ramp: share of it in which the zeros grow, by a cubic (Zhu & Gupta,
            arXiv 1710.01878); the rest recovers. lr: highest learning rate, decays by a cosine.
        rewind: begin again from the unpruned weights under the mask that was found, for as many epochs again
            (Renda et al., arXiv 2003.02389: ``learning-rate`` keeps the weights, ``weights`` does not).
        codeword: change the codeword first, without changing what the network computes: ``permute`` it, so
            that outputs with like weights share a block, ``rotate`` it to its principal components, or ``group``
            it: the entries of a block hold one part of the image, and have small weights elsewhere.
        teacher: weight of imitating the network the recipe began with (0 to 1).
    """

    do = "prune"
    pattern: str
    sparsity: Annotated[float, between(0.0, 0.999)] = 0.0
    scope: Literal["layer", "global", "sensitivity"] = "layer"
    criterion: Literal["magnitude", "fisher", "reconstruct"] = "magnitude"
    layers: Names = ("*",)
    exclude: Names = ()
    epochs: Epochs = 20
    ramp: Fraction = 0.6
    lr: Rate = 1e-3
    rewind: Literal["none", "learning-rate", "weights"] = "none"
    codeword: Literal["keep", "permute", "rotate", "group"] = "keep"
    teacher: Fraction = 0.0

    def explain(self) -> str:
        how = f"pattern {self.pattern}, scope {self.scope}, criterion {self.criterion}"
        return f"set {_percent(self.share)} of the weights to zero ({how}){_training(self.epochs, self.lr)}"

    @property
    def share(self) -> float:
        """Share of zeros in the end."""
        pattern = Pattern.parse(self.pattern)
        return 1 - pattern.keep / pattern.group if pattern.group else self.sparsity


@dataclass(frozen=True)
class Quantize:
    """Store weights, or compute altogether, in int8. Batch normalisation is folded first.

    Attributes:
        mode: ``static``: all convolutions and dense layers compute in int8, ranges come from calibration
            data; ``dynamic``: dense layers compute in int8, each sample has its own range; ``weights``: dense
            weights are int8, activations stay fp32.
        bits: of a weight, symmetric per output channel.
        calibration: how a static range follows from the data: ``minmax``, ``percentile`` (99.99 %), ``mse``
            (least squared error of the layer's input) or ``output`` (of the network's output). samples: how
            many.
        keep_fp32: layers to leave alone (glob patterns).
        dynamic: dense layers with a range for every sample all the same (glob patterns), in mode ``static``: where
            samples differ much, one range for all is coarse for most.
        wide: layers whose input keeps 11 to 14 bits, as two planes of int8 codes (glob patterns), for twice the
            multiplications; not those that `dynamic` names.
        codeword: ``mix`` it first with a random rotation that the decoder takes back, so that no weight and no entry
            stands out (Chee et al., arXiv 2307.13304). Pruned networks keep theirs; a build never does it.
        epochs: quantisation-aware training (straight-through gradients); 0 means after training, without.
        lr, teacher: as in :class:`Prune`.
    """

    do = "quantize"
    mode: Literal["static", "dynamic", "weights"] = "static"
    bits: Annotated[int, between(2, 8)] = 8
    calibration: Literal["minmax", "percentile", "mse", "output"] = "mse"
    samples: Annotated[int, between(1, 100000)] = 512
    keep_fp32: Names = ()
    dynamic: Names = ()
    wide: Names = ()
    codeword: Literal["keep", "mix"] = "keep"
    epochs: Epochs = 0
    lr: Rate = 1e-4
    teacher: Fraction = 0.0

    def explain(self) -> str:
        what = {
            "static": f"compute every layer in int8, ranges by {self.calibration} of {self.samples} samples",
            "dynamic": "int8 weights, activations of dense layers quantised sample by sample",
            "weights": "int8 weights of dense layers, fp32 activations",
        }[self.mode]
        bits = f", weights of {self.bits} bits" if self.bits != 8 else ""
        kept = f", but keep {', '.join(self.keep_fp32)}" if self.keep_fp32 else ""
        which = "every layer" if self.wide == ("*",) else ", ".join(self.wide)
        wide = f", the input of {which} as two planes of codes" if self.wide else ""
        own = f", a range for every sample into {', '.join(self.dynamic)}" if self.dynamic else ""
        return what + bits + wide + own + kept + _training(self.epochs, self.lr)


@dataclass(frozen=True)
class Cluster:
    """Let the weights of a dense layer share a few values: an index per weight and a table (k-means).

    Attributes:
        centroids: values per layer. Zeros stay zero, they are one of them. The two layers around a codeword have
            besides a scale for every input of the one, and for every output of the other.
        layers, exclude: as in :class:`Prune`. epochs, lr, teacher: training of the choice, the table and the scales.
    """

    do = "cluster"
    centroids: Literal[16, 32, 64, 256] = 16
    layers: Names = ("*",)
    exclude: Names = ()
    epochs: Epochs = 2
    lr: Rate = 1e-4
    teacher: Fraction = 0.0

    def explain(self) -> str:
        return f"give each dense layer {self.centroids} values to share{_training(self.epochs, self.lr)}"


@dataclass(frozen=True)
class LowRank:
    """Replace a dense layer by two thinner ones, which keep the principal components of its outputs on data.

    Attributes:
        energy: share of the energy of each layer's outputs to keep; layers that would not get smaller stay whole.
            budget: if above 0, instead the rank at which the two layers have this share of the weights.
        layers, exclude, epochs, lr, teacher: as in :class:`Prune`.
    """

    do = "low-rank"
    energy: Fraction = 0.99
    budget: Fraction = 0.0
    layers: Names = ("*",)
    exclude: Names = ()
    epochs: Epochs = 5
    lr: Rate = 5e-4
    teacher: Fraction = 0.0

    def explain(self) -> str:
        rank = (
            f"{_percent(self.budget)} of the weights"
            if self.budget
            else f"{_percent(self.energy)} of the energy of its outputs"
        )
        return f"factor each dense layer in two, keeping {rank}{_training(self.epochs, self.lr)}"


@dataclass(frozen=True)
class Distill:
    """Train on, imitating a teacher's output and codeword.

    Attributes:
        teacher_model: name or file of the teacher; empty means the network the recipe began with.
        teacher: weight of imitation, 1 means that the data's own target is ignored.
        freeze: layers whose weights stay as they are (glob patterns). A dense layer that knows its samples by heart
            gets worse on others; the rest of the network may still learn.
        epochs, lr: as in :class:`Prune`.
    """

    do = "distill"
    teacher_model: str = ""
    teacher: Fraction = 0.5
    freeze: Names = ()
    epochs: Annotated[int, between(1, 100000)] = 10
    lr: Rate = 1e-3

    def explain(self) -> str:
        frozen = f", without {', '.join(self.freeze)}" if self.freeze else ""
        return f"imitate {self.teacher_model or 'the network it began with'}{_training(self.epochs, self.lr)}{frozen}"


@dataclass(frozen=True)
class Halve:
    """Sixteen bits instead of thirty-two.

    Attributes:
        arithmetic: ``fp32``: the weights of dense layers are rounded to half precision, which halves their bytes.
            ``int16``: convolutions and dense layers compute in int16, with a range for every sample, and in sequences
            for every row (x86 only). Dense weights of which most are zero are rounded to half precision. ``f16``:
            convolutions and dense layers compute in half precision (ARM with FP16 arithmetic only).
        layers, exclude: as in :class:`Prune`.
    """

    do = "halve"
    arithmetic: Literal["fp32", "int16", "f16"] = "fp32"
    layers: Names = ("*",)
    exclude: Names = ()

    epochs = 0  # it never trains
    lr = teacher = 0.0

    def explain(self) -> str:
        if self.arithmetic == "int16":
            return "compute convolutions and dense layers in int16, without training"
        if self.arithmetic == "f16":
            return "compute convolutions and dense layers in half precision, without training"
        return "round the weights of dense layers to half precision, without training"


Step = Prune | Quantize | Cluster | LowRank | Distill | Halve
_KINDS: dict[str, type[Step]] = {
    kind.do: kind for kind in (Prune, Quantize, Cluster, LowRank, Distill, Halve)
}


@dataclass(frozen=True)
class Recipe:
    """A sequence of steps under a name; ``text`` is the TOML it was read from."""

    name: str
    description: str
    steps: tuple[Step, ...]
    text: str

    @cached_property
    def post_training(self) -> bool:
        """True if it needs no training, so that ``edgecsi build --recipe`` takes it."""
        return all(isinstance(step, Quantize | Halve) and step.epochs == 0 for step in self.steps)

    @property
    def needs_data(self) -> bool:
        """False if it can be carried out by the weights alone."""
        fixed = any(isinstance(step, Quantize) and step.mode == "static" for step in self.steps)
        return fixed or not self.post_training

    @property
    def example_target(self) -> str:
        """A target that computes in what the recipe asks for."""
        asked = {step.arithmetic for step in self.steps if isinstance(step, Halve)}
        return "host" if "int16" in asked else "rpi5" if "f16" in asked else "rpi4"

    def explain(self) -> list[str]:
        """One line a step, in plain words."""
        return [f"{number}. {step.do}: {step.explain()}" for number, step in enumerate(self.steps, 1)]


def list_recipes() -> list[str]:
    """Names of the recipes that come with edgecsi."""
    return sorted(file.name.removesuffix(".toml") for file in _shipped() if file.name.endswith(".toml"))


def load(name: str | Path) -> Recipe:
    """A recipe by name, or from a ``.toml`` file.

    Raises:
        RecipeError: there is none, or it is wrong; the message names the key.
    """
    text, path = str(name), Path(name)
    if text in (known := list_recipes()):
        return parse(resources.files("edgecsi").joinpath("recipes", f"{text}.toml").read_text("utf-8"), text)
    if path.suffix != ".toml":
        if (instead := text.lower().replace("bf16", "int16")) in known and instead != text:
            raise RecipeError(
                f"nothing is computed in bf16: there is no recipe {shown(text)}",
                "on x86 int16 is as fast, and has six binary digits more; ARM's boards compute in f16",
                f"take {instead}, or {instead.replace('int16', 'f16')} for a Raspberry Pi 5",
            )
        raise RecipeError(
            f"there is no recipe {shown(text)}",
            suggestion(text, known, f"there are {', '.join(known)}"),
            "see `edgecsi recipes`, or give a .toml file",
        )
    return _decode(read_bytes(path, error=RecipeError, max_bytes=_MAX_BYTES), path.stem)


def parse(text: str, name: str) -> Recipe:
    """A recipe from the text of its TOML file; raises :class:`RecipeError` as :func:`load`."""
    return _decode(text.encode(), name)


@dataclass(frozen=True)
class _File:
    """What stands in a recipe's file; what each step may say depends on what it does."""

    description: str = ""
    steps: tuple[dict[str, Any], ...] = ()


def _decode(data: bytes, name: str) -> Recipe:
    what = f"recipe {name}"
    file = decode_toml(data, _File, what=what, error=RecipeError, fix=_FIX, max_bytes=_MAX_BYTES)
    if not 1 <= len(file.steps) <= _MAX_STEPS:
        raise RecipeError(
            f"{what} has no steps to run" if not file.steps else f"{what} has {len(file.steps)} steps",
            f"it needs 1 to {_MAX_STEPS} tables [[steps]]",
            'add one, for example [[steps]] with do = "quantize"',
        )
    made = tuple(_step(f"{what}, step {number}", raw) for number, raw in enumerate(file.steps, 1))
    _check_order(name, made)
    return Recipe(name, file.description, made, data.decode())


def matches(name: str, layers: tuple[str, ...], exclude: tuple[str, ...] = ()) -> bool:
    """True if a layer's name is among ``layers`` and not among ``exclude`` (both glob patterns)."""
    return any(fnmatchcase(name, glob) for glob in layers) and not any(
        fnmatchcase(name, glob) for glob in exclude
    )


def _step(where: str, raw: dict[str, Any]) -> Step:
    kind = _KINDS.get(raw["do"]) if isinstance(raw.get("do"), str) else None
    if kind is None:
        raise RecipeError(
            f"{where}: do = {shown(raw.get('do'))}",
            f"a step does one of {', '.join(_KINDS)}",
            "choose one of them",
        )
    rest = {key: value for key, value in raw.items() if key != "do"}
    step: Step = convert(rest, kind, what=where, error=RecipeError, fix=_FIX, dashes=True)
    if isinstance(step, Quantize) and step.mode != "static":
        for key in ("wide", "dynamic"):
            if getattr(step, key):
                raise RecipeError(
                    f"{where}: {key} is for static quantisation",
                    f"mode is {step.mode!r}, in which convolutions stay fp32",
                    f"leave {key} out, or set mode to static",
                )
    if isinstance(step, Prune):
        pattern = Pattern.parse(step.pattern)
        if pattern.group and step.sparsity and abs(step.sparsity - step.share) > 1e-9:
            raise RecipeError(
                f"{where}: sparsity is {step.sparsity}",
                f"{step.pattern} means {step.share:g}",
                "leave it out",
            )
        if step.share == 0:
            raise RecipeError(
                f"{where}: sparsity is 0", "nothing would be pruned", "give a share such as 0.9"
            )
    return step


def _check_order(name: str, steps: tuple[Step, ...]) -> None:
    """Int8 and clustered layers are final: nothing can train behind them."""
    for before, after in pairwise(steps):
        if isinstance(before, Quantize) and not (isinstance(after, Quantize | Halve) and after.epochs == 0):
            raise RecipeError(
                f"recipe {name}: {after.do} comes after quantize",
                "int8 weights cannot be trained further",
                "quantise last; what one step keeps, another one without epochs may still quantise",
            )
        if (
            isinstance(before, Halve)
            and before.arithmetic != "fp32"
            and (after.epochs or isinstance(after, Prune))
        ):
            raise RecipeError(
                f"recipe {name}: {after.do} comes after halve",
                f"{before.arithmetic} weights cannot be trained further",
                "put it before halve",
            )
        if isinstance(before, Cluster) and not isinstance(after, Quantize | Halve):
            raise RecipeError(
                f"recipe {name}: {after.do} comes after cluster",
                "it would break up the shared values",
                "put it before cluster",
            )


def _shipped() -> Iterator[Any]:
    folder = resources.files("edgecsi").joinpath("recipes")
    yield from folder.iterdir() if folder.is_dir() else ()


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _training(epochs: int, lr: float) -> str:
    return f", in {epochs} epochs of training (learning rate {lr:g})" if epochs else ", without training"
