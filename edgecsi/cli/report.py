"""``edgecsi report``: results as a page."""

from __future__ import annotations

from pathlib import Path

import click

from edgecsi import disk
from edgecsi.cli.options import can_be_written


@click.command()
@click.argument("results", nargs=-1, required=True, metavar="RESULT...", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    callback=can_be_written,
    help="The page  [default: report.html, unless another format is asked for].",
)
@click.option("--title", metavar="TEXT", help="Instead of the name of what was measured.")
@click.option("--baseline", metavar="NAME", help="An engine or a result that the others are held against.")
@click.option("--markdown", metavar="FILE", callback=can_be_written, help="Also as Markdown; `-` prints it.")
@click.option(
    "--csv", metavar="FILE", callback=can_be_written, help="Also the figures as CSV; `-` prints it."
)
@click.option(
    "--json", "json_to", metavar="FILE", callback=can_be_written, help="Also as JSON; `-` prints it."
)
def command(
    results: tuple[Path, ...],
    output: Path | None,
    title: str | None,
    baseline: str | None,
    markdown: str | None,
    csv: str | None,
    json_to: str | None,
) -> None:
    """Make one page of one or many RESULTs of `edgecsi bench --json`, or of folders of them (`bench --save`). What
    `edgecsi tune --json` wrote has a section of its own.

    The page is one file that loads nothing, works without scripts, on a phone and in print.

    \b
    Example:
      edgecsi bench csinet-host --against onnxruntime --json bench.json
      edgecsi report bench.json -o report.html
      edgecsi report history/ --markdown -
      edgecsi report bench.json tuned.json
    """
    from edgecsi.report.export import as_csv, as_json
    from edgecsi.report.export import markdown as as_markdown
    from edgecsi.report.html import html
    from edgecsi.report.make import make_report
    from edgecsi.report.read import read

    found, tuned = read(results)
    report = make_report(found, tuned, title=title, baseline=baseline)
    others = [(markdown, as_markdown), (csv, as_csv), (json_to, as_json)]
    if output is not None or not any(target for target, _ in others):
        page = output or Path("report.html")
        disk.write(page, html(report))
        if not any(target == "-" for target, _ in others):
            click.echo(f"{page}: {report.title} ({report.state})")
    for target, render in others:
        if target == "-":
            click.echo(render(report), nl=False)
        elif target is not None:
            disk.write(Path(target), render(report))
