"""Compress a network by a recipe: every step in order, resumable, one file in the end."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgecsi.channels.files import SAMPLE
from edgecsi.compress import recipe as recipes
from edgecsi.compress.cluster import finish_sharing, start_sharing
from edgecsi.compress.low_rank import factor_layers
from edgecsi.compress.prune import Pruner, global_masks, mask, permute_codeword
from edgecsi.compress.quantize import finish_rounding, layers_of, quantize, start_rounding
from edgecsi.compress.recipe import Cluster, Distill, LowRank, Pattern, Prune, Quantize, Recipe, Step
from edgecsi.compress.reconstruct import (
    Reference,
    drop_unread,
    group_codeword,
    mix_unless_pruned,
    reconstruct,
    rotate_codeword,
)
from edgecsi.compress.size import density, stored_bytes
from edgecsi.errors import DataError, ModelError, RecipeError
from edgecsi.models.compressed.store import rebuild, structure
from edgecsi.training.loop import Hooks, Plan, State, fine_tune, frozen, score
from edgecsi.training.train import Task, keep_freed_memory, make_task

_DETECTOR_INPUT = (30,)
_FIT_SAMPLES = 10_000  # to prune by reconstruction with; of a long codeword, fewer tell too little
_MASK_EVERY = 20  # steps between two updates of the masks


@dataclass(frozen=True)
class Progress:
    """Where a run is. ``score`` is the NMSE in dB or the bit error rate; epoch 0 is the end of a step."""

    step: int
    steps: int
    kind: str
    epoch: int
    epochs: int
    loss: float
    score: float


@dataclass(frozen=True)
class StepResult:
    """A step and the score behind it."""

    kind: str
    score: float


@dataclass(frozen=True)
class CompressResult:
    """What came out.

    Attributes:
        path: the ``.safetensors`` file.
        metric: ``nmse_db`` or ``ber``, on held-out data. before, after: its value.
        bytes_before, bytes_after: stored bytes of the weights, see
            :func:`edgecsi.compress.size.stored_bytes`.
        steps: score behind every step. density: share of non-zero weights, by dense layer.
        figures: on the test set, see :meth:`edgecsi.training.train.Task.report`.
    """

    path: Path
    metric: str
    before: float
    after: float
    bytes_before: int
    bytes_after: int
    steps: tuple[StepResult, ...]
    density: dict[str, float]
    figures: dict[str, Any]


def compress(
    model: str,
    recipe: str | Path | Recipe,
    data: str | Path,
    out: str | Path,
    *,
    weights: str | None = None,
    seed: int = 0,
    batch: int = 100,
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    data_progress: Callable[[int, int], None] | None = None,
) -> CompressResult:
    """Compress a network and write it as a ``.safetensors`` file that ``edgecsi build`` takes.

    A run that was killed goes on where it was and ends with the same file.

    Args:
        model: as MODEL everywhere: zoo name, factory, or ``.safetensors``. weights: replace its weights.
        recipe: name, ``.toml`` file, or a parsed one.
        data: channels (file or spec, see :func:`edgecsi.channels.files.load`), a tenth of which is held out;
            for ``fullycon`` ``mimo:N``, N transmissions an epoch.
        out: file to write, ending in ``.safetensors``.
        seed: of the order of the data. batch: samples per step of the optimiser.
        resume: go on with an interrupted run instead of starting over.
        progress: called after every epoch and every step.
        data_progress: called with (done, wanted) while channels are generated.

    Raises:
        RecipeError, ModelError, DataError: see their text. Nothing is written then, but the state to resume
            from.
    """
    from edgecsi.models.checkpoints import write_weights
    from edgecsi.models.load import load_model

    chosen = recipe if isinstance(recipe, Recipe) else recipes.load(recipe)
    out = Path(out)
    if out.suffix != ".safetensors":
        raise RecipeError(f"{out} is no .safetensors file", "that is what is written", "name it so")
    loaded = load_model(model, weights)
    _check_input(loaded.example_input)
    task = make_task(_family(loaded.example_input), str(data), batch, seed, data_progress)
    settings = {
        "model": model,
        "weights": loaded.sha256,
        "recipe": chosen.text,
        "data": str(data),
        "seed": seed,
        "batch": batch,
    }
    keep_freed_memory()
    run = _Run(
        loaded.module, loaded.example_input, chosen, task, out.with_suffix(".resume"), settings, progress
    )
    before = score(run.module, task)
    bytes_before = stored_bytes(run.module)
    history = run.all_steps(resume)
    after = history[-1].score
    earlier = (
        json.loads(loaded.metadata["compression"])["structure"] if "compression" in loaded.metadata else []
    )
    with torch.no_grad():
        figures = task.report(run.module)
    report = {
        "recipe": chosen.name,
        "recipe_text": chosen.text,
        "structure": [*earlier, *structure(run.module, run.started)],
        "data": str(data),
        "seed": seed,
        "metric": task.metric,
        "before": before,
        "after": after,
        "steps": [asdict(entry) for entry in history],
        "bytes_before": bytes_before,
        "bytes_after": stored_bytes(run.module),
        "weights_sha256": loaded.sha256,
        **figures,
    }
    metadata = {
        "model": loaded.metadata.get("model", model),
        "config": loaded.metadata.get("config", "{}"),
        "compression": json.dumps(report, sort_keys=True),
        "versions": json.dumps({"edgecsi": version("edgecsi"), "torch": torch.__version__}),
    }
    _write_beside(out, lambda path: write_weights(path, run.module.state_dict(), metadata))
    run.state_file.unlink(missing_ok=True)
    return CompressResult(
        path=out,
        metric=task.metric,
        before=before,
        after=after,
        bytes_before=bytes_before,
        bytes_after=stored_bytes(run.module),
        steps=tuple(history),
        density=densities(run.module),
        figures=figures,
    )


def apply_post_training(
    module: nn.Module, example_input: Tensor, recipe: str | Path | Recipe, calibration: Tensor | None = None
) -> nn.Module:
    """Apply a recipe that needs no training to a copy of a network, as ``edgecsi build --recipe`` does.

    Args:
        calibration: float32 ``[N, …]``, inputs to find ranges with; needed for static quantisation only.

    Returns:
        a new module in eval mode. The zeros of the weights are kept.

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
    copied = copy.deepcopy(module)
    if isinstance(copied, nn.Conv2d | nn.Linear):
        copied = nn.Sequential(copied)  # layers are replaced in their parent
    for step in chosen.steps:
        assert isinstance(step, Quantize)
        copied = quantize(copied, step, calibration, example_input)
    return copied


