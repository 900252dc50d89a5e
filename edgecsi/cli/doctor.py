"""``edgecsi doctor``: what is missing or broken here."""

from __future__ import annotations

from pathlib import Path

import click

from edgecsi.cli.options import (
    complete_models,
    input_shape_option,
    json_option,
    output_option,
    recipe_option,
    target_option,
)
from edgecsi.cli.output import columns, progress, report
from edgecsi.errors import ToolchainError


@click.command()
@click.option(
    "--report",
    "model",
    metavar="MODEL",
    shell_complete=complete_models,
    help="Build MODEL and pack what a maintainer needs to know: its graph without weights, the error, this machine.",
)
@target_option("What to build the report's model for.", default="host", show_default=True)
@recipe_option("With which compression.")
@input_shape_option("As for `edgecsi build`.")
@output_option("FILE", "Where the report goes.", default=Path("edgecsi-report.zip"), show_default=True)
@json_option
def command(
    model: str | None,
    target: str,
    recipe: str | None,
    input_shape: tuple[int, ...] | None,
    out: Path,
    json_to: str | None,
) -> None:
    """Examine this machine: every part that is needed or useful, and the command that fixes each fault.

    The exit code is 4 if something is broken that edgecsi needs, 0 if only optional parts are missing.

    \b
    Example:
      edgecsi doctor
      edgecsi doctor --report my_net.py:make --target rpi4
    """
    from edgecsi.doctor import examine

    with progress("examining") as update:
        findings = examine(update)
    if model is not None:
        from edgecsi.pipeline import BuildOptions
        from edgecsi.problem import pack

        with progress(f"building {model} for {target}"):
            asked = BuildOptions(model, target, recipe=recipe, input_shape=input_shape, allow_random=True)
            became = pack(asked, findings, out)
        said = {"model": model, "build": became, "report": out}
        report(
            said,
            lambda: f"{model} for {target}: {became}\nwritten to {out}; read it before you send it",
            json_to,
        )
        return

    def text() -> str:
        rows = [
            (f.part, f.status if f.needed or f.status == "ok" else f"{f.status} (optional)", f.detail)
            for f in findings
        ]
        lines = [columns(("part", "status", "detail"), rows)]
        for title, needed in (("To fix:", True), ("If you want what is optional:", False)):
            if fixes := dict.fromkeys(f.fix for f in findings if f.fix and f.needed is needed):
                lines += ["", title, *(f"  {fix}" for fix in fixes)]
        return "\n".join(lines)

    report(findings, text, json_to)
    if broken := [f for f in findings if f.fatal]:
        raise ToolchainError(
            f"missing or broken: {', '.join(f.part for f in broken)}",
            "; ".join(f.detail for f in broken),
            next(f.fix for f in broken),
        )
