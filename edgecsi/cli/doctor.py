"""``edgecsi doctor``: what is missing or broken here."""

from __future__ import annotations

import click

from edgecsi.cli.output import columns, json_option, progress, report
from edgecsi.errors import ToolchainError


@click.command()
@json_option
def command(json_to: str | None) -> None:
    """Examine this machine: every part that is needed or useful, and the command that fixes each fault.

    The exit code is 4 if something is broken that edgecsi needs, 0 if only optional parts are missing.

    \b
    Example:
      edgecsi doctor
    """
    from edgecsi.doctor import examine

    with progress("examining") as update:
        findings = examine(update)

    def text() -> str:
        rows = [
            (f.part, f.status if f.needed or f.status == "ok" else f"{f.status} (optional)", f.detail)
            for f in findings
        ]
        fixes = dict.fromkeys(f.fix for f in findings if f.fix)
        lines = [columns(("part", "status", "detail"), rows)]
        if fixes:
            lines += ["", "To fix:", *(f"  {fix}" for fix in fixes)]
        return "\n".join(lines)

    report(findings, text, json_to)
    if broken := [f for f in findings if f.fatal]:
        raise ToolchainError(
            f"missing or broken: {', '.join(f.part for f in broken)}",
            "; ".join(f.detail for f in broken),
            next(f.fix for f in broken),
        )
