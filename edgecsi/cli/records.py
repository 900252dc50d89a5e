"""``edgecsi records``: what tuning measured, looked at, joined and handed on."""

from __future__ import annotations

from pathlib import Path

import click

from edgecsi import disk
from edgecsi.cli.options import json_option, output_option
from edgecsi.cli.output import as_json, columns, report

_FILES = click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))


@click.group()
def command() -> None:
    """What `edgecsi tune` measured: list, merge, export and prune records.

    \b
    Example:
      edgecsi records list
      edgecsi records merge pi-a.jsonl pi-b.jsonl -o pi.jsonl
    """


@command.command("list")
@_FILES
@click.option("--all", "everything", is_flag=True, help="Every trial, not only what was chosen.")
@json_option
def list_(files: tuple[Path, ...], everything: bool, json_to: str | None) -> None:
    """List the records of FILES; without any, those that ship and your own.

    \b
    Example:
      edgecsi records list --all
    """
    from edgecsi.kernels.records import all_files, read_records

    found = read_records(files or all_files())
    shown = [r for r in found.lines if everything or r.kind == "choice"]
    rows = [
        (r.id, r.target, r.cpu, r.layer, r.kernel, r.us, r.default_us, r.means, r.date[:10]) for r in shown
    ]
    head = ("record", "target", "CPU", "layer", "kernel", "µs", "default", "how", "date")
    torn = f"\n\n{found.torn} line(s) could not be verified and count for nothing" if found.torn else ""
    report(shown, lambda: (columns(head, rows) if rows else "no records: see `edgecsi tune`") + torn, json_to)


@command.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@output_option("FILE", required=True)
def merge(files: tuple[Path, ...], out: Path) -> None:
    """Join FILES into one, each record once.

    \b
    Example:
      edgecsi records merge pi-a.jsonl pi-b.jsonl -o pi.jsonl
    """
    from edgecsi.kernels.records import read_records, write_records

    merged = sorted({r.id: r for r in read_records(files).lines}.values(), key=lambda r: r.date)
    write_records(out, merged)
    click.echo(f"{len(merged)} records in {out}")


@command.command()
@_FILES
@output_option("FILE", required=True)
def export(files: tuple[Path, ...], out: Path) -> None:
    """Write trials as T4 JSON, the format that tuning tools share.

    \b
    Example:
      edgecsi records export -o results.json
    """
    from edgecsi.kernels.records import all_files, as_t4, read_records

    tree = as_t4(read_records(files or all_files()).lines)
    disk.write(out, as_json(tree))
    click.echo(f"{len(tree['results'])} results in {out}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def prune(file: Path) -> None:
    """Drop from FILE what no build can use any more: torn lines, other versions of TVM, and choices that later ones
    replaced.

    \b
    Example:
      edgecsi records prune ~/.local/share/edgecsi/records/host-znver4.jsonl
    """
    from edgecsi.kernels.records import current, read_records, write_records

    found = read_records([file])
    kept = current(found.lines)
    write_records(file, kept)
    click.echo(f"{len(kept)} of {len(found.lines)} records kept, {found.torn} torn line(s) dropped")
