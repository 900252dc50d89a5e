"""The check of a build: what the library answers, held against PyTorch before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi import bundle as bundles
from edgecsi import disk, several, verdict
from edgecsi import target as targets
from edgecsi.errors import CheckFailed, TargetError
from edgecsi.names import split_batch
from edgecsi.reference import calls_together, outputs_of
from edgecsi.several import check_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from edgecsi.device import Device
    from edgecsi.models.load import LoadedModel

GOLDEN_SAMPLES = 4
CHECK_SAMPLES = 64
EMULATED_SAMPLES = 16  # QEMU takes some 50 times as long
_ROUNDING_SAMPLES = 32
_BUG = "nothing was written; please report this with the model, it is a bug of edgecsi"


@dataclass(frozen=True)
class Draft:
    """A bundle that is not written yet: its manifest, and every other file by name."""

    manifest: bundles.Manifest
    files: Mapping[str, bytes | Path]


def check(
    draft: Draft, model: LoadedModel, target: targets.Target, make: Callable[[targets.Target], Draft]
) -> Draft:
    """Run a draft on this machine, or under QEMU with its target's CPU, and compare every entry with PyTorch.

    Where neither can be, the same model goes through the same passes for this machine, and that is compared: the
    library stays unchecked, but not what was made of the model.

    Args:
        make: the draft of the same model for another target.

    Returns:
        the draft, with what was found in its manifest, and with golden values that hold on every device.

    Raises:
        CheckFailed: an answer is wrong.
    """
    reason = cannot_run(target)
    if not reason:
        with _device("emulate" if target.missing_on_this_cpu() else "local") as device:
            return _compare(draft, model, device)
    try:
        here = targets.host()
    except TargetError:
        return _with_check(draft, bundles.Check("not run", reason))
    with _device("local") as device:
        found = _compare(make(here), model, device).manifest.check
    where = f"{found.data}, the same network with kernels for {here.mcpu}"
    return _with_check(draft, replace(found, status="not run", reason=reason, data=where))


def _with_check(draft: Draft, found: bundles.Check, golden: Mapping[str, bytes] | None = None) -> Draft:
    return Draft(replace(draft.manifest, check=found), {**draft.files, **(golden or {})})


def cannot_run(target: targets.Target) -> str:
    """Why a target's libraries can be run neither here nor under QEMU; empty if they can."""
    missing = target.missing_on_this_cpu()
    if not missing:
        return ""
    if not target.emulate:
        return f"this CPU lacks {', '.join(missing)}"
    names = (f"qemu-{target.arch}", f"qemu-{target.arch}-static")
    return "" if any(map(shutil.which, names)) else "QEMU is missing (apt-get install qemu-user)"


def golden_values(
    model: LoadedModel, entries: Mapping[str, bundles.Entry]
) -> dict[str, dict[str, NDArray[Any]]]:
    """Inputs and PyTorch's outputs of every entry, float32 ``[samples, *shape]``; one sample of a batch entry."""
    import torch

    values: dict[str, dict[str, NDArray[Any]]] = {}
    with torch.no_grad():
        for name, described in entries.items():
            source, batch = split_batch(name)
            if not (_takes_samples(model) and _is_plain(entries[source])):
                given, answers = several.golden(model, source, GOLDEN_SAMPLES if batch == 1 else batch)
                tensors = zip((*described.inputs, *described.outputs), (*given, *answers), strict=True)
                values[name] = {tensor.name: array.reshape(-1, *tensor.shape) for tensor, array in tensors}
                continue
            samples = GOLDEN_SAMPLES if batch == 1 else 1
            channels, _ = check_inputs(model, samples * batch * len(model.example_input))
            x = _inputs(model, source, channels).reshape(samples, *described.inputs[0].shape)
            y = torch.stack([y for sample in x for y in outputs_of(model.entries[source], [sample])])
            values[name] = {described.inputs[0].name: x.numpy(), described.outputs[0].name: y.numpy()}
    return values


def channel_nmse(model: LoadedModel) -> float | None:
    """NMSE in dB of a network on a few of the channels that ship; None if it does not reconstruct channels."""
    import torch

    from edgecsi.channels.files import SAMPLE
    from edgecsi.channels.metrics import nmse_db
    from edgecsi.reference import pytorch

    full = model.entries.get("full")
    if full is None or not _takes_samples(model) or tuple(model.example_input.shape[1:]) != SAMPLE:
        return None
    with torch.no_grad():
        ys = outputs_of(full, [full.example_input])
    if [y.shape for y in ys] != [full.example_input.shape]:
        return None
    x, _ = check_inputs(model, GOLDEN_SAMPLES)
    return nmse_db(x, pytorch(full, x))


@contextmanager
def _device(spec: str) -> Iterator[Device]:
    from edgecsi.device import open_device

    with closing(open_device(spec)) as device:
        yield device


