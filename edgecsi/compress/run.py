"""Compress a network by a recipe: every step in order, resumable, one file in the end."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgecsi import disk
from edgecsi.channels.files import SAMPLE
from edgecsi.compress import recipe as recipes
from edgecsi.compress.choose import thaw
from edgecsi.compress.cluster import finish_sharing, start_sharing
from edgecsi.compress.codeword import change_codeword, mix_unless_pruned
from edgecsi.compress.halve import halve
from edgecsi.compress.loss import TOO_MUCH_DB, loss_db, say_untrained, unless_nothing_to_do
from edgecsi.compress.low_rank import factor_layers
from edgecsi.compress.prune import Pruner
from edgecsi.compress.quantize import finish_rounding, quantize, start_rounding
from edgecsi.compress.recipe import Cluster, Distill, Halve, LowRank, Pattern, Prune, Quantize, Recipe, Step
from edgecsi.compress.reconstruct import FIT_SAMPLES, drop_unread, reconstruct
from edgecsi.compress.size import densities, stored_bytes
from edgecsi.compress.watch import Tell
from edgecsi.errors import CheckFailed, DataError, ModelError, Notice, RecipeError
from edgecsi.models.compressed.store import continued, rebuild, structure
from edgecsi.models.rows import in_rows
from edgecsi.models.state import copy_of
from edgecsi.training.loop import Hooks, Plan, State, fit, frozen, keep_freed_memory, score
from edgecsi.training.tasks import Task, first_inputs, make_task
from edgecsi.verdict import WORTH_SAYING_DB

if TYPE_CHECKING:
    from edgecsi.models.load import LoadedModel

_MASK_EVERY = 20  # steps between two updates of the masks
_NO_DATA = "none"


@dataclass(frozen=True)
class CompressProgress:
    """Where a run is. ``score`` is the NMSE in dB or the bit error rate; epoch 0 is the end of a step. Within a step
    that works without epochs, ``phase`` says what it does, ``done`` of ``total``; the score is not known then."""

    step: int
    steps: int
    kind: str
    epoch: int
    epochs: int
    loss: float
    score: float
    phase: str = ""
    done: int = 0
    total: int = 0


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
        figures: on the test set, see :meth:`edgecsi.training.tasks.Task.report`.
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
    data: str | Path | None,
    out: str | Path,
    *,
    weights: str | None = None,
    seed: int = 0,
    batch: int = 100,
    resume: bool = True,
    accept_loss: bool = False,
    progress: Callable[[CompressProgress], None] | None = None,
    data_progress: Callable[[int, int], None] | None = None,
) -> CompressResult:
    """Compress a network and write it as a ``.safetensors`` file that ``edgecsi build`` takes.

    A run that was killed goes on where it was and ends with the same file.

    Args:
        model: as MODEL everywhere: zoo name, factory, or ``.safetensors``. weights: replace its weights.
        recipe: name, ``.toml`` file, or a parsed one.
        data: channels (file or spec, see :func:`edgecsi.channels.files.load`), a tenth of which is held out;
            for ``fullycon`` ``mimo:N``, N transmissions an epoch. None where the recipe needs none: nothing is fitted
            then, as in a build, and the loss is that on what stands in, see :func:`make_task`.
        out: file to write, ending in ``.safetensors``.
        seed: of the order of the data. batch: samples per step of the optimiser.
        resume: go on with an interrupted run instead of starting over.
        accept_loss: write the result however much it lost; else a loss of more than 3 dB is refused.
        progress: called after every epoch and every step.
        data_progress: called with (done, wanted) while channels are generated.

    Raises:
        CheckFailed: the recipe ruins the network.
        RecipeError, ModelError, DataError: see their text. Nothing is written then, but the state to resume
            from.
    """
    from edgecsi.models.load import load_model

    chosen = recipe if isinstance(recipe, Recipe) else recipes.load(recipe)
    out = Path(out)
    if out.suffix != ".safetensors":
        raise RecipeError(f"{out} is no .safetensors file", "that is what is written", "name it so")
    if data is None and chosen.needs_data:
        raise DataError(
            f"recipe {chosen.name} learns from data", "none were given", "give some with --data DATA"
        )
    loaded, read = in_rows(load_model(model, weights))
    task = make_task(loaded, None if data is None else str(data), batch, seed, data_progress, read)
    settings = {
        "model": model,
        "weights": loaded.sha256,
        "recipe": chosen.text,
        "data": _NO_DATA if data is None else str(data),
        "seed": seed,
        "batch": batch,
    }
    keep_freed_memory()
    run = _Run(
        loaded.module, loaded.example_input, chosen, task, out.with_suffix(".resume"), settings, progress
    )
    before, bytes_before = score(run.module, task), stored_bytes(run.module)
    if task.metric == "nmse_db":
        say_untrained(model, before)
    history = run.all_steps(resume, None if accept_loss else before)
    with torch.no_grad():
        figures = task.report(run.module)
    result = CompressResult(
        path=out,
        metric=task.metric,
        before=before,
        after=history[-1].score,
        bytes_before=bytes_before,
        bytes_after=stored_bytes(run.module),
        steps=tuple(history),
        density=densities(run.module),
        figures=figures,
    )
    _write_result(result, run, loaded)
    run.state_file.unlink(missing_ok=True)
    return result


def _write_result(result: CompressResult, run: _Run, loaded: LoadedModel) -> None:
    """The network, and how it was made."""
    from edgecsi.models.checkpoints import write_weights

    report = {
        "recipe": run.recipe.name,
        "recipe_text": run.recipe.text,
        "structure": structure(run.module, run.started),
        "data": run.settings["data"],
        "seed": run.settings["seed"],
        "metric": result.metric,
        "before": result.before,
        "after": result.after,
        "steps": [asdict(step) for step in result.steps],
        "bytes_before": result.bytes_before,
        "bytes_after": result.bytes_after,
        "weights_sha256": loaded.sha256,
        **result.figures,
    }
    if "compression" in loaded.metadata:
        report = continued(json.loads(loaded.metadata["compression"]), report)
    metadata = {
        "model": loaded.metadata.get("model", run.settings["model"]),
        "config": loaded.metadata.get("config", "{}"),
        "compression": json.dumps(report, sort_keys=True),
        "versions": json.dumps({"edgecsi": version("edgecsi"), "torch": torch.__version__}),
    }
    with disk.whole(result.path) as beside:
        write_weights(beside, run.module.state_dict(), metadata)


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
        progress: Callable[[CompressProgress], None] | None,
    ) -> None:
        self.module, self.example, self.recipe, self.task = module, example, recipe, task
        thaw(module)
        self.started = copy_of(module)
        self.state_file, self.settings, self.progress = state_file, settings, progress
        self._blind = settings["data"] == _NO_DATA
        self._history: list[StepResult] = []
        self._epochs_before = 0
        self._number = 0
        self._at_start: State = {}

    def all_steps(self, resume: bool, before: float | None) -> list[StepResult]:
        """Run what is left of the recipe; with a score `before`, refuse to lose too much against it."""
        running = self._load() if resume else None
        if running is not None and running["running"] is None:  # stopped between two steps
            running = None
        for number in range(len(self._history), len(self.recipe.steps)):
            step, self._number = self.recipe.steps[number], number + 1
            self._at_start = {
                "structure": json.dumps(structure(self.module, self.started)),
                "tensors": {key: value.clone() for key, value in self.module.state_dict().items()},
                "history": [asdict(entry) for entry in self._history],
                "epochs": self._epochs_before,
            }
            if number and running is None:
                self._save({"phase": 0, "running": None})
            with unless_nothing_to_do(number, step.do, self.recipe.name):
                self._run(step, running)
            running = None
            result = score(self.module, self.task)
            self._judge(step, before, result)
            self._history.append(StepResult(step.do, result))
            self._report(step, 0, math.nan, result)
        return self._history

    def _judge(self, step: Step, before: float | None, now: float) -> None:
        """Say what a step loses; refuse what no later step can train back."""
        last = self._history[-1].score if self._history else score(self.started, self.task)
        lost = loss_db(self.task.metric, last, now)
        name = f"step {self._number} ({step.do}) of {self.recipe.name}"
        if lost > WORTH_SAYING_DB:
            warnings.warn(
                Notice(f"{name} loses {lost:.1f} dB: {self.task.metric} {last:.4g}, then {now:.4g}"),
                stacklevel=2,
            )
        later = any(following.epochs for following in self.recipe.steps[self._number :])
        if before is None or later or (total := loss_db(self.task.metric, before, now)) <= TOO_MUCH_DB:
            return
        raise CheckFailed(
            f"{self.recipe.name} ruins the network: {self.task.metric} {before:.4g} before, {now:.4g} after {name}",
            f"that is {total:.1f} dB, and more than {TOO_MUCH_DB:g} dB are not lost without a word",
            "choose a milder recipe (edgecsi compress --sensitivity tells which layers cost most), or --accept-loss",
        )

    def _run(self, step: Step, running: State | None) -> None:
        if isinstance(step, Prune):
            self._prune(step, running)
            if step.pattern == "columns":
                drop_unread(self.module, self._samples(FIT_SAMPLES))
        elif isinstance(step, Quantize):
            if step.codeword == "mix" and not self._blind:
                mix_unless_pruned(self.module, self._samples(FIT_SAMPLES))
            if step.epochs == 0:
                samples = None if self._blind else self._samples(step.samples)
                quantize(self.module, step, samples, self.example, self._tell(step))
                return
            start_rounding(self.module, step, self._samples(step.samples), self.example, self._tell(step))
            self._train(step, self._keep_zeros(), running)
            finish_rounding(self.module)
        elif isinstance(step, Cluster):
            start_sharing(self.module, step, self._samples(FIT_SAMPLES), self._tell(step))
            self._train(step, Hooks(), running)
            finish_sharing(self.module)
        elif isinstance(step, Halve):
            known = not self._blind or tuple(self.example.shape[1:]) == SAMPLE  # of the channels that ship
            halve(self.module, step, self.example, self._samples(FIT_SAMPLES) if known else None)
        elif isinstance(step, LowRank):
            factor_layers(self.module, step, self._samples(FIT_SAMPLES))
            self._train(step, Hooks(), running)
        else:
            with frozen(self.module, step.freeze, RecipeError):
                self._train(step, self._keep_zeros(), running)

    def _prune(self, step: Prune, running: State | None) -> None:
        pattern = Pattern.parse(step.pattern)
        by_data = step.criterion == "reconstruct" or step.codeword in ("rotate", "group")
        samples = self._samples(FIT_SAMPLES) if by_data else self.example
        change_codeword(self.module, step, samples)
        total = step.epochs * self.task.steps
        unpruned = copy.deepcopy(self.module.state_dict())
        pruner = Pruner(self.module, step, lambda module: score(module, self.task), self.example)
        if step.criterion == "reconstruct" and running is None:  # else the state that is resumed holds it
            shares = step.share if step.scope == "global" and not pattern.group else pruner.shares
            tell = self._tell(step)
            pruner.masks = reconstruct(self.module, pruner.layers, pattern, shares, samples, tell=tell)
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
        hooks.report = lambda done: self._report(
            step, done.epoch + phase * step.epochs, done.loss, done.score
        )
        plan = Plan(
            step.epochs,
            step.lr,
            first_epoch=first,
            teacher=self._teacher(step),
            imitation=step.teacher,
            hooks=hooks,
        )
        fit(self.module, self.task, plan, running["running"] if running else None)
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
            return in_rows(load_model(step.teacher_model))[0].module.eval()
        return self.started.eval()

    def _samples(self, count: int) -> Tensor:
        return first_inputs(self.task, count)

    def _report(self, step: Step, epoch: int, loss: float, now: float) -> None:
        if self.progress is not None:
            phases = 2 if isinstance(step, Prune) and step.rewind != "none" else 1
            steps, epochs = len(self.recipe.steps), phases * step.epochs
            self.progress(CompressProgress(self._number, steps, step.do, epoch, epochs, loss, now))

    def _tell(self, step: Step) -> Tell:
        """Reports the phases of a step that come before its epochs."""

        def tell(phase: str, done: int, total: int) -> None:
            if self.progress is not None:
                number, steps = self._number, len(self.recipe.steps)
                self.progress(
                    CompressProgress(
                        number, steps, step.do, 0, step.epochs, math.nan, math.nan, phase, done, total
                    )
                )

        return tell

    def _save(self, running: State) -> None:
        state = {"settings": self.settings, "start": self._at_start, **running}
        with disk.whole(self.state_file) as beside:
            torch.save(state, beside)

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
