"""A report as Markdown, CSV or JSON: what the page says, without its drawings."""

from __future__ import annotations

import csv
import io
import json

from edgecsi.report.content import Chart, Code, Part, Report, Table, Text


def markdown(report: Report) -> str:
    """Sections, sentences and tables. Text of a result is escaped: it makes no markup."""
    lines = [f"# {_plain(report.title)}", "", f"Validity: **{report.state}**.", ""]
    lines += [f"- {_plain(sentence)}" for sentence in report.verdict]
    for section in report.sections:
        lines += ["", f"{'#' * section.level} {_plain(section.title)}"]
        for part in section.parts:
            lines += ["", *_part(part)]
    return "\n".join(lines) + "\n"


def as_csv(report: Report) -> str:
    """The figures, one line an engine of a result."""
    names = list(dict.fromkeys(name for row in report.rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _no_formula(value) for name, value in row.items()} for row in report.rows)
    return text.getvalue()


def as_json(report: Report) -> str:
    """Verdict, figures and sections; of drawings only their captions."""
    sections = [
        {
            "title": section.title,
            "parts": [
                {"kind": part.kind}
                | {name: value for name, value in vars(part).items() if name not in ("kind", "svg")}
                for part in section.parts
            ],
        }
        for section in report.sections
    ]
    tree = {
        "kind": "edgecsi report",
        "schema": 1,
        "title": report.title,
        "validity": report.state,
        "verdict": report.verdict,
        "figures": report.rows,
        "sections": sections,
    }
    return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _part(part: Part) -> list[str]:
    if isinstance(part, Text):
        return [_plain(part.text)]
    if isinstance(part, Table):
        rule = ["---"] * part.left + ["---:"] * (len(part.head) - part.left)
        rows = [part.head, tuple(rule), *part.rows]
        marked = [row if row is rows[1] else tuple(_plain(cell) for cell in row) for row in rows]
        return [f"**{_plain(part.caption)}**", "", *("| " + " | ".join(row) + " |" for row in marked)]
    if isinstance(part, Code):
        fence = "`" * max(3, 1 + max((len(run) for run in _runs(part.text)), default=0))
        return [f"{_plain(part.caption)}:", "", fence, part.text.rstrip("\n"), fence]
    assert isinstance(part, Chart)
    return [f"{_plain(part.caption)}. {_plain(part.note)}".rstrip()]


def _plain(text: str) -> str:
    """Text that Markdown and the HTML inside of it take as text."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, {"<": "&lt;", ">": "&gt;"}.get(mark, f"\\{mark}"))
    return " ".join(text.split())


def _runs(text: str) -> list[str]:
    """Rows of backticks, which a fence must be longer than."""
    return list("".join(c if c == "`" else " " for c in text).split())


def _no_formula(value: str | float | int | None) -> str | float | int | None:
    """A text that a spreadsheet would compute is given a quote before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
