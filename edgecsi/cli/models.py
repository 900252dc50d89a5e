"""``edgecsi models``: the zoo."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgecsi.cli.options import complete_models, json_option
from edgecsi.cli.output import columns, pairs, report
from edgecsi.errors import ModelError


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, json_to: str | None) -> None:
    """List the networks of the zoo, and the compressed ones that ship. Any of your own will do as well: see `edgecsi
    build --help`.

    \b
    Example:
      edgecsi models
      edgecsi models show csinet-cr4
    """
    if context.invoked_subcommand is not None:
        return
    from edgecsi.models import registry
    from edgecsi.models.checkpoint_files import read_metadata

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
    compressed = {
        name: _compression(read_metadata(registry.WEIGHTS / f"{name}.safetensors"))
        for name in registry.list_compressed()
    }
    made = [
        (name, found["metric"], f"{found['before']:.4g}", f"{found['after']:.4g}", f"{_share(found):.1%}")
        for name, found in compressed.items()
    ]
    listed = [
        vars(m) | {"weights": m.weights, "compressed": [c for c in compressed if c.startswith(f"{m.name}+")]}
        for m in models
    ]

    def text() -> str:
        zoo = columns(("model", "input", "weights", "entries", "description"), rows)
        shipped = columns(("compressed (model+recipe), shipped", "metric", "dense", "now", "bytes"), made)
        return f"{zoo}\n\n{shipped}"

    report(listed, text, json_to)


@command.command()
@click.argument("name", shell_complete=complete_models)
@json_option
def show(name: str, json_to: str | None) -> None:
    """Show MACs and parameters per entry of the network NAME, and where its weights come from; of a compressed
    network (MODEL+RECIPE, or a .safetensors file) what was done to it, and what that cost.

    \b
    Example:
      edgecsi models show crnet-cr16
      edgecsi models show crnet-cr16+int8-trained
    """
    from edgecsi.models import registry
    from edgecsi.models.load import load_model

    if name.endswith(".safetensors"):
        _show_file(Path(name), json_to)
        return
    base, _, recipe = name.partition("+")
    info = registry.find(base)
    loaded = load_model(name, allow_random=True)
    weights = registry.WEIGHTS / f"{name}.safetensors" if recipe else info.weights
    found = vars(info) | {
        "name": name,
        "weights": weights,
        "sha256": loaded.sha256,
        "metadata": loaded.metadata,
    }
    head: dict[str, object] = {
        "model": name,
        "description": info.description,
        "paper": info.paper,
        "input": info.input_shape,
        "weights": weights.name if weights else "none shipped: edgecsi train, or --weights FILE",
    }
    if recipe:
        report(found, lambda: pairs(head | _history(_compression(loaded.metadata))), json_to)
        return
    costs = {
        entry.name: registry.cost(entry.module, entry.example_input) for entry in loaded.entries.values()
    }
    head |= {f"  {key}": value for key, value in sorted(loaded.metadata.items())}
    rows = [(entry, cost.macs, cost.parameters) for entry, cost in costs.items()]
    report(
        found | {"cost": costs},
        lambda: pairs(head) + "\n\n" + columns(("entry", "MACs", "parameters"), rows),
        json_to,
    )


def _show_file(path: Path, json_to: str | None) -> None:
    """What a file says about itself; no code that it names is run."""
    from edgecsi.models.checkpoint_files import read_metadata

    metadata = read_metadata(path)
    lines: dict[str, object] = {"model": path, "made from": metadata.get("model", "it does not say")}
    if "compression" in metadata:
        try:
            lines |= _history(_compression(metadata))
        except (ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError) as error:
            raise ModelError(
                f"{path} is damaged",
                f"its record of the compression: {type(error).__name__}",
                "compress again",
            ) from error
    else:
        lines |= {f"  {key}": value for key, value in sorted(metadata.items()) if key != "model"}
    report(metadata, lambda: pairs(lines), json_to)


def _compression(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What `edgecsi compress` noted in a file."""
    found: dict[str, Any] = json.loads(metadata["compression"])
    return found


def _history(found: Mapping[str, Any]) -> dict[str, object]:
    """How a compressed network was made, for :func:`pairs`."""
    metric = found["metric"]
    lines: dict[str, object] = {"recipe": found["recipe"]}
    lines |= {
        f"  step {number}": f"{step['kind']}, then {metric} {step['score']:.4g}"
        for number, step in enumerate(found["steps"], 1)
    }
    return lines | {
        "data": found["data"],
        "seed": found["seed"],
        metric: f"{found['before']:.4g} before, {found['after']:.4g} after, on held-out data",
        "bytes": f"{found['bytes_before']:,} before, {found['bytes_after']:,} after ({_share(found):.1%})",
    }


def _share(found: Mapping[str, Any]) -> float:
    """What is left of the bytes."""
    return float(found["bytes_after"] / found["bytes_before"])
