"""The reports in docs/reports, made of fresh measurements: ``python -m edgecsi.results.reports``.

Every step is a command of edgecsi that a reader can repeat, and stands in the report it made. At the end their pictures
are taken, where Chromium is installed. ``--only TEXT`` makes a part again; ``--anyway`` measures on a busy machine, and
the reports say so. It takes some ten minutes, and what ``--sustained`` adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgecsi import disk
from edgecsi.results import script
from edgecsi.results.bundles import run_edgecsi
from edgecsi.results.pictures import PICTURES, browser, take
from edgecsi.results.run import require_quiet

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


if __name__ == "__main__":
    raise SystemExit(main())
