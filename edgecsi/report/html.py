"""A report as one HTML file: nothing is loaded from anywhere, and without its script nothing is missing."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from edgecsi.report.content import Part, Report

if TYPE_CHECKING:
    import jinja2


def html(report: Report) -> str:
    """The page. Every text of a result is escaped; a policy in its head forbids all scripts but its own, and all
    requests."""
    source = _template("report.js").render().strip()
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return _template("report.html").render(report=report, script=source, script_digest=digest)


@cache
def _template(name: str) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgecsi.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["groupwise"] = _groupwise
    return environment.get_template(f"{name}.j2")


def _groupwise(parts: Sequence[Part]) -> list[list[Part]]:
    """Charts that follow each other stand side by side; everything else stands alone."""
    return [list(group) for _, group in itertools.groupby(parts, lambda part: part.kind == "chart")]
