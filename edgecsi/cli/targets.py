"""``edgecsi targets``: what can be compiled for."""

from __future__ import annotations

import click

from edgecsi import target as targets
from edgecsi.cli.output import columns, json_option, pairs, report
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
@click.argument("name")
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
@click.argument("names", nargs=-1, metavar="[NAME]...")
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