def _compare(draft: Draft, model: LoadedModel, device: Device) -> Draft:
    from edgecsi.evaluate import evaluate

    manifest = draft.manifest
    if not (_takes_samples(model) and all(map(_is_plain, manifest.entries.values()))):
        return _compare_several(draft, model, device)
    x, data = check_inputs(model, EMULATED_SAMPLES if device.spec == "emulate" else CHECK_SAMPLES)
    with disk.scratch(runs=True) as folder:
        trial = bundles.write_bundle(folder / manifest.name, manifest, draft.files)
        found = evaluate(trial, x, data, device=device, reference=model, fp32=model.fp32)
        differences = dict(found.differences)
        for name in manifest.entries:
            if split_batch(name)[1] > 1:
                (given,), (expected,) = bundles.read_golden(trial, name)
                y = device.run(trial, name, given.reshape(-1, *given.shape[2:]))
                differences[name] = verdict.difference(
                    np.asarray(y), expected.reshape(-1, *expected.shape[2:])
                )
        entries = {}
        for name, difference in differences.items():
            full = name == "full"
            entries[name] = bundles.EntryCheck(
                difference.max_abs_diff, difference.max_rel_diff,
                _known(found.nmse_db) if full else None, _known(found.nmse_db_pytorch) if full else None,
                _allowed(trial, name, difference, model, x, device), _known(found.nmse_db_fp32) if full else None,
            )  # fmt: skip
        golden = _settled(trial, device, entries)
    off = verdict.decibels_apart(found.nmse_db, found.nmse_db_pytorch)
    if not off <= verdict.NMSE_DB:
        raise CheckFailed(
            f"{manifest.name} for {manifest.target.id} loses accuracy",
            f"its NMSE differs from PyTorch's by {off:.3f} dB",
            _BUG,
        )
    check = bundles.Check("passed", "", f"{data} on {device.spec}", len(x), entries)
    return _with_check(draft, check, golden)


def _known(decibels: float | None) -> float | None:
    """An NMSE that can be written: a network that gives back its input has one of minus infinity."""
    return decibels if decibels is not None and np.isfinite(decibels) else None


def _is_plain(entry: bundles.Entry) -> bool:
    """Whether it maps one float32 tensor of samples to one."""
    tensors = (*entry.inputs, *entry.outputs)
    return len(tensors) == 2 and all(t.dtype == "float32" and t.shape for t in tensors)


def _takes_samples(model: LoadedModel) -> bool:
    """Whether a whole network takes one tensor of samples, real numbers."""
    x = model.example_input
    return not model.more_inputs and x.is_floating_point() and x.ndim > 0


