"""The public functions: what ``edgecsi.build`` and its like are, and what the verbs of the command line call.

All take keyword arguments with the names of the verbs' options, return typed results, and raise the errors of
`edgecsi.errors`. They print nothing. Importing this file is cheap: PyTorch and TVM come when a function needs them.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from edgecsi.errors import EdgecsiError, UsageError
from edgecsi.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from edgecsi.bench.result import Result
    from edgecsi.bundle import Loaded, Manifest
    from edgecsi.compress.run import CompressResult
    from edgecsi.deploy import Deployed
    from edgecsi.evaluate import Evaluation
    from edgecsi.pipeline import BuildResult
    from edgecsi.report.content import Report
    from edgecsi.training.train import TrainResult
    from edgecsi.tune.result import TuneResult

P = ParamSpec("P")
T = TypeVar("T")
_LEAST = {
    "batch": 1, "batches": 2, "threads": 1, "samples": 1, "trials": 1, "keep": 2, "seed": 0, "epochs": 1,
    "build_number": 0, "seconds": 0.01, "minutes": 0.01, "deadline": 0.1,
}  # fmt: skip
"""Of arguments that are numbers, as for the options of the same names."""
_OPTION = re.compile(
    r"\bedgecsi [a-z]+ [^,;:()`]*|"  # a command stays one
    r"(?<![`\w-])(?:--([a-z][a-z-]+)|-(o))(?: [A-Z][A-Z./:]*\b)?(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)"
)


def _in_python(function: Callable[P, T]) -> Callable[P, T]:
    """Errors name arguments instead of options of the command line: ``weights=`` for ``--weights FILE``."""

    parameters = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **named: P.kwargs) -> T:
        for name, value in parameters.bind(*arguments, **named).arguments.items():
            for number in value if name == "batches" else (value,):
                if name in _LEAST and number is not None and not number >= _LEAST[name]:
                    raise UsageError(
                        f"{name}={value} makes no sense", f"the least is {_LEAST[name]}", "give more"
                    )
        try:
            return function(*arguments, **named)
        except EdgecsiError as error:
            error.what, error.why, error.fix = (_words(t) for t in (error.what, error.why, error.fix))
            error.args = (error.what,)
            raise

    return wrapped


def _words(text: str) -> str:
    def named(found: re.Match[str]) -> str:
        if not found[1] and not found[2]:
            return found[0]
        return ("out" if found[2] else found[1].replace("-", "_")) + "="

    return _OPTION.sub(named, text)


@_in_python
def build(
    model: str,
    target: str,
    *,
    out: str | Path | None = None,
    entry: str | None = None,
    keep_output: str | Sequence[str] = (),
    weights: str | None = None,
    recipe: str | None = None,
    calib: str | None = None,
    input_shape: Sequence[int] | None = None,
    batches: Sequence[int] = (),
    name: str | None = None,
    random_weights: bool = False,
    records: Sequence[str | Path] | None = (),
    sign: str | Path | None = None,
    build_number: int | None = None,
    dry_run: bool = False,
    dump_ir: str | Path | None = None,
    progress: Progress = lambda done, total, what: None,
) -> BuildResult:
    """Compile a model for a target, check it against PyTorch, and write the bundle.

    Args:
        model: zoo name, ``package.module:factory``, ``file.py:factory`` or a ``.safetensors`` of :func:`compress`.
        target: name (:func:`targets`) or file.
        keep_output: of entries with several outputs, build this one, or these, and no others; by default all. The
            other arguments are those of :class:`edgecsi.pipeline.BuildOptions`.

    Raises:
        InputError: model, weights, data, target, recipe or folder cannot be used. ToolchainError: compiling failed.
        CheckFailed: the library does not answer what PyTorch answers; nothing is written.
    """
    from edgecsi import pipeline

    options = pipeline.BuildOptions(
        model=model,
        target=target,
        out=None if out is None else Path(out),
        entry=entry,
        outputs=(keep_output,) if isinstance(keep_output, str) else tuple(keep_output),
        weights=weights,
        recipe=recipe,
        calib=calib,
        input_shape=None if input_shape is None else tuple(input_shape),
        dump_ir=None if dump_ir is None else Path(dump_ir),
        name=name,
        batches=tuple(sorted(set(batches))),
        dry_run=dry_run,
        allow_random=random_weights,
        records=None if records is None else tuple(map(Path, records)),
        sign=None if sign is None else Path(sign),
        build_number=build_number,
    )
    return pipeline.build(options, progress)


@_in_python
def compress(
    model: str,
    recipe: str | Path,
    data: str | Path | None,
    out: str | Path,
    *,
    weights: str | None = None,
    seed: int = 0,
    batch: int = 100,
    resume: bool = True,
    accept_loss: bool = False,
) -> CompressResult:
    """Prune, quantise, cluster, factor or distil a network by a recipe; arguments and errors as for
    :func:`edgecsi.compress.run.compress`."""
    from edgecsi.compress.run import compress as run

    return run(
        model,
        recipe,
        data,
        out,
        weights=weights,
        seed=seed,
        batch=batch,
        resume=resume,
        accept_loss=accept_loss,
    )


@_in_python
def train(
    model: str,
    data: str | Path,
    out: str | Path,
    *,
    epochs: int = 100,
    lr: float = 1e-3,
    batch: int = 100,
    seed: int = 0,
    init: str | None = None,
    freeze: Sequence[str] = (),
    resume: bool = True,
    threads: int | None = None,
) -> TrainResult:
    """Train a network of the zoo; arguments and errors as for :func:`edgecsi.training.train.train`."""
    from edgecsi.training.train import train as run

    return run(
        model, str(data), Path(out), epochs=epochs, lr=lr, batch=batch, seed=seed, init=init, freeze=tuple(freeze),
        resume=resume, threads=threads,
    )  # fmt: skip


@_in_python
def evaluate(
    bundle: str | Path,
    data: str | Path = "test",
    *,
    samples: int | None = None,
    device: str = "local",
    model: str | None = None,
    weights: str | None = None,
    calib: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """How well a bundle does on channels, and how far it is from PyTorch.

    Args:
        bundle: its folder.
        data: channels (``test`` is the shipped set), ``.npy`` of what the network takes, or ``mimo:COUNT``.
        samples: take only the first so many.
        device: ``local``, ``emulate``, ``ssh://HOST``, …
        model, weights: the PyTorch model to compare with, where the bundle's is none of the zoo. calib: what the build
            was given, to make its network again.

    Raises:
        CheckFailed: it differs from PyTorch by more than rounding can explain. BundleError, DataError, DeviceError.
    """
    from edgecsi.bundle import read_bundle
    from edgecsi.device import open_device
    from edgecsi.evaluate import evaluate_data, judge

    found = read_bundle(Path(bundle))
    with closing(open_device(device)) as opened:
        result, _ = evaluate_data(found, str(data), opened, samples, model, weights, progress, calib)
    judge(found, result)
    return result


@_in_python
def bench(
    bundle: str | Path,
    *,
    entry: str | None = None,
    device: str = "local",
    against: Sequence[str] = (),
    quick: bool = False,
    seconds: float | None = None,
    batch: int | None = None,
    threads: int = 1,
    model: str | None = None,
    weights: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measure a bundle, alone or in turns with other engines.

    Args:
        bundle: its folder.
        against: ``onnxruntime``, ``openvino``, ``openvino-bf16``, ``litert``, ``executorch``, ``torch``.
        model, weights: the PyTorch model for these, where the bundle's is none of the zoo. The other arguments are
            those of :func:`edgecsi.bench.bench.run_bench`.

    Raises:
        CheckFailed: a wrong answer is not timed. BundleError, DeviceError, UsageError.
    """
    from edgecsi.bench.bench import run_bench
    from edgecsi.bench.competitors import fp32_model, require_installed

    require_installed(against)

    def load_module(manifest: Manifest) -> nn.Module:
        return fp32_model(manifest, model, weights)

    return run_bench(
        bundle, entry=entry, device=device, quick=quick, seconds=seconds, against=against, batch=batch,
        threads=threads, load_module=load_module, progress=progress,
    )  # fmt: skip


