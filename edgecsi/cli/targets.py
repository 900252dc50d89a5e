"""``edgecsi targets``: what can be compiled for."""

from __future__ import annotations

from pathlib import Path

import click

from edgecsi import disk
from edgecsi import target as targets
from edgecsi.cli.options import complete_targets, device_option, json_option, output_option
from edgecsi.cli.output import columns, pairs, progress, report
from edgecsi.errors import TargetError


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, json_to: str | None) -> None:
    """List the targets: boards and CPUs that `build --target` takes.

    \b
    Example:
      edgecsi targets
      edgecsi targets show rpi5
    """
    if context.invoked_subcommand is not None:
        return
    rows = []
    for name in targets.list_targets():
        try:
            target = targets.load(name)
        except TargetError as error:  # `host` on a CPU we cannot compile for; the others are still there
            rows.append((name, "-", "-", "-", error.what))
            continue
        alias = f"the same as {target.id}: " if target.id != name else ""
        rows.append((name, target.arch, target.mcpu, target.dot or "-", alias + target.description))
    head = ("target", "machine", "CPU", "int8 dot", "description")
    listed = [dict(zip(("id", "arch", "mcpu", "dot", "description"), row, strict=True)) for row in rows]
    report(listed, lambda: columns(head, rows), json_to)


@command.command()
@click.argument("name", shell_complete=complete_targets)
@json_option
def show(name: str, json_to: str | None) -> None:
    """Show all that is known of the target NAME (a name or a .toml file).

    \b
    Example:
      edgecsi targets show host
    """
    target = targets.load(name)
    lacking = target.missing_on_this_cpu()

    def text() -> str:
        shown = dict(vars(target)) | {"zig_cpu": target.zig_cpu}
        shown["runs here"] = f"no, this CPU lacks {' '.join(lacking)}" if lacking else "yes"
        return pairs(shown)

    report(target, text, json_to)


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_targets)
@json_option
def check(names: tuple[str, ...], json_to: str | None) -> None:
    """Hold the features that targets declare against those the compiler will use (all targets by default).

    \b
    Example:
      edgecsi targets check rpi4 my-board.toml
    """
    from edgecsi.codegen.target_features import check_features

    found = {name: check_features(targets.load(name)) for name in names or targets.list_targets()}

    def text() -> str:
        rows = [
            (name, "ok" if check.ok else "differs", check.undeclared or "-", check.unused or "-")
            for name, check in found.items()
        ]
        return columns(("target", "features", "used, not declared", "declared, not used"), rows)

    report(found, text, json_to)
    if wrong := [name for name, check in found.items() if not check.ok]:
        raise TargetError(
            f"{', '.join(wrong)}: declared features and compiler differ",
            "the library would crash on some CPUs, or refuse some it runs on",
            "correct features or mattr in the target's file",
        )


@command.command()
@click.argument("name", shell_complete=complete_targets)
@device_option("Where to measure.")
@output_option("FILE.toml", "The target file to write.", required=True)
@json_option
def calibrate(name: str, device: str, out: Path, json_to: str | None) -> None:
    """Measure how long kernels really take on a device, and write a target with better estimates than NAME's.

    Builds for the new target choose kernels by them, without tuning.

    \b
    Example:
      edgecsi targets calibrate rpi4 --device ssh://pi@raspberrypi -o my-pi4.toml
    """
    from edgecsi.tune.calibrate import calibrate as measure

    with progress(f"calibrating {name}") as update:
        found = measure(name, device, progress=update)
    lines = [
        f'extends = "{found.target}"',
        f'description = "{found.target}, estimates measured on {device}"',
        f"call_us = {found.call_us}",
        f"curve_ns = {found.curve_ns}",
        "",
        "[factors]",
    ]
    lines += [f"{kernel} = {factor}" for kernel, factor in found.factors.items()]
    disk.write(out, "\n".join(lines) + "\n")

    def text() -> str:
        before = f"rank correlation {found.rank_before:.3f}, {found.within_before:.0%} of the choices within 1.3 times"
        after = f"rank correlation {found.rank_after:.3f}, {found.within_after:.0%} within 1.3 times"
        settings = f"{found.measured} settings on {device}"
        summary = pairs(
            {
                "measured": settings,
                "every call": f"{found.call_us:.3f} µs",
                "a sigmoid": f"{found.curve_ns:.3f} ns an element",
                "before": before,
                "after": after,
                "written": out,
            }
        )
        return f"{columns(('kernel', 'measured over estimated'), list(found.factors.items()))}\n\n{summary}"

    report(found, text, json_to)
