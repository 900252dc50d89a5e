"""Pictures of the reports in docs/reports, taken with headless Chromium: ``python -m edgecsi.results.reports``."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgecsi import disk
from edgecsi.errors import ToolchainError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60.0


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
