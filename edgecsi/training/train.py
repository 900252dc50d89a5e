"""Training: a zoo network from random weights to a ``.safetensors`` file that ``edgecsi build`` takes.

CSI networks learn to reconstruct channels, FullyCon to detect bits. A training is a function of its arguments
alone: killed at any point and started again it ends with the same weights, because its whole state is written
after every epoch and the order of the samples depends on nothing but seed and epoch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecsi import disk, drawing
from edgecsi.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch

    from edgecsi.training.loop import Epoch, State
    from edgecsi.training.tasks import Task

SETTLED = 0.5
"""Share of the training after which batch normalisation of a random network keeps its statistics."""


@dataclass(frozen=True)
class TrainResult:
    """Where the weights and curves are, and how good they are.

    ``metric`` is ``nmse_db`` or ``ber``, ``best`` its lowest validation value; ``curve_png`` is None without
    matplotlib; ``report`` holds what was measured at the end.
    """

    weights: Path
    curve_json: Path
    curve_png: Path | None
    metric: str
    best: float
    best_epoch: int
    history: tuple[Epoch, ...]
    report: dict[str, Any]


def train(
    model: str,
    data: str,
    out: Path,
    *,
    epochs: int = 100,
    lr: float = 1e-3,
    batch: int = 100,
    seed: int = 0,
    init: str | None = None,
    freeze: tuple[str, ...] = (),
    resume: bool = True,
    threads: int | None = None,
    progress: Callable[[Epoch, int], None] | None = None,
    step_progress: Callable[[int, int, int], None] | None = None,
    data_progress: Callable[[int, int], None] | None = None,
) -> TrainResult:
    """Train a zoo network with SOAP, a linear warm-up and a cosine schedule; keep the best weights.

    A network for channels begins with their principal components where it can
    (:meth:`edgecsi.models.blocks.Autoencoder.start_linear`).

    Args:
        model: name in the zoo, e.g. ``csinet-cr4``.
        data: as :func:`edgecsi.channels.files.load` takes it; for FullyCon ``mimo:COUNT[:seed=N]``.
        out: ``.safetensors`` to write; the curve goes beside it as ``.json`` and ``.png``, and while the
            training runs its state as ``.resume``.
        epochs: passes over the data.
        lr: highest learning rate.
        batch: samples a step.
        seed: seed of the first weights and of the order of samples.
        init: weights to begin with instead of random ones, a name or file as
            :func:`edgecsi.models.load.load_model` takes it.
        freeze: layers whose weights stay as they begin (glob patterns). Dense layers learn their samples by heart
            long before the few weights of the convolutions are done; these gain when they go on alone.
        resume: go on from the ``.resume`` file if there is one.
        threads: threads of torch; None leaves it as it is.
        progress: called with (epoch, number of epochs) after each.
        step_progress: called with (epoch, its steps done, all its steps) after each step.
        data_progress: called with (done, wanted) while channels are generated.

    Raises:
        UsageError: an argument out of range, or a ``.resume`` file of another training.
        DataError: bad data, or the output cannot be written.
        ModelError: no such model, or the loss became NaN or infinite.
    """
    import torch

    from edgecsi.models import registry
    from edgecsi.training.loop import Hooks, Plan, fit, frozen, keep_freed_memory
    from edgecsi.training.tasks import make_task

    _check(out, epochs, lr, batch)
    info = registry.find(model)
    disk.check(out)  # learn now that it cannot be written, not after the first epoch
    settings: dict[str, Any] = {
        "model": model,
        "data": data,
        "epochs": epochs,
        "lr": lr,
        "batch": batch,
        "seed": seed,
        **({} if init is None else {"init": init}),
        **({"freeze": list(freeze)} if freeze else {}),
    }
    network = _random_network(model, seed)
    task = make_task(info.input_shape[1:], data, batch, seed, data_progress)
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if init is not None:
        _begin_with(network, init, model)
    good = init is not None or task.start(network)
    state_file = out.with_suffix(".resume")
    resumed = _restore(state_file, settings) if resume and state_file.is_file() else None

    def save(state: State) -> None:
        _write(state_file, partial(torch.save, {"settings": settings, **state}))

    hooks = Hooks(acceptable=lambda done: done > 0, save=save)
    if step_progress is not None:
        hooks.progress = step_progress
    if progress is not None:
        hooks.report = lambda epoch: progress(epoch, epochs)
    with frozen(network, freeze, UsageError):
        history = fit(network, task, Plan(epochs, lr, settled=0.0 if good else SETTLED, hooks=hooks), resumed)
    with torch.no_grad():
        report = task.report(network)
    result = _finish(out, settings, network, task, history, report)
    state_file.unlink(missing_ok=True)
    return result


def _check(out: Path, epochs: int, lr: float, batch: int) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(
            f"{out}: unknown kind of weights file", "weights are safetensors", "end it in .safetensors"
        )
    if epochs < 1 or batch < 2 or not 0 < lr < 1:
        raise UsageError(
            f"cannot train with epochs={epochs}, batch={batch}, lr={lr}",
            "epochs ≥ 1, batch ≥ 2 (batch normalisation needs two) and 0 < lr < 1",
            "change the option",
        )


def _random_network(model: str, seed: int) -> torch.nn.Module:
    import torch

    from edgecsi.models import registry

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return registry.create(model)


def _begin_with(network: torch.nn.Module, init: str, model: str) -> None:
    from edgecsi.models.load import load_model

    try:
        network.load_state_dict(load_model(init).module.state_dict())
    except RuntimeError as error:  # other names or shapes
        raise ModelError(
            f"{init} does not hold the weights of {model}",
            " ".join(str(error).split())[:200],
            "begin with weights of the same network",
        ) from error


def _restore(path: Path, settings: dict[str, Any]) -> State:
    import torch

    try:
        state: State = torch.load(path, weights_only=True)
        found = dict(state.pop("settings"))
    # whatever is wrong with the file, the advice is the same
    except Exception as error:
        raise UsageError(
            f"{path} cannot be resumed from",
            " ".join(f"{type(error).__name__}: {error}".split())[:200],
            "delete it, or start anew with --restart",
        ) from error
    if found == settings:
        return state
    differing = [
        f"{key} {found.get(key)} there, {settings[key]} here"
        for key in settings
        if found.get(key) != settings[key]
    ]
    raise UsageError(
        f"{path} belongs to another training",
        ", ".join(differing),
        "repeat its options, choose another -o, or start anew with --restart",
    )


def _finish(
    out: Path,
    settings: dict[str, Any],
    network: torch.nn.Module,
    task: Task,
    history: list[Epoch],
    report: dict[str, Any],
) -> TrainResult:
    from edgecsi.models.checkpoints import write_weights

    best = min(history, key=lambda past: past.score)
    summary = {**settings, "metric": task.metric, task.metric: best.score, "best_epoch": best.epoch, **report}
    metadata = {
        "model": settings["model"],
        "config": "{}",
        "command": _command(settings, out),
        "versions": json.dumps({name: _version(name) for name in ("edgecsi", "torch", "sionna-no-rt")}),
        **{key: value if isinstance(value, str) else json.dumps(value) for key, value in summary.items()},
    }
    _write(out, lambda path: write_weights(path, network.state_dict(), metadata))
    earlier = _curve_of(settings.get("init", ""))
    curve = {
        **summary,
        "command": metadata["command"],
        "earlier": [asdict(past) for past in earlier],
        "history": [asdict(past) for past in history],
    }
    curve_json = out.with_suffix(".json")
    _write(curve_json, lambda path: path.write_text(json.dumps(curve, indent=1) + "\n"))
    curve_png: Path | None = out.with_suffix(".png")
    try:
        figure = drawing.figure(6, 4)
    except ImportError:
        curve_png = None
    else:
        axes = figure.subplots()
        task.plot(axes, [*earlier, *history], report)
        axes.set_title(settings["model"])
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
        assert curve_png is not None
        _write(curve_png, lambda path: figure.savefig(path, format="png", dpi=120))
    return TrainResult(
        weights=out,
        curve_json=curve_json,
        curve_png=curve_png,
        metric=task.metric,
        best=best.score,
        best_epoch=best.epoch,
        history=tuple(history),
        report=report,
    )


def _curve_of(init: str) -> list[Epoch]:
    """The epochs before this training, if their curve lies beside the weights it began with."""
    from edgecsi.training.loop import Epoch

    try:
        curve = json.loads(Path(init).with_suffix(".json").read_text())
        return [Epoch(**past) for past in [*curve.get("earlier", []), *curve["history"]]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _command(settings: dict[str, Any], out: Path) -> str:
    """The command line that repeats this training."""
    words = [settings["model"]]
    for key, given in settings.items():
        if key != "model":
            for value in given if isinstance(given, list) else [given]:
                words += [f"--{key}", str(value)]
    return f"edgecsi train {shlex.join(words)} -o {out.name}"


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """A reader, or a training that is killed here, never meets half a file."""
    with disk.whole(path) as beside:
        write(beside)
