"""``edgecsi bench``: how fast a bundle is."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecsi import disk
from edgecsi.cli.options import (
    can_be_written,
    complete_bundles,
    complete_engines,
    device_option,
    entry_option,
    folder_can_be_written,
    json_option,
)
from edgecsi.cli.output import folded, note, progress, report, room
from edgecsi.errors import CheckFailed, UsageError
from edgecsi.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from edgecsi.bench.result import Result
    from edgecsi.bundle import Bundle, Manifest


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False, shell_complete=complete_bundles)
@entry_option("encoder, decoder or full  [default: full, or the only one].")
@device_option(
    "local, ssh://HOST, rpc+ssh://HOST, rpc://HOST:PORT, tracker://HOST:PORT/KEY, or emulate (counts instructions)."
)
@click.option(
    "--against",
    multiple=True,
    metavar="ENGINES",
    shell_complete=complete_engines,
    help="onnxruntime, openvino, openvino-bf16, litert, executorch, torch; several with commas.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Measure samples a second instead, every thread taking N at once.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="T",
    help="Threads for --batch.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 3600),
    metavar="S",
    help="Measure every engine for S seconds  [default: 10, or 0.5 with --quick].",
)
@click.option(
    "--deadline",
    metavar="TIME[:METRIC]",
    help="Exit with 6 if calls take longer: 0.5ms, 0.5ms:p99, 80us:median  [default metric: p99].",
)
@click.option("--rate", metavar="N/s", help="Also call N times a second, asleep in between, as reports come.")
@click.option(
    "--sustained", metavar="TIME", help="Also watch for so long whether it stays as fast: 30m, 90s."
)
@click.option(
    "--meter",
    type=click.Path(path_type=Path),
    help="File of the device's /sys that counts energy (energy_uj) or shows power (power1_input), read with --sustained.",
)
@click.option("--cpu", type=click.IntRange(0, 4095), metavar="N", help="Keep to CPU N of an ssh:// device.")
@click.option(
    "--cross-check",
    is_flag=True,
    help="On an ssh:// device, measure through TVM's RPC as well, and what a call that does nothing costs.",
)
@click.option(
    "--self-check",
    is_flag=True,
    help="Also measure the library against itself, and against the C program of its bundle.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    callback=folder_can_be_written,
    metavar="FOLDER",
    help="Add the result to a folder of results, for edgecsi report and compare.",
)
@click.option(
    "--repeat",
    type=click.IntRange(2, 100),
    metavar="N",
    help="Measure N times, each in a process of its own, and say how far the runs lie apart.",
)
@click.option("--quick", is_flag=True, help="Measure less; the report says so.")
@click.option("--model", help="PyTorch model for the other engines, where the bundle's is none of the zoo.")
@click.option("--weights", metavar="FILE", help="Weights of the model, if the bundle was built with others.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="PNG",
    callback=can_be_written,
    help="Draw the distributions.",
)
@click.option(
    "--limits", is_flag=True, help="Measure no bundle, but what this machine's core can do at best."
)
@json_option
def command(
    bundle: Path | None,
    entry: str | None,
    device: str,
    against: tuple[str, ...],
    batch: int | None,
    threads: int,
    seconds: float | None,
    quick: bool,
    model: str | None,
    weights: str | None,
    plot: Path | None,
    limits: bool,
    deadline: str | None,
    rate: str | None,
    sustained: str | None,
    meter: Path | None,
    cpu: int | None,
    cross_check: bool,
    self_check: bool,
    save: Path | None,
    repeat: int | None,
    json_to: str | None,
) -> None:
    """Measure the latency of BUNDLE: one thread, one call a sample, percentiles with confidence intervals.
    With --batch, measure its throughput.

    With --against, other engines run the same network in turns with it; where edgecsi compressed it, the
    uncompressed one in fp32. On `emulate` there are no latencies, but the exact number of instructions.

    \b
    Example:
      edgecsi bench csinet-host --against onnxruntime --json bench.json
      edgecsi bench csinet-host --entry decoder --batch 64 --threads 2
      edgecsi bench csinet-host --entry encoder --deadline 0.5ms:p99
      edgecsi bench csinet-pi --device pi4 --sustained 30m --save history
      edgecsi bench csinet-pi --device ssh://pi@raspberrypi --batch 8 --threads 4
      edgecsi bench --limits
    """
    _refuse_what_does_not_fit(
        device, batch, threads, cpu, cross_check, repeat, bool(rate or sustained or self_check)
    )
    if limits is (bundle is not None):
        raise click.UsageError("give either a BUNDLE or --limits")
    if bundle is None:
        _limits(json_to)
        return
    from edgecsi.bench.bench import BrokenOff, run_bench
    from edgecsi.bench.competitors import fp32_model, require_installed
    from edgecsi.bench.deadline import held, parse_limit
    from edgecsi.bench.measure import FULL, QUICK
    from edgecsi.bench.observe import Wanted, observe, refuse, repeatable
    from edgecsi.bundle import read_bundle
    from edgecsi.device import open_device

    limit = None if deadline is None else parse_limit(deadline)
    wanted = Wanted(
        rate=None if rate is None else _number(rate, r"(\d+(?:\.\d+)?)(?:/s)?", "a rate such as 200/s"),
        sustained=None if sustained is None else _seconds(sustained),
        meter=meter,
        self_check=self_check,
    )
    if meter is not None and sustained is None:
        raise click.UsageError("--meter needs --sustained: the energy of a few calls is not known")

    def load_module(manifest: Manifest) -> nn.Module:
        return fp32_model(manifest, model, weights)

    entry = read_bundle(bundle).chosen(entry)
    engines = [name.strip() for name in ",".join(against).split(",") if name.strip()]
    require_installed(engines)
    if batch is not None and batch > 1:
        _say_calls(read_bundle(bundle), entry, batch)
    broken: BrokenOff | None = None
    again: list[Result] = []
    with contextlib.closing(open_device(device, cpu=cpu)) as opened, progress("measuring") as update:
        protocol = QUICK if quick else FULL
        refuse(opened, wanted, seconds or protocol.seconds, batch)
        try:
            again = _runs(repeat - 1, update) if repeat is not None else []
            result = run_bench(
                bundle,
                entry=entry,
                device=opened,
                quick=quick,
                seconds=seconds,
                batch=batch,
                threads=threads,
                against=engines,
                load_module=load_module,
                cross_check=cross_check,
                progress=update,
            )
            result = observe(result, bundle, opened, wanted, update)
        except BrokenOff as error:
            broken, result = error, error.result
    if again and broken is None:
        result = _middle([*again, result])
    result = repeatable(result, bundle, _arguments(click.get_current_context()))
    undecided: UsageError | None = None
    if limit is not None:
        try:
            result = replace(result, deadline=held(result, limit))
        except UsageError as error:  # too few calls, say: what was measured is written all the same
            undecided = error
    _show(result, json_to, save, plot)
    if broken is not None:
        raise broken
    if undecided is not None:
        raise undecided
    _require_deadline(result)


def _refuse_what_does_not_fit(
    device: str,
    batch: int | None,
    threads: int,
    cpu: int | None,
    cross_check: bool,
    repeat: int | None,
    observed: bool,
) -> None:
    """Options that mean nothing together; ``observed``: whether more than latencies is asked for."""
    if threads > 1 and batch is None:
        raise click.UsageError("--threads needs --batch: a single inference runs on one thread")
    if cpu is not None and threads > 1:
        raise click.UsageError("--cpu keeps to one CPU, --threads needs several")
    if cross_check and batch is not None:
        raise click.UsageError("--cross-check compares single calls, --batch measures others")
    if repeat is not None and (batch or observed or cross_check or device == "emulate"):
        raise click.UsageError("--repeat compares plain latencies: leave --batch, --rate and their like away")


def _show(result: Result, json_to: str | None, save: Path | None, plot: Path | None) -> None:
    """Prints and writes a result, wherever it was asked for."""
    from edgecsi.bench.result import to_json
    from edgecsi.report.text import table

    if json_to == "-":
        click.echo(to_json(result), nl=False)
    else:
        click.echo(folded(table(result, room())))
        if json_to is not None:
            disk.write(Path(json_to), to_json(result))
    if save is not None:
        _save(result, save)
    if plot is not None:
        from edgecsi.report.plot import plot as draw

        draw(result, plot)


def _require_deadline(result: Result) -> None:
    if (missed := result.deadline) is not None and not missed.met:
        raise CheckFailed(
            f"{result.bundle.name} misses its deadline: {missed.metric} is {missed.found:,.1f} µs",
            f"at most {missed.limit:,.1f} µs are allowed",
            "edgecsi report shows where the time goes",
        )


def _runs(count: int, update: Progress) -> list[Result]:
    """The same command so many times, each in a process of its own."""
    from edgecsi.bench.result import read_result

    context = click.get_current_context()
    arguments = _arguments(context, but=("repeat", "deadline"))
    found = []
    with disk.scratch() as folder:
        for number in range(count):
            update(number, count + 1, f"run {number + 1} of {count + 1}")
            path = folder / f"{number}.json"
            command = [sys.executable, "-m", "edgecsi", "bench", *arguments, "--quiet", "--json", str(path)]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                click.echo(done.stderr.rstrip(), err=True)
                context.exit(done.returncode)
            found.append(read_result(path))
    return found


def _middle(results: Sequence[Result]) -> Result:
    """The run with the middle median, and the medians of all."""
    from edgecsi.bench.behaviour import Runs

    ordered = sorted(results, key=lambda result: result.engines[0].warm.median)
    names = [engine.name for engine in ordered[0].engines]
    medians = {name: tuple(r.engine(name).warm.median for r in results) for name in names}
    return replace(ordered[len(ordered) // 2], runs=Runs(medians))


def _say_calls(bundle: Bundle, entry: str, batch: int) -> None:
    """What a batch is, if the bundle has no entry that takes it at once."""
    sizes = bundle.batch_entries(entry)
    largest = max((size for size in sizes if size <= batch), default=batch)
    if largest != batch:
        calls = f"each batch is {-(-batch // largest)} calls of {sizes[largest]}"
        fix = f" (build --batch {batch // min(sizes)})" if batch % min(sizes) == 0 else ""
        note(f"{bundle.manifest.name} has no entry that takes {batch} at once: {calls}{fix}")


def _save(result: Result, folder: Path) -> None:
    """Adds a result to a folder; a file of another run is never replaced."""
    from edgecsi.bench.result import to_json

    when = re.sub(r"[^0-9T]", "", result.after.date.partition("+")[0])
    name = f"{when}-{result.bundle.name}-{result.entry}"
    for number in itertools.count(1):
        path = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        if not path.exists():
            disk.write(path, to_json(result))
            return


def _arguments(context: click.Context, but: Sequence[str] = ()) -> list[str]:
    """The options that were given, as one would type them again."""
    given = [str(context.params["bundle"])]
    for option in context.command.params:
        name, value = option.name or "", context.params.get(option.name or "")
        if name == "bundle" or not isinstance(option, click.Option):
            continue
        source = context.get_parameter_source(name)
        if source is click.core.ParameterSource.COMMANDLINE and name not in ("json_to", "plot", "save", *but):
            value = ",".join(value) if isinstance(value, tuple) else str(value)
            given += [option.opts[0]] if option.is_flag else [option.opts[0], value]
    return given


def _number(text: str, pattern: str, words: str) -> float:
    found = re.fullmatch(pattern, text.strip())
    if not found or float(found[1]) <= 0:
        raise click.UsageError(f"{text!r} is not {words}")
    return float(found[1])


def _seconds(text: str) -> float:
    """``30m``, ``90s``, ``1h`` in seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    words = "a time such as 30m or 90s"
    return _number(text, r"(\d+(?:\.\d+)?)[smh]", words) * units[text.strip()[-1]]


def _limits(json_to: str | None) -> None:
    from edgecsi.bench.limits import measure_limits
    from edgecsi.report.text import limits_table

    found = measure_limits()
    report(found, lambda: limits_table(found), json_to)
