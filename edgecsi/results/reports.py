"""The reports in docs/reports, made of fresh measurements: ``python -m edgecsi.results.reports``.

Every step is a command of edgecsi that a reader can repeat, and stands in the report it made. At the end their pictures
are taken, where Chromium is installed. ``--only TEXT`` makes a part again; ``--anyway`` measures on a busy machine, and
the reports say so. It takes some ten minutes, and what ``--sustained`` adds.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgecsi import disk
from edgecsi.errors import ToolchainError
from edgecsi.results import script
from edgecsi.results.bundles import run_edgecsi
from edgecsi.results.run import require_quiet

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60.0
BEST = "csinet-cr4+prune90-bsr16x4-int8-dynamic"


@dataclass(frozen=True)
class BenchRun:
    """One result: what is built, for what, and the options of ``edgecsi bench``."""

    model: str
    target: str = "host"
    options: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The bundle's."""
        return f"{self.model.replace('+', '-')}-{self.target}"


@dataclass(frozen=True)
class Page:
    """One report: its file, its title, and the results on it."""

    name: str
    title: str
    results: tuple[BenchRun, ...]
    options: tuple[str, ...] = field(default=())


PEER = ("--against", "onnxruntime", "--model")
COMPRESSIONS = (
    "",
    "+int8-weights",
    "+int8-dynamic",
    "+prune90",
    "+prune90-bsr16x4-int8-dynamic",
    "+prune90-bsr16x4-int8",
)
PAGES = (
    Page("csinet-cr4", "CsiNet CR 1/4, 90 % zero and int8", (BenchRun(BEST, options=(*PEER, BEST, "--self-check")),)),
    Page(
        "compressions",
        "CsiNet CR 1/4 in six compressions",
        tuple(BenchRun(f"csinet-cr4{way}") for way in COMPRESSIONS),
        ("--baseline", "csinet-cr4-host"),
    ),
    Page(
        "devices",
        "CsiNet CR 1/4 on three CPUs, two of them emulated",
        (
            BenchRun(BEST),
            BenchRun(BEST, "rpi4", ("--device", "emulate")),
            BenchRun(BEST, "rpi5", ("--device", "emulate")),
        ),
    ),
    Page("invalid", "An emulated result is no latency", (BenchRun(BEST, "rpi5", ("--device", "emulate")),)),
    Page(
        "sustained",
        "An encoder over {time}, and at the rate of reports",
        (
            BenchRun(
                BEST,
                options=("--entry", "encoder", "--sustained", "{time}", "--deadline", "0.5ms:p99"),
            ),
            BenchRun(BEST, options=("--entry", "encoder", "--rate", "200/s")),
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A file, the page it shows, and how: ``width`` and ``height`` in CSS pixels, from ``section`` on; printed, two pages
    side by side."""

    name: str
    page: str
    width: int
    height: int
    how: Literal["light", "dark", "print"] = "light"
    section: str = ""


PICTURES = (
    Picture("one", "csinet-cr4", 1280, 1130),
    Picture("compressions", "compressions", 1280, 1400),
    Picture("devices", "devices", 1280, 1250),
    Picture("sustained", "sustained", 1280, 900, "dark", "Over time"),
    Picture("invalid", "invalid", 1280, 500),
    Picture("phone", "csinet-cr4", 390, 1500),
    Picture("phone-dark", "compressions", 390, 1500, "dark"),
    Picture("print", "csinet-cr4", 994, 702, "print"),
)


@script.in_words
def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = script.parser("reports", __doc__, "reports/", times=True)
    parser.add_argument("--only", default="", metavar="TEXT", help="reports whose name has it")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="for every engine, at least")
    parser.add_argument("--sustained", default="2m", metavar="TIME", help="of the long run, 30m say")
    parser.add_argument("--pictures", action="store_true", help="measure nothing, take the pictures again")
    chosen = parser.parse_args(arguments)
    folder = chosen.docs.resolve() / "reports"
    if not chosen.pictures:
        if not chosen.anyway:
            require_quiet()
        with disk.scratch(runs=True) as scratch:
            for page in PAGES:
                if chosen.only in page.name:
                    print(f"{page.name} ...", flush=True)
                    make(page, scratch, folder / f"{page.name}.html", chosen.seconds, chosen.sustained)
    if browser() is None:
        print("no pictures: Chromium is not installed")
        return 0
    for picture in PICTURES:
        if chosen.only in picture.page:
            print(f"{picture.name}.png ...", flush=True)
            take(picture, folder)
    return 0


def make(page: Page, scratch: Path, target: Path, seconds: float, sustained: str) -> None:
    """Builds what is not built yet, measures, writes the report to ``target``; ``sustained`` is how long the long run is.

    Raises:
        EdgecsiError: a step failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    files = []
    for number, bench in enumerate(page.results):
        if not (scratch / bench.folder).exists():
            run_edgecsi(["build", bench.model, "--target", bench.target, "-o", bench.folder], scratch)
        results = scratch / page.name
        results.mkdir(exist_ok=True)
        same = sum(bench.folder == other.folder for other in page.results[:number])
        file = results / f"{bench.folder}{f'-{same + 1}' if same else ''}.json"
        options = [option.format(time=sustained) for option in bench.options]
        command = ["bench", bench.folder, "--seconds", f"{seconds:g}", *options, "--json", str(file)]
        run_edgecsi(command, scratch)
        files.append(str(file))
    run_edgecsi(
        ["report", *files, "-o", str(target), "--title", page.title.format(time=sustained), *page.options],
        scratch,
    )


def browser() -> str | None:
    """The Chromium that is installed."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def take(picture: Picture, reports: Path) -> None:
    """Takes a picture of ``reports/<page>.html`` into ``reports/<name>.png``.

    Raises:
        ToolchainError: no browser, or it failed; for print also pdftoppm.
    """
    page = (reports / f"{picture.page}.html").resolve()
    with disk.scratch() as scratch:
        if picture.how == "print":
            pdf, shown = scratch / "page.pdf", scratch / "shown"
            _chromium(scratch, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", page.as_uri())
            _run(["pdftoppm", "-png", "-r", "60", "-l", "2", pdf, shown])
            _keep(sorted(scratch.glob("shown*.png")), reports / f"{picture.name}.png")
            return
        # A window has a least width, a frame in it has none; dark is what the page makes of its own switch.
        text = page.read_text(encoding="utf-8")
        theme = f'<html lang="en" data-theme="{picture.how}"'
        (scratch / "page.html").write_text(text.replace('<html lang="en"', theme, 1), encoding="utf-8")
        found = (
            re.search(rf'<section id="(\w+)">\s*<h\d>{re.escape(picture.section)}', text)
            if picture.section
            else None
        )
        anchor = f"#{found[1]}" if found else ""
        size = f"width:{picture.width}px;height:{picture.height}px"
        frame = f'<iframe src="page.html{anchor}" style="border:0;{size}"></iframe>'
        (scratch / "frame.html").write_text(f'<body style="margin:0">{frame}</body>', encoding="utf-8")
        shot = scratch / "shot.png"
        window = f"--window-size={max(picture.width, 600)},{picture.height}"
        _chromium(scratch, window, f"--screenshot={shot}", (scratch / "frame.html").as_uri())
        _keep([shot], reports / f"{picture.name}.png", picture.width)


def _chromium(home: Path, *arguments: str) -> None:
    found = browser()
    if found is None:
        raise ToolchainError(
            "there is no Chromium", f"none of {', '.join(BROWSERS)} is on the PATH", "install chromium"
        )
    _run([found, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={home}/profile",
          *arguments])  # fmt: skip


def _run(command: list[str | Path]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolchainError(
            f"{command[0]} failed", str(error)[:500], "install it, or take no pictures"
        ) from error


def _keep(files: list[Path], target: Path, width: int | None = None) -> None:
    """Pictures side by side as one of 64 colours, a third of the bytes."""
    from PIL import Image

    images = [Image.open(file).convert("RGB") for file in files]
    whole = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), "white")
    at = 0
    for image in images:
        whole.paste(image, (at, 0))
        at += image.width
    whole = whole.crop((0, 0, width or whole.width, whole.height))
    with disk.whole(target) as path:
        whole.quantize(64).save(path, "PNG", optimize=True)


if __name__ == "__main__":
    raise SystemExit(main())
