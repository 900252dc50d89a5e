"""``edgecsi experiments``: the figures of the source papers, on our own data."""

from __future__ import annotations

from pathlib import Path

import click

from edgecsi.compress.experiments import NAMES


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
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("docs/results"),
    show_default=True,
    metavar="DIR",
    help="Folder of the results.",
)
def run(name: str, quick: bool, out: Path) -> None:
    """Run the experiment NAME and write its results.

    \b
    Example:
      edgecsi experiments run erak --quick -o results
    """
    from importlib import import_module

    import torch

    from edgecsi.compress.experiments.common import write

    torch.set_num_threads(1)
    module = import_module(f"edgecsi.compress.experiments.{name.replace('-', '_')}")
    result = module.run(quick, lambda text: click.echo(text, err=True))
    for path in write(result, out, f"edgecsi experiments run {name}{' --quick' if quick else ''}"):
        click.echo(path)
