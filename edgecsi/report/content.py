"""What a report says, before it is a page, Markdown, CSV or JSON: sections of sentences, tables, charts and code."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Text:
    """One paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; columns after the first ``left`` hold numbers."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    kind: str = "table"


@dataclass(frozen=True)
class Chart:
    """A drawing, and a sentence on what it leaves out."""

    caption: str
    svg: Markup
    note: str = ""
    kind: str = "chart"


@dataclass(frozen=True)
class Code:
    """Commands or a program; ``folded`` ones are opened by whoever wants to read them."""

    caption: str
    text: str
    folded: bool = False
    kind: str = "code"


Part = Text | Table | Chart | Code


@dataclass(frozen=True)
class Section:
    """A titled part of a report; ``level`` 2 or 3 as in HTML."""

    title: str
    parts: tuple[Part, ...]
    level: int = 2


@dataclass(frozen=True)
class Report:
    """A whole report: ``verdict`` says in words what there is to say, ``state`` whether to believe it, and ``rows``
    has the figures of every engine of every result for other programs to read."""

    title: str
    state: str
    verdict: tuple[str, ...]
    sections: tuple[Section, ...]
    rows: tuple[dict[str, str | float | int | None], ...]
