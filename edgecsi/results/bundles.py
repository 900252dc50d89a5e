"""The bundles that are measured: built by edgecsi's own commands, each in a fresh process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgecsi.bundle import Bundle, read_bundle
from edgecsi.errors import EdgecsiError, ToolchainError
from edgecsi.models import registry
from edgecsi.results.files import write_json
from edgecsi.results.scenarios import SCENARIOS, Scenario

COMMAND_TIMEOUT = 600.0
BUILDERS = 2
"""Builds at a time, before anything is timed."""
CODE = Path(__file__).parents[2]
"""The folder that holds this edgecsi."""
EDGECSI = [sys.executable, "-m", "edgecsi"]
CALIBRATION = "calibration.npy"


def library_of(scenario: Scenario, scratch: Path) -> str | None:
    """SHA-256 of the library that :func:`build_all` built for a scenario; None if it failed."""
    bundle = scratch / slug(scenario)
    if not bundle.is_dir():
        return None
    manifest = read_bundle(bundle).manifest
    return manifest.files[manifest.library].sha256


def build_all(scenarios: Sequence[Scenario], scratch: Path, say: Callable[[str], None]) -> None:
    """Builds the bundles of all scenarios, each once, into ``scratch``; a failure is kept beside them."""
    build_each({slug(scenario): build_command(scenario) for scenario in scenarios}, scratch, say)


def build_each(
    commands: Mapping[str, Sequence[str]], scratch: Path, say: Callable[[str], None], code: Path = CODE
) -> None:
    """As :func:`build_all`, by commands of edgecsi, each with the name of the bundle that it makes."""
    say(f"building {len(commands)} bundles ...")

    def build(name: str, command: Sequence[str]) -> None:
        begin = time.monotonic()
        try:
            run_edgecsi(command, scratch, threads=1, code=code)
        except Exception as error:  # told by the scenarios that need this bundle
            write_json(scratch / f"{name}.error", {"error": words(error)})
        say(f"  {name}, {time.monotonic() - begin:.0f} s")

    with ThreadPoolExecutor(BUILDERS) as pool:
        list(pool.map(build, commands, commands.values()))


def build_command(scenario: Scenario) -> list[str]:
    """The arguments of ``edgecsi`` that build a scenario's bundle."""
    model, recipe, calibration = source(scenario)
    command = ["build", model, "--target", scenario.target, "-o", slug(scenario)]
    command += ["--recipe", recipe] if recipe else []
    command += ["--calib", CALIBRATION] if calibration else []
    command += ["--batch", str(scenario.batch)] if scenario.batch else []
    return command + (["--random-weights"] if without_weights(model) else [])


def source(scenario: Scenario) -> tuple[str, str, str]:
    """(model, recipe, calibration): the shipped compressed network if there is one."""
    if scenario.shipped and (registry.WEIGHTS / f"{scenario.shipped}.safetensors").is_file():
        return scenario.shipped, "", ""
    return scenario.model, scenario.recipe, scenario.calibration


def slug(scenario: Scenario) -> str:
    """The folder of a scenario's bundle; scenarios that differ only in the entry share it."""
    model, recipe, _ = source(scenario)
    name = re.sub(r"[^A-Za-z0-9]+", "-", model.rpartition(":")[2])
    batch = f"batch{scenario.batch}" if scenario.batch else ""
    made = f"by-{recipe}" if recipe else ""  # CR4+int16 ships, and is no CR4 that the build makes int16
    return "-".join(part for part in (name, made, scenario.target, batch) if part)


def run_edgecsi(
    arguments: Sequence[str], folder: Path, threads: int | None = None, code: Path = CODE
) -> None:
    """Runs one edgecsi command in a fresh process; PyTorch keeps to ``threads`` in it, if given.

    Args:
        code: the folder that holds the edgecsi to run.

    Raises:
        ToolchainError: it failed; its own words are the reason.
    """
    environment = {**os.environ, "PYTHONPATH": str(code)}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    try:
        done = subprocess.run(
            [*EDGECSI, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise ToolchainError(
            f"edgecsi {' '.join(arguments)} did not end", f"after {COMMAND_TIMEOUT:.0f} s", "run it by hand"
        ) from None
    if done.returncode != 0:
        said = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()][-3:]
        raise ToolchainError(f"edgecsi {' '.join(arguments)} failed", " / ".join(said), "run it by hand")


def words(error: Exception) -> list[str]:
    """An error as raw results keep it: what, why, fix."""
    if isinstance(error, EdgecsiError):
        return [error.what, error.why, error.fix]
    return [type(error).__name__, str(error) or type(error).__name__, "this is a bug of edgecsi"]


def built(name: str, scratch: Path) -> Bundle:
    """The bundle of a scenario."""
    scenario = next(s for s in SCENARIOS if s.name == name)
    folder = scratch / slug(scenario)
    if not folder.exists():
        run_edgecsi(build_command(scenario), scratch)
    return read_bundle(folder)


def plain_build(model: str, out: str) -> list[str]:
    random = ["--random-weights"] if without_weights(model) else []
    return ["build", model, "--target", "host", "-o", out, *random]


def without_weights(model: str) -> bool:
    """Whether this is a network of the zoo, and ships without weights."""
    return ":" not in model and "+" not in model and registry.find(model).weights is None
