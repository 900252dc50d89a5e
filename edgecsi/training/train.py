"""Training: a zoo network from random weights to a ``.safetensors`` file that ``edgecsi build`` takes.

CSI networks learn to reconstruct channels, FullyCon to detect bits. A training is a function of its arguments
alone: killed at any point and started again it ends with the same weights, because its whole state is written
after every epoch and the order of the samples depends on nothing but seed and epoch.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgecsi.errors import DataError, EdgecsiError, ModelError, UsageError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""
FINAL_LR = 0.01
"""The last learning rate, as a share of the highest."""
SETTLED = 0.5
"""Share of the training after which batch normalisation keeps the statistics it has: those of a batch differ from
them by a few per cent, more than a good network errs. A network that begins with good ones always keeps them."""
LARGEST_BASIS = 256
"""Sides of a weight up to this long get an eigenbasis. Longer ones are the channel's own angles and delays, which
hardly correlate, and would take most of the time."""

_MAX_VALIDATION = 2000


@dataclass(frozen=True)
class Epoch:
    """What one epoch did.

    ``score`` is the validation NMSE in dB, or the bit error rate of a detector; ``best`` the lowest so far.
    """

    epoch: int
    loss: float
    score: float
    best: float
    seconds: float


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


class Task(Protocol):
    """What there is to learn: batches, a loss, a score to be lowered, and a report on the final network."""

    metric: str
    steps: int

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(input, target) pairs, ``steps`` of them, the same for the same epoch."""

    def start(self, network: torch.nn.Module) -> bool:
        """Give a fresh network a better beginning than random weights; False if there is none."""

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Scalar to minimise."""

    def score(self, model: torch.nn.Module) -> float:
        """Figure of merit on held-out data, lower is better."""

    def report(self, model: torch.nn.Module) -> dict[str, Any]:
        """Figures of the finished network."""

    def plot(self, axes: Any, history: list[Epoch], report: dict[str, Any]) -> None:
        """Draw the curve that people want to see."""


class Reconstruction:
    """Learn x̂ = x on CSI samples; the score is the NMSE in dB on the last tenth of them (at most 2000).

    Args:
        samples: float32 ``[N, 2, 32, 32]``.
        batch: samples a step.
        seed: seed of the order.
        on_test_set: report the NMSE on the shipped test set too (it only says something about networks that
            were trained on channels of the same generator).
    """

    metric = "nmse_db"

    def __init__(self, samples: NDArray[Any], batch: int, seed: int, *, on_test_set: bool) -> None:
        import torch

        held_out = min(_MAX_VALIDATION, len(samples) // 10)
        if held_out == 0:
            raise DataError(
                f"{len(samples)} samples are too few to train on",
                "a tenth of them is held out for validation",
                "give at least 10, better 10,000",
            )
        usable = len(samples) - held_out
        self._batch = min(batch, usable)
        self._seed = seed
        self._on_test_set = on_test_set
        self.steps = usable // self._batch
        everything = torch.from_numpy(samples).contiguous(memory_format=torch.channels_last)
        self._training, self._validation = everything[:usable], everything[usable:]

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._training))
        for part in torch.split(torch.from_numpy(order[: self.steps * self._batch]), self._batch):
            x = self._training[part]
            yield x, x

    def start(self, network: torch.nn.Module) -> bool:
        from edgecsi.models.blocks import Autoencoder

        return isinstance(network, Autoencoder) and network.start_linear(self._training)

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Squared error over the sample's own power. Without that the error is tiny and nothing moves for
        many epochs."""
        error = (output - target).square().sum((1, 2, 3))
        return (error / (target - 0.5).square().sum((1, 2, 3))).mean()

    def score(self, model: torch.nn.Module) -> float:
        return self._nmse_db(model, self._validation)

    def report(self, model: torch.nn.Module) -> dict[str, Any]:
        import torch

        from edgecsi.channels.shipped import SUBSETS, test_set

        if not self._on_test_set:
            return {}
        return {
            "test_nmse_db": {
                subset: self._nmse_db(model, torch.from_numpy(test_set(subset=subset))) for subset in SUBSETS
            }
        }

    def plot(self, axes: Any, history: list[Epoch], report: dict[str, Any]) -> None:
        axes.plot(range(1, len(history) + 1), [e.score for e in history], label="validation")
        axes.set(xlabel="epoch", ylabel="NMSE (dB)")

    def _nmse_db(self, model: torch.nn.Module, samples: torch.Tensor) -> float:
        import torch

        total = sum(float(self.loss(model(x), x)) * len(x) for x in torch.split(samples, 100))
        return 10 * math.log10(total / len(samples))


