"""How well a bundle does on data: NMSE, rho and SGCS of what it returns, and its difference to PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi import verdict
from edgecsi.bundle import Bundle, read_golden
from edgecsi.bundle import Entry as Described
from edgecsi.channels import files, metrics
from edgecsi.channels.named import has_samples, load_named, samples_of
from edgecsi.device import Device
from edgecsi.device.protocol import Samples
from edgecsi.errors import BundleError, CheckFailed, DataError, EdgecsiError, Notice, UsageError
from edgecsi.models.entries import outputs_named
from edgecsi.progress import Progress
from edgecsi.reference import AT_ONCE, answers, calls_of, reference_model
from edgecsi.verdict import Difference, difference, difference_but_ties

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecsi.models.entries import Part
    from edgecsi.models.load import LoadedModel

Outputs = tuple[Any, ...]
"""Of one entry, arrays ``[N, …]``."""


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found. NMSE in dB; rho and SGCS from 0 to 1; None where they have no meaning."""

    bundle: str
    target: str
    device: str
    data: str
    samples: int
    nmse_db: float | None
    nmse_db_pytorch: float | None
    nmse_db_fp32: float | None
    """Of the network before it was compressed, in PyTorch."""
    rho: float | None
    sgcs: float | None
    differences: dict[str, Difference]
    """To PyTorch, by entry; empty without anything to compare with."""
    left_to_rounding: dict[str, int] = field(default_factory=dict)
    """Calls by entry that these leave out: a value lay on an edge (argmax, sort, round), and rounding decided."""
    bit_error_rates: dict[str, list[float]] | None = None
    """Of a detector, as :func:`edgecsi.models.fullycon.error_rates` gives them."""


