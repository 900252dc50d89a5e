"""``edgecsi experiments``: the figures of the source papers, on our own data."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecsi import disk
from edgecsi.cli.options import output_option
from edgecsi.cli.output import resumable
from edgecsi.errors import UsageError
from edgecsi.results.papers import NAMES, TIMED

if TYPE_CHECKING:
    from edgecsi.results.papers.common import Row


@click.group()
def command() -> None:
    """Reproduce the experiments of the papers behind edgecsi; results are JSON, a table and a figure.

    \b
    Example:
      edgecsi experiments run patterns --quick -o results
    """


@command.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option("--quick", is_flag=True, help="A small part of it, in under 3 minutes.")
@click.option(
    "--latency",
    is_flag=True,
    help=f"Also build each network for this machine and time it; for {', '.join(TIMED)}. The rest of the "
    "results comes from the cache, so do this second, when the machine is quiet.",
)
@output_option(
    "DIR", "Folder of the results  [default: docs/results, or quick-results with --quick].", folder=True
)
def run(name: str, quick: bool, latency: bool, out: Path | None) -> None:
    """Run the experiment NAME and write its results.

    What is finished lies in edgecsi's cache ($EDGECSI_CACHE): a run that was killed goes on with the same command
    line.

    \b
    Example:
      edgecsi experiments run erak --quick -o results
      edgecsi experiments run erak --latency
    """
    from importlib import import_module

    import torch

    from edgecsi.results.papers.common import write

    out = out or Path("quick-results" if quick else "docs/results")
    if quick and (out / f"{name}.json").exists() and not _is_quick(out / f"{name}.json"):
        raise UsageError(
            f"{out} holds the whole {name}",
            "a small part of it would take its place",
            "give another folder with -o",
        )
    if latency and name not in TIMED:
        raise click.UsageError(f"{name} has no latencies; --latency is for {', '.join(TIMED)}")
    torch.set_num_threads(1)
    module = import_module(f"edgecsi.results.papers.{name.replace('-', '_')}")
    with resumable("what is finished is kept"):
        result = module.run(quick, lambda text: click.echo(text, err=True), _time if latency else None)
    options = f"{' --quick' if quick else ''}{' --latency' if latency else ''}"
    for path in write(result, out, f"edgecsi experiments run {name}{options}"):
        click.echo(path)


def _is_quick(path: Path) -> bool:
    """Whether results are of a small part only."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        return "--quick" in json.loads(path.read_text(encoding="utf-8"))["command"]
    return False


def _time(model: str, before: Row | None) -> Row:
    """Build MODEL for this machine and time it, unless the same library was validly timed here before."""

    from edgecsi.bench.bench import run_bench
    from edgecsi.device.local import cpu_name
    from edgecsi.pipeline import BuildOptions, build

    with disk.scratch() as folder:
        options = BuildOptions(model, "host", Path(folder) / "timed", entry="full", name="timed")
        manifest = build(options).manifest
        library = f"{cpu_name()}: {manifest.digest}"
        if before is not None and before["library"] == library and before["validity"] == "valid":
            return before
        found = run_bench(Path(folder) / "timed", quick=True, seconds=1.0)
    assert found.c_call is not None
    return {
        "library": library,
        "library_bytes": manifest.entries["full"].weight_bytes,
        "latency_us": round(found.c_call.median, 2),
        "validity": found.validity.state,
    }