class Detection:
    """Learn the bits sent over FullyCon's fixed channel; the score is the bit error rate over 8-13 dB.

    Args:
        spec: ``mimo:COUNT[:seed=N]``, COUNT fresh transmissions every epoch.
        batch: transmissions a step.
    """

    metric = "ber"
    held_out = 200_000

    def __init__(self, spec: str, batch: int) -> None:
        import torch

        from edgecsi.models import fullycon

        transmissions = fullycon.parse_spec(spec)
        self._fullycon = fullycon
        self._seed = transmissions.seed
        self._batch = min(batch, transmissions.per_epoch)
        self.steps = transmissions.per_epoch // self._batch
        span = fullycon.TEST_SNR_DB[0], fullycon.TEST_SNR_DB[-1]
        # an epoch number that no training reaches, so that validation shares no noise with it
        validation = fullycon.transmit(self.held_out, span, np.random.default_rng((self._seed, 2**31)))
        self._received, self._sent = map(torch.from_numpy, validation)

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        rng = np.random.default_rng((self._seed, epoch))
        for _ in range(self.steps):
            received, sent = self._fullycon.transmit(self._batch, self._fullycon.TRAINING_SNR_DB, rng)
            yield torch.from_numpy(received), torch.from_numpy(sent)

    def start(self, network: torch.nn.Module) -> bool:
        return False

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Logistic loss: the output becomes the log-likelihood ratio of the bit."""
        import torch

        return torch.nn.functional.softplus(-output * target).mean()

    def score(self, model: torch.nn.Module) -> float:
        import torch

        parts = zip(torch.split(self._received, 5000), torch.split(self._sent, 5000), strict=True)
        wrong = sum(int(((model(received) > 0) != (sent > 0)).sum()) for received, sent in parts)
        return wrong / self._sent.numel()

    def report(self, model: torch.nn.Module) -> dict[str, Any]:
        import torch

        return {
            "error_rates": self._fullycon.error_rates(
                lambda received: model(torch.from_numpy(received)).numpy()
            )
        }

    def plot(self, axes: Any, history: list[Epoch], report: dict[str, Any]) -> None:
        rates = report["error_rates"]
        for name in ("matched_filter", "zero_forcing", "fullycon"):
            axes.semilogy(rates["snr_db"], rates[name], marker="o", label=name.replace("_", " "))
        axes.set(xlabel="SNR (dB)", ylabel="bit error rate")


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
        data_progress: called with (done, wanted) while channels are generated.

    Raises:
        UsageError: an argument out of range, or a ``.resume`` file of another training.
        DataError: bad data, or the output cannot be written.
        ModelError: no such model, or the loss became NaN or infinite.
    """
    import torch

    from edgecsi.models import registry

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
    info = registry.find(model)
    with _writing(out) as beside:  # learn now that it cannot be written, not after the first epoch
        beside.touch()
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
    task = make_task(info.family, data, batch, seed, data_progress)
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = registry.create(model)
    settled = SETTLED
    if init is not None:
        _begin_with(network, init, model)
        settled = 0.0
    elif task.start(network):
        settled = 0.0
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    fixed = {id(weight) for weight in weights_called(network, freeze, UsageError)}
    optimizer = make_optimizer([p for p in network.parameters() if id(p) not in fixed], lr)

    state_file = out.with_suffix(".resume")
    history: list[Epoch] = []
    best_state: dict[str, torch.Tensor] = {}
    if resume and state_file.is_file():
        history, best_state = _restore(state_file, settings, network, optimizer)
    for epoch in range(len(history) + 1, epochs + 1):
        started = time.monotonic()
        loss = _one_epoch(network, optimizer, task, epoch, epochs, lr, epoch > settled * epochs)
        network.eval()
        with torch.no_grad():
            score = task.score(network)
        if not (math.isfinite(loss) and math.isfinite(score)):
            raise ModelError(
                f"the training of {model} diverged in epoch {epoch}",
                f"loss {loss:g}, {task.metric} {score:g}",
                "lower --lr, or look for damaged samples with `edgecsi data info`",
            )
        best = min([score, *(earlier.score for earlier in history)])
        history.append(Epoch(epoch, loss, score, best, time.monotonic() - started))
        if score == best:
            best_state = {key: value.clone() for key, value in network.state_dict().items()}
        state = {
            "settings": settings,
            "model": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "best": best_state,
            "history": [asdict(past) for past in history],
        }
        _write(state_file, partial(torch.save, state))
        if progress is not None:
            progress(history[-1], epochs)

    network.load_state_dict(best_state)
    network.eval()
    with torch.no_grad():
        report = task.report(network)
    result = _finish(out, settings, network, task, history, report)
    state_file.unlink(missing_ok=True)
    return result


