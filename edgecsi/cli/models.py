"""``edgecsi models``: the zoo."""

from __future__ import annotations

import click

from edgecsi.cli.output import columns, json_option, pairs, report


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, json_to: str | None) -> None:
    """List the networks of the zoo. Any of your own will do as well: see `edgecsi build --help`.

    \b
    Example:
      edgecsi models
      edgecsi models show csinet-cr4
    """
    if context.invoked_subcommand is not None:
        return
    from edgecsi.models import registry

    models = registry.list_models()
    rows = [
        (
            m.name,
            "x".join(map(str, m.input_shape)),
            "shipped" if m.weights else "-",
            " ".join(m.entries),
            m.description,
        )
        for m in models
    ]
    listed = [vars(m) | {"weights": m.weights} for m in models]
    report(listed, lambda: columns(("model", "input", "weights", "entries", "description"), rows), json_to)


@command.command()
@click.argument("name")
@json_option
def show(name: str, json_to: str | None) -> None:
    """Show MACs and parameters per entry of the network NAME, and where its weights come from.

    \b
    Example:
      edgecsi models show crnet-cr16
    """
    from edgecsi.models import registry
    from edgecsi.models.load import load_model

    info = registry.find(name)
    loaded = load_model(name, allow_random=True)
    costs = {
        entry.name: registry.cost(entry.module, entry.example_input) for entry in loaded.entries.values()
    }
    found = vars(info) | {
        "weights": info.weights,
        "sha256": loaded.sha256,
        "metadata": loaded.metadata,
        "cost": costs,
    }

    def text() -> str:
        head: dict[str, object] = {
            "model": info.name,
            "description": info.description,
            "paper": info.paper,
            "input": info.input_shape,
            "weights": info.weights.name
            if info.weights
            else "none shipped: edgecsi train, or --weights FILE",
        }
        head |= {f"  {key}": value for key, value in sorted(loaded.metadata.items())}
        rows = [(entry, cost.macs, cost.parameters) for entry, cost in costs.items()]
        return pairs(head) + "\n\n" + columns(("entry", "MACs", "parameters"), rows)

    report(found, text, json_to)
