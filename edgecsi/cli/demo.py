"""``edgecsi demo``: the whole way once."""

from __future__ import annotations

from pathlib import Path

import click

from edgecsi.cli.options import output_option
from edgecsi.cli.output import progress, say


@click.command()
@output_option(
    "DIR", "Where to put the bundles and reports.", default=Path("demo"), folder=True, show_default=True
)
def command(out: Path) -> None:
    """Build CsiNet for this machine and the Raspberry Pi, evaluate both, and time it against ONNX Runtime.

    The Raspberry Pi's library is run under QEMU, if that is installed.

    \b
    Example:
      edgecsi demo
    """
    from edgecsi.demo import run_demo

    with progress("demo") as update:
        host, *others = run_demo(out, say, update)
    click.echo("\nLook at:")
    for path in (host, *others):
        click.echo(f"  {path}")
    click.echo(f"\nNext: edgecsi inspect {host} --layers, or {host}/example")