def schedule(done: float) -> float:
    """Learning rate as a share of the highest, at this share (0 to 1) of the training: linear warm-up, then
    half a cosine down to ``FINAL_LR``."""
    if done < WARM_UP:
        return (done + 1e-3) / (WARM_UP + 1e-3)
    angle = math.pi * (done - WARM_UP) / (1 - WARM_UP)
    return FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(angle)) / 2


def make_task(
    family: str, data: str, batch: int, seed: int, progress: Callable[[int, int], None] | None
) -> Task:
    if family == "fullycon":
        return Detection(data, batch)
    from edgecsi.channels.files import load
    from edgecsi.channels.generate import is_spec

    return Reconstruction(load(data, progress=progress), batch, seed, on_test_set=is_spec(data))


def _one_epoch(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    epoch: int,
    epochs: int,
    lr: float,
    settled: bool,
) -> float:
    """Mean loss of the epoch; stops at the first step that is not finite.

    Args:
        settled: batch normalisation keeps its statistics.
    """
    network.train()
    if settled:
        keep_statistics(network)
    total = 0.0
    for step, (x, target) in enumerate(task.batches(epoch), (epoch - 1) * task.steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step / (epochs * task.steps))
        optimizer.zero_grad(set_to_none=True)
        loss = task.loss(network(x), target)
        total += loss.item()
        if not math.isfinite(total):
            break
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return total / task.steps


def make_optimizer(parameters: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """SOAP (Vyas et al., arXiv 2409.11321): Adam in the eigenbases of the gradients.

    The few convolutions behind a dense layer are so ill-conditioned that Adam alone learns for hundreds of epochs
    and is not done.
    """
    from pytorch_optimizer import SOAP

    return SOAP(parameters, lr, weight_decay=0.0, max_precondition_dim=LARGEST_BASIS)


def keep_statistics(network: torch.nn.Module) -> None:
    """Batch normalisation in it is what it will be in the end, an affine map: it learns, its statistics stay."""
    import torch

    for part in network.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.eval()


def weights_called(
    network: torch.nn.Module, layers: tuple[str, ...], error: type[EdgecsiError]
) -> list[torch.Tensor]:
    """Weights of the dense layers and convolutions of these names (glob patterns).

    Raises:
        EdgecsiError: of the kind asked for; a pattern matches none.
    """
    import torch

    kinds = torch.nn.Linear | torch.nn.Conv2d
    found = {name: part.weight for name, part in network.named_modules() if isinstance(part, kinds)}
    for pattern in layers:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise error(
                "there is no layer to freeze",
                f"no dense layer or convolution is called like {pattern}",
                f"change freeze; the layers are {', '.join(found)}",
            )
    return [weight for name, weight in found.items() if any(fnmatchcase(name, glob) for glob in layers)]


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


def _restore(
    path: Path, settings: dict[str, Any], network: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[list[Epoch], dict[str, torch.Tensor]]:
    import torch

    try:
        state = torch.load(path, weights_only=True)
        found = dict(state["settings"])
        if found == settings:
            network.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            return [Epoch(**past) for past in state["history"]], dict(state["best"])
    # whatever is wrong with the file, the advice is the same
    except Exception as error:
        raise UsageError(
            f"{path} cannot be resumed from",
            " ".join(f"{type(error).__name__}: {error}".split())[:200],
            "delete it, or start anew with --restart",
        ) from error
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
        from matplotlib.figure import Figure
    except ImportError:
        curve_png = None
    else:
        figure = Figure(figsize=(6, 4), layout="constrained")
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
    """Write beside, then rename: a reader, or a training that is killed here, never meets half a file."""
    with _writing(path) as beside:
        write(beside)
        beside.replace(path)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """A name in the same folder, made if need be; gone afterwards. Trouble with the disk is a DataError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
    # torch reports a full disk as a RuntimeError
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path} cannot be written", str(error), "free some space or choose another place"
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def keep_freed_memory() -> None:
    """Have glibc keep freed buffers for the next step: giving them back costs a quarter of the time."""
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
    mallopt(m_mmap_threshold, 32 << 20)
    mallopt(m_trim_threshold, 512 << 20)
    mallopt(m_top_pad, 64 << 20)
