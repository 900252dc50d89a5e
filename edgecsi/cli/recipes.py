"""``edgecsi recipes``: what compression can be applied."""

from __future__ import annotations

import click

from edgecsi.cli.options import complete_recipes, json_option
from edgecsi.cli.output import columns, report


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, json_to: str | None) -> None:
    """List the recipes that `compress` takes, and `build` if they need no training.

    \b
    Example:
      edgecsi recipes
      edgecsi recipes show int8-dynamic
    """
    if context.invoked_subcommand is not None:
        return
    from edgecsi.compress import recipe

    recipes = [recipe.load(name) for name in recipe.list_recipes()]
    rows = [(r.name, "build, compress" if r.post_training else "compress", r.description) for r in recipes]
    listed = [
        {"name": r.name, "description": r.description, "post_training": r.post_training} for r in recipes
    ]
    report(listed, lambda: columns(("recipe", "for", "description"), rows), json_to)


@command.command()
@click.argument("name", shell_complete=complete_recipes)
@json_option
def show(name: str, json_to: str | None) -> None:
    """Show the recipe NAME (a name or a .toml file) step by step, and its text.

    \b
    Example:
      edgecsi recipes show int8-dynamic
    """
    from edgecsi.compress import recipe

    found = recipe.load(name)
    lines = [f"{found.name}: {found.description}", *found.explain(), "", found.text.rstrip()]
    report(found, lambda: "\n".join(lines), json_to)