def evaluate(
    bundle: Bundle,
    samples: Samples,
    data: str,
    *,
    device: Device,
    reference: LoadedModel | None = None,
    fp32: Part | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run a bundle on channels and compare with these, and with PyTorch.

    Args:
        bundle: what to run.
        samples: float32 ``[N, *shape]``, inputs of its ``full`` or ``encoder`` entry; a list of them if it takes several.
        data: what to call the samples in the result.
        device: where to run it.
        reference: the PyTorch model, if it is to be compared with. fp32: the whole network before compression.
        progress: called with (done, total, what is being done).

    Raises:
        DataError: the samples do not fit the bundle.
        DeviceError: the device cannot run it.
    """
    entries = bundle.manifest.entries
    tell = progress or (lambda done, total, what: None)
    tell(
        0, 1 + len(reference.entries if reference else ()), f"running {bundle.manifest.name} on {device.spec}"
    )
    given = [samples] if isinstance(samples, np.ndarray) else list(samples)
    outputs = _outputs(bundle, given, device)
    differences: dict[str, Difference] = {}
    left: dict[str, int] = {}
    expected: dict[str, Outputs] = {}
    if reference is not None:
        expected, differences, left = _against_pytorch(bundle, given, device, reference, outputs, tell)

    whole = entries.get("full") or entries.get("encoder")
    of = zip(given, whole.inputs if whole is not None else (), strict=False)
    samples, real = next(((x, t.dtype == "float32") for x, t in of if t.shape), (given[0], whole is None))
    full = _alike(outputs.get("full", ()), samples) if real else None
    # where nothing is reconstructed these figures have no meaning
    expected_full = exact = None
    if full is not None and reference is not None:
        kept = _kept(reference.entries["full"], entries.get("full"), expected["full"])
        expected_full = _alike(kept, samples)
    if full is not None and fp32 is not None:
        exact = _alike(_kept(fp32, entries.get("full"), answers(fp32, given)), samples)
    channels = full if full is not None and full.shape[1:] == files.SAMPLE else None
    if channels is not None and not np.isfinite(channels).all():
        channels = None  # what overflows is like nothing
    return Evaluation(
        bundle=bundle.manifest.name,
        target=bundle.manifest.target.id,
        device=device.spec,
        data=data,
        samples=len(samples),
        nmse_db=None if full is None else metrics.nmse_db(samples, full),
        nmse_db_pytorch=None if expected_full is None else metrics.nmse_db(samples, expected_full),
        nmse_db_fp32=None if exact is None else metrics.nmse_db(samples, exact),
        rho=None if channels is None else metrics.rho(samples, channels),
        sgcs=None if channels is None else metrics.sgcs(samples, channels),
        differences=differences,
        left_to_rounding={name: calls for name, calls in left.items() if calls},
    )


def _run(bundle: Bundle, name: str, x: Sequence[NDArray[Any]], device: Device) -> Outputs:
    found = device.run(bundle, name, x)
    return found if isinstance(found, tuple) else (found,)


def _outputs(bundle: Bundle, given: Sequence[NDArray[Any]], device: Device) -> dict[str, Outputs]:
    """What the encoder and the whole network answer; decoder after encoder is whole too."""
    entries = bundle.manifest.entries
    outputs = {name: _run(bundle, name, given, device) for name in ("full", "encoder") if name in entries}
    if "encoder" in entries and "decoder" in entries and "full" not in entries:
        outputs["full"] = _run(bundle, "decoder", outputs["encoder"], device)
    return outputs


def _against_pytorch(
    bundle: Bundle,
    given: Sequence[NDArray[Any]],
    device: Device,
    reference: LoadedModel,
    outputs: dict[str, Outputs],
    tell: Progress,
) -> tuple[dict[str, Outputs], dict[str, Difference], dict[str, int]]:
    """What PyTorch answers, how far the bundle is from that, and how many calls that leaves to rounding; each by entry.

    A decoder is given PyTorch's codeword; what it answers is added to ``outputs``.
    """
    entries = bundle.manifest.entries
    differences: dict[str, Difference] = {}
    left: dict[str, int] = {}
    expected: dict[str, Outputs] = {}
    for done, (name, entry) in enumerate(reference.entries.items(), 1):
        tell(done, 1 + len(reference.entries), f"comparing {name} with PyTorch")
        x = expected["encoder"] if name == "decoder" else given
        expected[name] = answers(entry, x)
        if name == "decoder" and name in entries:
            outputs[name] = _run(bundle, name, x, device)
        if name not in outputs:
            continue
        kept = _kept(entry, entries.get(name), expected[name])
        differences[name] = _worst(outputs[name], kept)
        few = len(x[0]) <= AT_ONCE * samples_of({"x": entry.example_input.shape})
        if few and not differences[name].max_rel_diff <= verdict.FP32:  # it may mix samples a little
            kept = _kept(entry, entries.get(name), answers(entry, x, at_once=False))
            differences[name] = _worst(outputs[name], kept)
        # A build's own check, which has no entries yet, keeps what it finds: golden values depend on it.
        checked = name in bundle.manifest.check.entries
        if checked and not differences[name].max_rel_diff <= (bar := _allowed(bundle, name)):
            settled, left[name] = _but_for_rounding(entry, entries.get(name), x, outputs[name], kept, bar)
            differences[name] = _worst(settled, kept)
    return expected, differences, left


def _alike(outputs: Sequence[NDArray[Any]], samples: NDArray[Any]) -> Any:
    """The first output of the samples' shape; None without one."""
    return next((y for y in outputs if y.shape == samples.shape and y.dtype.kind == "f"), None)


def _worst(found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> Difference:
    """Of several outputs the one that is furthest away."""
    apart = [difference_but_ties(np.asarray(y), e) for y, e in zip(found, expected, strict=True)]
    return max(apart, key=lambda d: d.max_rel_diff)


def _kept(entry: Part, built: Described | None, answers: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of PyTorch's answers those that the bundle has, in its order: it may have been built for some outputs only."""
    if built is None:
        return answers
    return tuple(answers[k] for k in outputs_named(entry, [tensor.name for tensor in built.outputs]))


def _but_for_rounding(
    entry: Part,
    built: Described | None,
    x: Sequence[NDArray[Any]],
    found: Sequence[NDArray[Any]],
    expected: Sequence[NDArray[Any]],
    bar: float,
) -> tuple[list[NDArray[Any]], int]:
    """What was found, with PyTorch's answer to calls where rounding explains the difference, and how many these are.

    An answer that rounding does not explain ends the search: the library is wrong.
    """
    from edgecsi import rounding

    settled, left = [np.array(y) for y in found], 0
    calls = list(calls_of(entry, x))
    for number, call in enumerate(calls):
        of_call = [
            slice(number * len(e) // len(calls), (number + 1) * len(e) // len(calls)) for e in expected
        ]
        pairs = [(y[s], e[s]) for y, e, s in zip(settled, expected, of_call, strict=True)]
        if all(difference_but_ties(y, e).max_rel_diff <= bar for y, e in pairs):
            continue
        moved = _kept(entry, built, tuple(rounding.moved(entry.module, call)))
        coarse = rounding.coarseness(entry.module, call)
        for (y, e), far in zip(pairs, moved, strict=True):
            if verdict.within_rounding(y.reshape(far.shape), e.reshape(far.shape), far, bar, coarse) is None:
                return settled, left
            y[...] = e
        left += 1
    return settled, left


def evaluate_detector(
    bundle: Bundle,
    data: str,
    *,
    device: Device,
    reference: LoadedModel | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run FullyCon's bundle on random transmissions: bit error rates, and its difference to PyTorch.

    Args:
        bundle: what to run.
        data: ``mimo:COUNT[:seed=N]``, COUNT transmissions for every SNR from 8 to 13 dB.
        device: where to run it.
        reference: the PyTorch model, if it is to be compared with.
        progress: called with (done, total, what is being done).

    Raises:
        DataError: malformed ``data``, or the bundle is no such detector.
        DeviceError: the device cannot run it.
    """
    from edgecsi.models import fullycon

    spec = fullycon.parse_spec(data)
    span = fullycon.TEST_SNR_DB[0], fullycon.TEST_SNR_DB[-1]
    received, _ = fullycon.transmit(min(1000, spec.per_epoch), span, np.random.default_rng(spec.seed))
    found = evaluate(bundle, received, data, device=device, reference=reference, progress=progress)
    if progress is not None:
        progress(0, 0, f"counting bit errors on {device.spec}")
    rates = fullycon.error_rates(
        lambda y: np.asarray(device.run(bundle, "full", y)), transmissions=spec.per_epoch, seed=spec.seed
    )
    return replace(found, samples=spec.per_epoch, bit_error_rates=rates)


def evaluate_data(
    bundle: Bundle,
    data: str,
    device: Device,
    samples: int | None = None,
    model: str | None = None,
    weights: str | None = None,
    progress: Progress | None = None,
    calib: str | None = None,
) -> tuple[Evaluation, str]:
    """Evaluate on what a user calls data: channels, the path of a ``.npy``, or ``mimo:COUNT``.

    Args:
        samples: take only the first so many. model, weights: see :func:`reference_model`.
        calib: what the build fitted its recipe to.

    Returns:
        What was found; and why PyTorch was not asked, if it was not.

    Raises:
        DataError: no such data, or it does not fit the bundle.
        BundleError: it was built from other weights than the network has. Others as for :func:`evaluate`.
    """
    note = ""
    tell = progress or (lambda done, total, what: None)
    try:
        reference = reference_model(bundle.manifest, model, weights)
    except UsageError as error:  # the figures on the data do not need it
        reference, note = None, f"not compared with PyTorch: {error.what} ({error.fix})"
    recipe, fp32 = bundle.manifest.model.recipe, None
    if reference is not None and recipe is not None:
        fp32 = reference.fp32
        if reference.recipe != recipe:  # the build applied it
            tell(0, 0, f"applying {recipe}")
            fp32, reference = reference.entries.get("full"), _compressed_again(bundle, reference, calib)
            if reference is None:
                note = (
                    f"the network that {recipe} made in PyTorch is not here: --calib DATA gives it, with the data "
                    "that the build had"
                )
    if data.startswith("mimo:"):
        found = evaluate_detector(bundle, data, device=device, reference=reference, progress=progress)
        return _with_golden(found, bundle, device), note
    x = _read(bundle, reference, data, lambda done, total: tell(done, total, f"reading {data}"), samples)
    found = evaluate(bundle, x, data, device=device, reference=reference, fp32=fp32, progress=progress)
    if reference is not None and bundle.manifest.model.sha256 is None and _wrong(bundle, found):
        _require_weights_of(reference, bundle)
    return _with_golden(found, bundle, device), note


def _compressed_again(bundle: Bundle, model: LoadedModel, calib: str | None) -> LoadedModel | None:
    """What a build made of a network by a recipe that ships; None if that is something else than the bundle has."""
    from edgecsi.compress import recipe as recipes
    from edgecsi.compress.post_training import compressed

    recipe = bundle.manifest.model.recipe
    if recipe not in recipes.list_recipes():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # the build said it
        try:
            again = compressed(model, recipe, calib)
        except EdgecsiError:
            if calib is None:  # it needs data
                return None
            raise
    return again if _has_weights_of(again, bundle) else None


def _has_weights_of(model: LoadedModel, bundle: Bundle) -> bool:
    """Whether a model answers what PyTorch answered when a bundle was built."""
    for name, entry in model.entries.items():
        if name in bundle.manifest.entries and name != "decoder":
            x, y = ([a.reshape(-1, *a.shape[2:]) for a in side] for side in read_golden(bundle, name))
            found = _kept(entry, bundle.manifest.entries[name], answers(entry, x))
            apart = [difference(a, b).max_rel_diff for a, b in zip(found, y, strict=True)]
            if not max(apart) <= verdict.SAME_WEIGHTS:
                return False
    return True


def _require_weights_of(model: LoadedModel, bundle: Bundle) -> None:
    """Refuse a factory's network that is not the one a bundle was built from, which only its answers tell."""
    if not _has_weights_of(model, bundle):
        raise BundleError(
            f"{bundle.manifest.name} was built from other weights than {model.name} has now",
            "what makes the network gives it others each time, or has been changed since",
            "call torch.manual_seed there; or save the weights, and give --weights FILE to build and to eval",
        )


def _with_golden(found: Evaluation, bundle: Bundle, device: Device) -> Evaluation:
    """Without a PyTorch model, the library is held against the answers that PyTorch gave when it was built."""
    if found.differences:
        return found
    differences = {}
    for name in bundle.manifest.entries:
        inputs, expected = (
            [array.reshape(-1, *array.shape[2:]) for array in arrays] for arrays in read_golden(bundle, name)
        )
        found_here = device.run(bundle, name, inputs)
        differences[name] = _worst(found_here if isinstance(found_here, tuple) else (found_here,), expected)
    return replace(found, differences=differences)


def _read(
    bundle: Bundle, reference: LoadedModel | None, data: str, progress: Any, count: int | None
) -> list[NDArray[Any]]:
    """What goes in, `count` samples: the inputs of ``full``, else of ``encoder``, else of the network that makes the
    codewords."""
    entries = bundle.manifest.entries
    whole = entries.get("full") or entries.get("encoder")
    if whole is not None and len(whole.inputs) > 1:
        shapes = {tensor.name: tensor.shape for tensor in whole.inputs}
        found, batch = load_named(data, shapes), samples_of(shapes)
        samples = next(
            len(x) for x, shape in zip(found, shapes.values(), strict=True) if has_samples(shape, shapes)
        )
        calls = min(samples, count or samples) // batch
        return [
            x[: calls * batch]
            if has_samples(shape, shapes)
            else np.repeat(x[None], calls, 0).reshape(-1, *shape[1:])
            for x, shape in zip(found, shapes.values(), strict=True)
        ]
    if whole is not None:
        shape = whole.inputs[0].shape
    elif reference is not None:
        shape = tuple(reference.example_input.shape)
    else:
        raise DataError(
            f"{bundle.path} has only the entries {', '.join(entries)}",
            "channels go into full or encoder; a decoder needs codewords, which only PyTorch could make here",
            "pass --model, or build the bundle with the entry full",
        )
    x = files.load(data, shape=shape[1:], progress=progress)[:count]
    batch = samples_of({"x": shape})
    return [x[: len(x) // batch * batch] if len(x) > batch else x]


def judge(bundle: Bundle, found: Evaluation) -> None:
    """Raise unless a bundle answers as PyTorch does, but for what rounding explains.

    Raises:
        CheckFailed: it does not.
    """
    for name in _wrong(bundle, found):
        raise CheckFailed(
            f"{name} of {bundle.manifest.name} answers wrongly on {found.device}",
            f"it differs from PyTorch by {found.differences[name].max_rel_diff:.3g} of the largest output; "
            f"{_allowed(bundle, name):.3g} is rounding",
            "build it again; if that does not help, please report it with the output of `edgecsi doctor`",
        )


def _wrong(bundle: Bundle, found: Evaluation) -> list[str]:
    """The entries whose answers rounding does not explain."""
    return [name for name, d in found.differences.items() if not d.max_rel_diff <= _allowed(bundle, name)]


def _allowed(bundle: Bundle, entry: str) -> float:
    """How far an entry's answers may be from PyTorch's, relative to the largest."""
    checked = bundle.manifest.check.entries.get(entry)
    quantised = any(described.quantised for described in bundle.manifest.entries.values())
    return verdict.elsewhere(checked.allowed if checked is not None else None, quantised)
