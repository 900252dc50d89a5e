"""``edgecsi help``: the same as ``--help``, for those who write it in front."""

from __future__ import annotations

import click

from edgecsi.cli.complete import verbs


@click.command()
@click.argument("words", nargs=-1, metavar="[VERB]...", shell_complete=verbs)
@click.pass_context
def command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show what VERB does and takes.

    \b
    Example:
      edgecsi help build
      edgecsi help data generate
    """
    top = context.find_root()
    here, found = top, top.command
    for word in words:
        if not isinstance(found, click.Group):
            raise click.UsageError(f"{here.info_name} has no {word!r}", here)
        _, inner, _ = found.resolve_command(here, [word])
        assert inner is not None
        found = inner
        here = click.Context(found, info_name=word, parent=here, obj=top.obj)
    click.echo(found.get_help(here))
