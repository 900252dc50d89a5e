"""What there is to learn: CSI networks reconstruct channels, a detector finds the bits that were sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgecsi.errors import DataError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from edgecsi.models.load import LoadedModel
    from edgecsi.models.rows import Read
    from edgecsi.training.loop import Epoch

_MAX_VALIDATION = 2000
_STAND_INS = 200  # inputs of a network of whose data nothing is known
_LEAST_DIFFERENCE = 1e-12  # rounding is below


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
    """Learn x̂ = x on samples; the score is the NMSE in dB on the last tenth of them (at most 2000).

    Args:
        samples: float32 ``[N, …]``, channels ``[N, 2, 32, 32]`` as a rule.
        batch: samples a step.
        seed: seed of the order.
        on_test_set: report the NMSE on the shipped test set too (it only says something about networks that
            were trained on channels of the same generator).
    """

    metric = "nmse_db"

    def __init__(self, samples: NDArray[Any], batch: int, seed: int, *, on_test_set: bool) -> None:
        import torch

        from edgecsi.channels.metrics import centre

        held_out = _held_out(samples)
        usable = len(samples) - held_out
        self._centre = centre(samples)
        self._batch = min(batch, usable)
        self._seed = seed
        self._on_test_set = on_test_set
        self.steps = usable // self._batch
        everything = torch.from_numpy(samples)
        if samples.ndim == 4:
            everything = everything.contiguous(memory_format=torch.channels_last)
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
        axes = tuple(range(1, target.ndim))
        error = (output - target).square().sum(axes)
        return (error / (target - self._centre).square().sum(axes)).mean()

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


class Imitation:
    """Answer as the network did at first, for networks that reconstruct nothing: a decoder, a detector of one's own.

    The score is the difference to the first answers, in dB below their power, on the last tenth of the samples.

    Args:
        samples: inputs, float32 ``[N, …]``. network: copied. batch: samples a step. seed: of the order.
    """

    metric = "difference_db"

    def __init__(self, samples: NDArray[Any], network: torch.nn.Module, batch: int, seed: int) -> None:
        import torch

        held_out = _held_out(samples)
        usable = len(samples) - held_out
        self._batch, self._seed = min(batch, usable), seed
        self.steps = usable // self._batch
        self._inputs = torch.from_numpy(samples)
        with torch.no_grad():
            parts = [network.eval()(part) for part in torch.split(self._inputs, 100)]
        self._answers = torch.cat(parts)
        self._power = (self._answers - self._answers.mean(0)).square().mean().clamp_min(1e-30)
        self._usable = usable

    def batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        order = np.random.default_rng((self._seed, epoch)).permutation(self._usable)
        for part in torch.split(torch.from_numpy(order[: self.steps * self._batch]), self._batch):
            yield self._inputs[part], self._answers[part]

    def start(self, network: torch.nn.Module) -> bool:
        return False

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output - target).square().mean() / self._power

    def score(self, model: torch.nn.Module) -> float:
        import torch

        held = slice(self._usable, None)
        parts = zip(torch.split(self._inputs[held], 100), torch.split(self._answers[held], 100), strict=True)
        total = sum(float((model(x) - y).square().sum()) for x, y in parts)
        mean = total / self._answers[held].numel() / float(self._power)
        return 10 * math.log10(max(mean, _LEAST_DIFFERENCE))

    def report(self, model: torch.nn.Module) -> dict[str, Any]:
        return {}

    def plot(self, axes: Any, history: list[Epoch], report: dict[str, Any]) -> None:
        axes.plot(range(1, len(history) + 1), [e.score for e in history], label="held out")
        axes.set(xlabel="epoch", ylabel="difference (dB)")


def _held_out(samples: NDArray[Any]) -> int:
    """How many samples are held out."""
    count = min(_MAX_VALIDATION, len(samples) // 10)
    if count == 0:
        raise DataError(
            f"{len(samples)} samples are too few to train on",
            "a tenth of them is held out for validation",
            "give at least 10, better 10,000",
        )
    return count


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


def make_task(
    model: LoadedModel | Sequence[int],
    data: str | None,
    batch: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
    read: Read | None = None,
) -> Task:
    """What a network learns: to detect bits, to reconstruct what it is given, or else to answer as it does now.

    Args:
        model: tried on some samples, to see what it does; the shape of an input of one that has learnt nothing yet.
        batch: samples a step. read: what reads its data, see :func:`edgecsi.models.rows.in_rows`.
        data: as :func:`edgecsi.channels.files.load` takes it, or ``mimo:COUNT[:seed=N]`` for the zoo's detector. None
            to see what a network does of whose data nothing is known: channels that ship or random transmissions for
            one that takes such, for others normally distributed numbers.
        seed: of the order of the data. progress: called with (done, wanted) while channels are generated.

    Raises:
        DataError: bad data.
    """
    import torch

    from edgecsi.channels import files
    from edgecsi.channels.generate import is_spec
    from edgecsi.models import registry
    from edgecsi.models.load import LoadedModel

    shape = model.example_input.shape[1:] if isinstance(model, LoadedModel) else model
    network = model.module if isinstance(model, LoadedModel) else None
    detector = tuple(shape) == registry.FAMILIES["fullycon"].input_shape[1:]
    if data is None:
        data = "mimo:1000" if detector else "test"
        if not detector and tuple(shape) != files.SAMPLE:
            read = _numbers(model)
    if data.startswith("mimo:") and not detector:
        raise DataError(
            f"the network takes inputs of shape {[1, *shape]}",
            f"{data} gives signals of shape [30]",
            "give channels, or a file of the network's own inputs",
        )
    if detector and (network is None or not Path(data).is_file()):
        return Detection(data, batch)
    samples = read(data, progress) if read is not None else files.load(data, shape=shape, progress=progress)
    if network is None or _reconstructs(network, torch.from_numpy(samples[:100])):
        return Reconstruction(samples, batch, seed, on_test_set=is_spec(data))
    return Imitation(samples, network, batch, seed)


def _numbers(model: LoadedModel | Sequence[int]) -> Read:
    """Reads normally distributed numbers where a network's data should be, whatever they are called."""
    from edgecsi.models.load import LoadedModel

    inputs = model.entries["full"].inputs if isinstance(model, LoadedModel) else ()
    if not all(x.is_floating_point() for x in inputs):
        raise DataError(
            "the network takes integers, and nobody knows which",
            "no data were given",
            "give some with --data DATA",
        )
    shape = model.example_input.shape[1:] if isinstance(model, LoadedModel) else model
    return lambda data, progress: np.random.default_rng(0).standard_normal((_STAND_INS, *shape), np.float32)


def _reconstructs(network: torch.nn.Module, x: torch.Tensor) -> bool:
    """Whether a network gives back what it is given, more or less; one for channels may have learnt nothing yet."""
    import torch

    from edgecsi.channels.files import SAMPLE

    with torch.no_grad():
        y = network.eval()(x)
    if not isinstance(y, torch.Tensor) or y.shape != x.shape:
        return False
    return tuple(x.shape[1:]) == SAMPLE or float((y - x).square().sum()) < float(
        (x - x.mean(0)).square().sum()
    )


def first_inputs(task: Task, count: int) -> torch.Tensor:
    """Training inputs, float32 ``[≤ count, …]``."""
    import torch

    parts: list[torch.Tensor] = []
    for x, _ in task.batches(0):
        parts.append(x)
        if sum(map(len, parts)) >= count:
            break
    return torch.cat(parts)[:count]