@dataclass(frozen=True)
class LayerCost:
    """What a step costs that is done to one layer alone: the network's score then, and that less the score
    of the network as it was."""

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
        budget: what all int8 layers together may cost: 0.3 dB, or a tenth of the bit error rate.
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
    """What each layer costs that a recipe's ``prune`` and ``quantize`` steps change, one at a time, without training.

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
    steps = [step for step in chosen.steps if isinstance(step, Prune | Quantize)]
    if not steps:
        raise RecipeError(
            f"recipe {chosen.name} neither prunes nor quantises",
            "sensitivity is the price of zeros or of int8, layer by layer",
            "try int8-static",
        )
    loaded = load_model(model, weights)
    _check_input(loaded.example_input)
    generating = partial(tell, what=f"generating {data}")
    task = make_task(_family(loaded.example_input), str(data), 100, seed, generating)

    def rate(module: nn.Module) -> float:
        return score(module, task)

    before = rate(loaded.module)
    found: list[LayerCost] = []
    for step in steps:
        samples = _first_inputs(task, step.samples if isinstance(step, Quantize) else _FIT_SAMPLES)
        if isinstance(step, Quantize):
            changed = _changed_by_int8(loaded.module, step, samples, loaded.example_input)
        else:
            changed = _changed_by_pruning(loaded.module, step, samples, rate)
        costs = []
        for number, (name, module) in enumerate(changed, 1):
            tell(number, 0, f"{step.do}: {name}")
            after = rate(module)
            costs.append(LayerCost(step.do, name, after, after - before))
        found += sorted(costs, key=lambda cost: -cost.cost)
    budget = 0.3 if task.metric == "nmse_db" else before / 10
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
    names = list(layers_of(module, step))
    for name in names:
        kept = (*step.keep_fp32, *(other for other in names if other != name))
        yield (
            name,
            quantize(copy.deepcopy(module), replace(step, keep_fp32=kept, epochs=0), samples, example),
        )


def _changed_by_pruning(
    module: nn.Module, step: Prune, samples: Tensor, rate: Callable[[nn.Module], float]
) -> Iterator[tuple[str, nn.Module]]:
    """(layer, copy of the network with this layer alone pruned as far as the step would)."""
    pattern = Pattern.parse(step.pattern)
    module = copy.deepcopy(module)
    _change_codeword(module, step, samples)
    pruner = Pruner(module, step, rate)
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


def _first_inputs(task: Task, count: int) -> Tensor:
    """Training inputs, float32 ``[≤ count, …]``."""
    parts: list[Tensor] = []
    for x, _ in task.batches(0):
        parts.append(x)
        if sum(map(len, parts)) >= count:
            break
    return torch.cat(parts)[:count]


def _check_input(example: Tensor) -> None:
    """Only what the tasks know how to teach can be trained."""
    if tuple(example.shape[1:]) not in (SAMPLE, _DETECTOR_INPUT):
        raise DataError(
            f"the network takes inputs of shape {list(example.shape)}",
            f"training compares its output with channels of shape {list(SAMPLE)}",
            "post-training recipes work for any network: edgecsi build --recipe int8-dynamic",
        )


def _family(example: Tensor) -> str:
    return "fullycon" if tuple(example.shape[1:]) == _DETECTOR_INPUT else "csi"


def densities(module: nn.Module) -> dict[str, float]:
    """Share of non-zero weights of every dense layer, by name."""
    found = {}
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if hasattr(part, "index") and hasattr(part, "table"):
            weight = part.table[part.index.long()]
        if isinstance(weight, Tensor) and weight.ndim == 2:
            found[name] = density(weight)
    return found


class _Run:
    """One run of a recipe: the network as it is now, and what must survive a restart."""

    def __init__(
        self,
        module: nn.Module,
        example: Tensor,
        recipe: Recipe,
        task: Task,
        state_file: Path,
        settings: dict[str, Any],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.module, self.example, self.recipe, self.task = module, example, recipe, task
        self.started = copy.deepcopy(module)
        self.state_file, self.settings, self.progress = state_file, settings, progress
        self._history: list[StepResult] = []
        self._epochs_before = 0
        self._at_start: State = {}

    def all_steps(self, resume: bool) -> list[StepResult]:
        running = self._load() if resume else None
        for number in range(len(self._history), len(self.recipe.steps)):
            step = self.recipe.steps[number]
            self._at_start = {
                "structure": json.dumps(structure(self.module, self.started)),
                "tensors": {key: value.clone() for key, value in self.module.state_dict().items()},
                "history": [asdict(entry) for entry in self._history],
                "epochs": self._epochs_before,
            }
            self._run(step, running)
            running = None
            result = score(self.module, self.task)
            self._history.append(StepResult(step.do, result))
            self._report(step, 0, math.nan, result)
        return self._history

    def _run(self, step: Step, running: State | None) -> None:
        if isinstance(step, Prune):
            self._prune(step, running)
            if step.pattern == "columns":
                drop_unread(self.module, self._samples(_FIT_SAMPLES))
        elif isinstance(step, Quantize):
            if step.codeword == "mix":
                mix_unless_pruned(self.module, self._samples(_FIT_SAMPLES))
            if step.epochs == 0:
                quantize(self.module, step, self._samples(step.samples), self.example)
                return
            start_rounding(self.module, step, self._samples(step.samples), self.example)
            self._train(step, self._keep_zeros(), running)
            finish_rounding(self.module)
        elif isinstance(step, Cluster):
            start_sharing(self.module, step, self._samples(_FIT_SAMPLES))
            self._train(step, Hooks(), running)
            finish_sharing(self.module)
        elif isinstance(step, LowRank):
            factor_layers(self.module, step)
            self._train(step, Hooks(), running)
        else:
            with frozen(self.module, step.freeze):
                self._train(step, self._keep_zeros(), running)

    def _prune(self, step: Prune, running: State | None) -> None:
        pattern = Pattern.parse(step.pattern)
        samples = (
            self._samples(_FIT_SAMPLES)
            if "reconstruct" in step.criterion or step.codeword in ("rotate", "group")
            else None
        )
        _change_codeword(self.module, step, samples)
        total = step.epochs * self.task.steps
        unpruned = copy.deepcopy(self.module.state_dict())
        pruner = Pruner(self.module, step, lambda module: score(module, self.task))
        if step.criterion == "reconstruct":
            assert samples is not None
            shares = step.share if step.scope == "global" and not pattern.group else pruner.shares
            pruner.masks = reconstruct(self.module, pruner.layers, pattern, shares, samples)
            pruner.final = True
            pruner.apply()

        def after_step(done: float) -> None:
            pruner.observe()
            if not pruner.final and (round(done * total) % _MASK_EVERY == 0 or pruner.finished(done)):
                pruner.update(done)
            else:
                pruner.apply()

        hooks = Hooks(
            after_step=after_step,
            acceptable=lambda done: pruner.final,
            state=pruner.state,
            load=pruner.load,
        )
        rewound = running is not None and running["phase"] == 1
        if not rewound:
            self._train(step, hooks, running)
            if not pruner.final:
                pruner.update(1.0)
        if step.rewind == "none":
            return
        if rewound:
            assert running is not None
            pruner.load(running["running"]["step"])
        elif step.rewind == "weights":
            self.module.load_state_dict(unpruned)
            pruner.apply()
        hooks.acceptable = lambda done: True
        hooks.after_step = lambda done: pruner.apply()
        self._train(step, hooks, running if rewound else None, phase=1)

    def _train(self, step: Step, hooks: Hooks, running: State | None, phase: int = 0) -> None:
        if step.epochs == 0:
            return
        # every (step, phase) has its own stretch of epochs, and so its own order of the data
        first = self._epochs_before + phase * step.epochs
        hooks.save = lambda state: self._save({"phase": phase, "running": state})
        hooks.report = lambda epoch, loss, now: self._report(step, epoch + phase * step.epochs, loss, now)
        plan = Plan(step.epochs, step.lr, first, self._teacher(step), step.teacher, hooks)
        fine_tune(self.module, self.task, plan, running["running"] if running else None)
        if phase == (1 if isinstance(step, Prune) and step.rewind != "none" else 0):
            self._epochs_before = first + step.epochs

    def _keep_zeros(self) -> Hooks:
        """What earlier steps pruned stays zero."""
        masks = [
            (parameter, parameter.detach() != 0)
            for parameter in self.module.parameters()
            if parameter.ndim == 2 and bool((parameter == 0).any())
        ]

        @torch.no_grad()
        def after_step(done: float) -> None:
            for parameter, kept in masks:
                parameter.mul_(kept)

        return Hooks(after_step=after_step)

    def _teacher(self, step: Step) -> nn.Module | None:
        from edgecsi.models.load import load_model

        if step.teacher == 0:
            return None
        if isinstance(step, Distill) and step.teacher_model:
            return load_model(step.teacher_model).module.eval()
        return self.started.eval()

    def _samples(self, count: int) -> Tensor:
        return _first_inputs(self.task, count)

    def _report(self, step: Step, epoch: int, loss: float, now: float) -> None:
        if self.progress is not None:
            phases = 2 if isinstance(step, Prune) and step.rewind != "none" else 1
            number = self.recipe.steps.index(step) + 1
            self.progress(
                Progress(number, len(self.recipe.steps), step.do, epoch, phases * step.epochs, loss, now)
            )

    def _save(self, running: State) -> None:
        state = {"settings": self.settings, "start": self._at_start, **running}
        _write_beside(self.state_file, lambda path: torch.save(state, path))

    def _load(self) -> State | None:
        if not self.state_file.exists():
            return None
        try:
            state: State = torch.load(self.state_file, weights_only=True)
            settings, start = state["settings"], state["start"]
        # torch raises many kinds of errors for a damaged file
        except Exception as error:
            raise ModelError(
                f"{self.state_file} cannot be read",
                " ".join(f"{type(error).__name__}: {error}".split())[:200],
                "remove it to start over",
            ) from error
        if settings != self.settings:
            changed = [key for key in self.settings if settings.get(key) != self.settings[key]]
            raise ModelError(
                f"{self.state_file} belongs to another run",
                f"it differs in {', '.join(changed) or 'its keys'}",
                "give another output name, or remove it to start over",
            )
        self._history = [StepResult(**entry) for entry in start["history"]]
        self._epochs_before = start["epochs"]
        fresh = copy.deepcopy(self.started)
        description = json.dumps({"structure": json.loads(start["structure"])})
        self.module = rebuild(fresh, {"compression": description}, start["tensors"])
        return state


def _change_codeword(module: nn.Module, step: Prune, samples: Tensor | None) -> None:
    if step.codeword == "permute":
        permute_codeword(module, Pattern.parse(step.pattern).rows)
    elif step.codeword == "rotate":
        assert samples is not None
        rotate_codeword(module, samples)
    elif step.codeword == "group":
        assert samples is not None
        group_codeword(module, samples, Pattern.parse(step.pattern).rows or 1)


def _write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside, then rename: whoever looks, or kills us, never meets half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
