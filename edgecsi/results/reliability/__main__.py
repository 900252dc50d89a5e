"""The commands of the campaign; see the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgecsi import disk

RESULTS = Path("docs") / "results"


@click.group(help="What edgecsi survives, tried and counted.")
def main() -> None:
    pass


@main.command()
@click.option("--minutes", type=float, default=2.0, show_default=True, help="For how long.")
@click.option("--only", default="", help="Only readers with this in their name.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Readers at a time.")
@click.option(
    "--to", type=click.Path(path_type=Path), default=RESULTS / "reliability-fuzz.json", show_default=True,
    help="Counts go on where this file is.",
)  # fmt: skip
def fuzz(minutes: float, only: str, jobs: int, to: Path) -> None:
    """Broken and hostile files, for every reader."""
    from edgecsi.results.reliability.fuzz import Tally
    from edgecsi.results.reliability.fuzz import fuzz as run

    before = Tally.of(json.loads(to.read_text())) if to.exists() else Tally()
    keep = disk.cache_dir() / "findings"
    found = run(before, minutes, keep, only, lambda tally: _write(to, tally.tree()), jobs)
    _write(to, found.tree())
    tree = found.tree()
    click.echo(
        f"{tree['executions']:,} files of {len(found.kinds)} kinds, {len(found.errors)} different errors, "
        f"{found.cpu_seconds / 3600:.2f} CPU hours"
    )
    for name, where in found.findings.items():
        click.echo(f"FOUND {name} ({where}, in {keep})")
    if found.findings:
        raise SystemExit(6)


@main.command()
@click.option("--only", default="", help="Only works with this in their name.")
@click.option("--every", type=click.IntRange(1), default=1, help="Only each n-th system call.")
@click.option(
    "--to", type=click.Path(path_type=Path), default=RESULTS / "reliability-faults.json", show_default=True,
    help="Other works that are in this file stay.",
)  # fmt: skip
def faults(only: str, every: int, to: Path) -> None:
    """A disk that fails, and a kill, at every system call."""
    from edgecsi.results.reliability.faults import inject

    def save(found: dict[str, dict[str, Any]]) -> None:  # another run may count other works
        _write(to, (json.loads(to.read_text()) if to.exists() else {}) | found)

    found = inject(only, every, lambda text: click.echo(text), save)
    if any(work["findings"] for work in found.values()):
        raise SystemExit(6)


@main.command()
def deployment() -> None:
    """Connections, kills, power and disks that fail while a bundle is deployed."""
    _count("deployment")


@main.command()
def devices() -> None:
    """Connections, kernels, servers and processes that fail while a bundle runs on a device."""
    _count("devices")


def _count(name: str) -> None:
    from edgecsi.results.reliability.deployment import SUITES, count_faults

    (suite,) = (suite for suite in SUITES if suite.name == name)
    found = count_faults(suite)
    _write(RESULTS / f"reliability-{name}.json", found)
    click.echo(f"{sum(found.values())} fault points of {len(found)} kinds")


@main.command()
@click.option("--minutes", type=float, default=2.0, show_default=True, help="Of random networks.")
@click.option(
    "--zoo", is_flag=True, help="The networks of the zoo that are not done yet, instead of random ones."
)
@click.option(
    "--to", type=click.Path(path_type=Path), default=RESULTS / "reliability-memory.json", show_default=True,
    help="Counts go on where this file is.",
)  # fmt: skip
def memory(minutes: float, zoo: bool, to: Path) -> None:
    """Random networks between guard pages, on this CPU and on ARM under QEMU; for x86 under valgrind too."""
    from edgecsi.results.reliability.memory import Found, random_networks, whole_zoo

    before = Found(**json.loads(to.read_text())) if to.exists() else Found()

    def save(found: Found) -> None:
        _write(to, found.tree())

    found = whole_zoo(before, save) if zoo else random_networks(before, minutes, save)
    click.echo(f"{found.networks} networks, {found.libraries} libraries, {found.calls:,} calls")
    for text in found.findings:
        click.echo(f"FOUND {text}")
    if found.findings:
        raise SystemExit(6)


@main.command()
@click.option(
    "--kills", type=click.IntRange(1), default=50, show_default=True, help="With made-up measurements."
)
@click.option("--real", type=click.IntRange(0), default=0, help="So many more of real searches; minutes.")
def tuning(kills: int, real: int) -> None:
    """Searches that are killed and go on; files of records that are torn, shared and of elsewhere."""
    from edgecsi.results.reliability.tuning import kill_for_real, simulate

    found = simulate(kills)
    if real:
        found = {**found, **{f"{what}, really": number for what, number in kill_for_real(real).items()}}
    _write(RESULTS / "reliability-tuning.json", found)
    click.echo(", ".join(f"{number} {what}" for what, number in found.items()))


@main.command()
def page() -> None:
    """Write docs/reliability.md."""
    from edgecsi.results.reliability.page import page as made

    names = ("fuzz", "faults", "memory", "tuning", "deployment", "devices")
    stored = [RESULTS / f"reliability-{name}.json" for name in names]
    results = [json.loads(path.read_text()) if path.exists() else {} for path in stored]
    disk.write(Path("docs/reliability.md"), made(*results))


def _write(path: Path, tree: object) -> None:
    disk.write(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