def _compare_several(draft: Draft, model: LoadedModel, device: Device) -> Draft:
    """Entries of several tensors, or of integers: every output against PyTorch's, call by call."""
    from edgecsi import rounding

    manifest = draft.manifest
    count = EMULATED_SAMPLES if device.spec == "emulate" else CHECK_SAMPLES
    entries = {}
    with disk.scratch(runs=True) as folder:
        trial = bundles.write_bundle(folder / manifest.name, manifest, draft.files)
        for name, described in manifest.entries.items():
            of, batch = split_batch(name)
            given, wanted = several.golden(model, of, -(-count // batch) * batch)
            samples = [x.reshape(-1, *x.shape[2:]) for x in given]
            answers = device.run(trial, name, samples)
            outputs = answers if isinstance(answers, tuple) else (answers,)
            found = [y.reshape(expected.shape) for y, expected in zip(outputs, wanted, strict=True)]
            apart = [
                verdict.difference_but_ties(y, expected) for y, expected in zip(found, wanted, strict=True)
            ]
            number = int(np.argmax([d.max_rel_diff for d in apart]))
            worst = apart[number]
            source = model.entries[of]
            calls = several.as_given(source, given)
            least = verdict.FP32
            if described.quantised:
                least = rounding.allowed(source.module, calls[:_ROUNDING_SAMPLES])
            bar: float | None = least
            if not worst.max_rel_diff <= least:
                bar = _explained(source.module, calls, found, least)
            if bar is None:
                _refuse_ties(source.module, calls, found)
                raise CheckFailed(
                    f"{described.outputs[number].name} of {name} of {manifest.name} for {manifest.target.id} is wrong",
                    f"it differs from PyTorch by {worst.max_rel_diff:.1e} of the largest output "
                    f"({least:.0e} is allowed)",
                    _BUG,
                )
            entries[name] = bundles.EntryCheck(worst.max_abs_diff, worst.max_rel_diff, None, None, bar)
        golden = _settled(trial, device, entries)
    data = f"channels or normally distributed numbers on {device.spec}"
    return _with_check(draft, bundles.Check("passed", "", data, count, entries), golden)


def _settled(
    trial: bundles.Bundle, device: Device, checks: Mapping[str, bundles.EntryCheck]
) -> dict[str, bytes]:
    """Golden values with the library's own answer for numbers that the check left to rounding (of equal values, say,
    the library may name another first than PyTorch): a device runs the same code, and is held to all of them.

    They are among what was checked. Nothing where PyTorch's answers hold as they are.
    """
    values: dict[str, dict[str, NDArray[Any]]] = {}
    settled = False
    for name, described in trial.manifest.entries.items():
        inputs, outputs = bundles.read_golden(trial, name)
        found, allowed = checks[name], checks[name].allowed or verdict.FP32
        whole = any((y == np.round(y)).all() for y in outputs)  # of which the check lets a few ties pass
        if whole or not found.max_rel_diff <= allowed:
            answers = device.run(trial, name, [x.reshape(-1, *x.shape[2:]) for x in inputs])
            for number, y in enumerate(answers if isinstance(answers, tuple) else (answers,)):
                wanted = outputs[number]
                outputs[number] = verdict.with_ties_of(np.asarray(y).reshape(wanted.shape), wanted, allowed)
                settled |= not np.array_equal(outputs[number], wanted, equal_nan=True)
        tensors = zip((*described.inputs, *described.outputs), (*inputs, *outputs), strict=True)
        values[name] = {tensor.name: array for tensor, array in tensors}
    return {"golden.npz": bundles.golden_npz(trial.manifest.entries, values)} if settled else {}


def _allowed(
    trial: bundles.Bundle,
    entry: str,
    found: verdict.Difference,
    model: LoadedModel,
    x: NDArray[Any],
    device: Device,
) -> float:
    """The bar that an entry's difference has passed; raises CheckFailed if it passes none."""
    from edgecsi import rounding

    manifest = trial.manifest
    source, _ = split_batch(entry)
    module = model.entries[source].module
    least = verdict.FP32
    if manifest.entries[entry].quantised:
        few = _inputs(model, source, x[:_ROUNDING_SAMPLES])
        least = rounding.allowed(module, calls_together(model.entries[source], [few.numpy()]))
    if found.max_rel_diff <= least:
        return least
    rows = manifest.entries[entry].inputs[0].shape[0]
    calls = [(given,) for given in _inputs(model, source, x[: len(x) // rows * rows]).split(rows)]
    ys = np.stack([np.asarray(device.run(trial, entry, given.numpy())) for (given,) in calls])
    allowed = _explained(module, calls, [ys], least)
    if allowed is not None:
        return allowed
    _refuse_ties(module, calls, [ys])
    raise CheckFailed(
        f"{entry} of {manifest.name} for {manifest.target.id} is wrong",
        f"it differs from PyTorch by {found.max_rel_diff:.1e} of the largest output ({least:.0e} is allowed)",
        _BUG,
    )


def _explained(
    module: nn.Module, calls: Sequence[Sequence[Tensor]], ys: Sequence[NDArray[Any]], least: float
) -> float | None:
    """The bar that a library's answers pass if rounding explains how far they are from PyTorch's, else None.

    Asked when the two are apart: in a network that amplifies rounding, computes in half precision, or decides by
    values that lie on an edge, PyTorch's part of the difference is as large as the library's, and neither is wrong.

    Args:
        calls: the inputs of each call. ys: what the library answers, one array an output, ``[calls, *shape]``.
        least: what is allowed without that.
    """
    import torch

    from edgecsi import rounding
    from edgecsi.lower.export import tensors_of

    coarse = rounding.coarseness(module, calls[0])
    bars: list[float] = []
    for number, given in enumerate(calls):
        with torch.no_grad():
            wanted = tensors_of(module(*(x.clone() for x in given)))
        for y, expected, moved in zip(ys, wanted, rounding.moved(module, given), strict=True):
            numbers = expected.float().numpy()
            bar = verdict.within_rounding(y[number].reshape(numbers.shape), numbers, moved, least, coarse)
            if bar is None:
                return None
            bars.append(bar)
    return max(bars)


def _refuse_ties(module: nn.Module, calls: Sequence[Sequence[Tensor]], ys: Sequence[NDArray[Any]]) -> None:
    """Raise ModelError if only the order of equal values makes the answers `ys` others than PyTorch's."""
    import torch

    from edgecsi.lower.export import refuse_ties, tensors_of

    with torch.no_grad():
        shapes = [t.shape for t in tensors_of(module(*(x.clone() for x in calls[0])))]
        answers = [
            [torch.from_numpy(np.array(y[number])).reshape(s) for y, s in zip(ys, shapes, strict=True)]
            for number in range(len(calls))
        ]
        refuse_ties(module, calls, answers)


def _inputs(model: LoadedModel, entry: str, x: NDArray[Any]) -> Any:
    """What an entry takes where the model takes `x`, as a tensor: a decoder takes the encoder's codewords."""
    import torch

    from edgecsi.reference import pytorch

    return torch.from_numpy(pytorch(model.entries["encoder"], x) if entry == "decoder" else x)