@_in_python
def deploy(
    bundle: str | Path,
    device: str,
    *,
    root: str | None = None,
    keep: int = 3,
    allowed_signers: str | Path | None = None,
    downgrade: bool = False,
    deadline: float = 20.0,
    dry_run: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> Deployed:
    """Copy a bundle to a device, prove it there with its golden values, and activate it in one step.

    Args:
        bundle: its folder.
        device: ``ssh://[user@]host[:port]``, a name from a ``devices.toml``, or ``local``.
        root: folder of all bundles there; by default ``~/.edgecsi/bundles``.
        keep: how many releases stay there, the active and the previous one among them.
        allowed_signers: refuse a bundle that nobody in this file has signed, before anything is copied.
        downgrade: allow a lower build number than the active one's.
        deadline: seconds that an entry's trial run may take there.
        dry_run: look, and change nothing.

    Raises:
        BundleError: it is damaged, not signed, or older than what is active. DeviceError: the device cannot run it,
            cannot be reached, has no room, or refused a step. CheckFailed: it answered wrongly there. What was active
            is active still, in each of these cases.
    """
    from edgecsi.bundle import read_bundle, signature
    from edgecsi.deploy import Options, destination
    from edgecsi.deploy import deploy as run

    found = read_bundle(Path(bundle))
    if allowed_signers is not None:
        signature.verify(found, Path(allowed_signers))
    there = destination(device, root)
    options = Options(
        there.root, there.folder, keep, deadline, lease=deadline + 20, downgrade=downgrade, dry_run=dry_run
    )
    with closing(there.connection):
        return run(found, there.connection, options, progress)


@_in_python
def tune(
    model: str,
    target: str,
    *,
    device: str | Sequence[str] = "local",
    entry: str | None = None,
    weights: str | None = None,
    random_weights: bool = False,
    recipe: str | None = None,
    calib: str | None = None,
    input_shape: Sequence[int] | None = None,
    batches: Sequence[int] = (),
    trials: int = 64,
    minutes: float | None = None,
    recheck: bool = False,
    records: str | Path | None = None,
    allow: Sequence[str] = (),
    max_loss: float = 0.1,
    data: str = "test",
    save_recipe: str | Path | None = None,
    progress: Progress = lambda done, total, what: None,
) -> TuneResult:
    """Measure on a device which kernels and knobs are best for a model's layers, and keep that for the next build.

    Arguments and errors as for :func:`edgecsi.tune.network.tune`. With ``allow`` (of ``f16``, ``int8``, ``int16``) layers
    may have fewer bits, as long as that costs no more than ``max_loss`` dB on ``data``; ``save_recipe`` is the file that
    then says which, for building, see :func:`edgecsi.tune.precision.tune_with`.
    """
    from edgecsi.tune.network import tune as run
    from edgecsi.tune.precision import tune_with

    options: dict[str, Any] = {
        "device": device, "entry": entry, "weights": weights, "calib": calib, "input_shape": input_shape,
        "allow_random": random_weights, "batches": sorted(set(batches)), "trials": trials, "minutes": minutes,
        "records": None if records is None else Path(records), "progress": progress,
    }  # fmt: skip
    if not allow:
        return run(model, target, recipe=recipe, recheck=recheck, **options)
    if recipe is not None or recheck or save_recipe is None:
        raise UsageError(
            "allow= goes with save_recipe=, and with neither recipe= nor recheck=",
            "it searches, and what it finds is a recipe",
            "name a file to write that to, and leave the others out",
        )
    return tune_with(
        model, target, allow=allow, max_loss_db=max_loss, data=data, recipe_to=Path(save_recipe), **options
    )


@_in_python
def report(
    results: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    title: str | None = None,
    baseline: str | None = None,
) -> Report:
    """One page of one or many results: a file that loads nothing and works without scripts.

    Args:
        results: files of ``edgecsi bench --json``, or folders of them.
        out: the page, HTML; by default none is written.
        title: instead of the name of what was measured.
        baseline: an engine, or one of the results, that the others are held against.

    Raises:
        DataError: something is no result, or broken. UsageError: nothing is called ``baseline``.
    """
    from edgecsi import disk
    from edgecsi.report.html import html
    from edgecsi.report.make import make_report
    from edgecsi.report.read import read_shown

    several = [results] if isinstance(results, str | Path) else results
    made = make_report(read_shown([Path(path) for path in several]), title=title, baseline=baseline)
    if out is not None:
        disk.write(Path(out), html(made))
    return made


@_in_python
def load(path: str | Path, *, allowed_signers: str | Path | None = None) -> Loaded:
    """A bundle's library, ready to be called; needs numpy alone. See :func:`edgecsi.bundle.loaded.load`."""
    from edgecsi.bundle.loaded import load as run

    return run(path, allowed_signers=allowed_signers)


def targets() -> list[str]:
    """Names of the boards and CPUs that can be compiled for."""
    from edgecsi import target

    return target.list_targets()


def models() -> list[str]:
    """Names of the zoo: networks, and the compressed ones that ship (``csinet-cr4+int8-static``)."""
    from edgecsi.models import registry

    return [*(info.name for info in registry.list_models()), *registry.list_compressed()]
