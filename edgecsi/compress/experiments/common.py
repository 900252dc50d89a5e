"""What the experiments share: data, figures of one network, and how results are written down."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecsi.channels.generate import generate
from edgecsi.channels.metrics import nmse_db, rho
from edgecsi.channels.shipped import test_set
from edgecsi.compress.prune import prunable
from edgecsi.compress.recipe import Pattern, Prune
from edgecsi.compress.reconstruct import reconstruct, rotate_codeword
from edgecsi.compress.size import density, stored_bytes, zipped_bytes

Say = Callable[[str], None]
CALIBRATION = "cdl-ac:24000:seed=1"  # the training set of the shipped networks


@dataclass
class Result:
    """A table, and what to draw of it.

    Attributes:
        name: of the experiment. title: of the figure. about: what the reader must know, in Markdown.
        rows: dictionaries with the same keys. curves: label → (x, y, error or empty).
        axes: labels of the x and y axis, and whether y is logarithmic.
    """

    name: str
    title: str
    about: str
    rows: list[dict[str, Any]]
    axes: tuple[str, str, bool]
    curves: dict[str, tuple[list[float], list[float], list[float]]] = field(default_factory=dict)


def training_samples(count: int) -> Tensor:
    """The first samples of the training set, float32 ``[count, 2, 32, 32]``."""
    profile, _, seed = CALIBRATION.split(":")
    return torch.from_numpy(generate(f"{profile}:{count}:{seed}"))


def channels(quick: bool) -> NDArray[Any]:
    """The samples that figures are measured on: the shipped test set, seen by no training."""
    return test_set(128 if quick else None)


@torch.no_grad()
def figures(module: nn.Module, samples: NDArray[Any], dense_bytes: int) -> dict[str, Any]:
    """NMSE, rho and size of a network."""
    x = torch.from_numpy(samples)
    y = torch.cat([module(part) for part in torch.split(x, 128)]).numpy()
    size = stored_bytes(module)
    return {
        "nmse_db": round(nmse_db(samples, y), 3),
        "rho": round(rho(samples, y), 4),
        "bytes": size,
        "bytes_share": round(size / dense_bytes, 4),
        "gzip_bytes": zipped_bytes(module),
    }


def pruned(module: nn.Module, pattern: str, sparsity: float, samples: Tensor) -> nn.Module:
    """A copy pruned by reconstruction, codeword rotated, without training."""
    copied = copy.deepcopy(module)
    with torch.no_grad():
        rotate_codeword(copied, samples)
    layers = prunable(copied, Prune(pattern=pattern, sparsity=max(sparsity, 0.001)))
    parsed = Pattern.parse(pattern)
    shares = dict.fromkeys(layers, 1 - parsed.keep / parsed.group) if parsed.group else sparsity
    reconstruct(copied, layers, parsed, shares, samples)
    return copied.eval()


def zeros(module: nn.Module) -> float:
    """Share of zeros in the dense layers together."""
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Linear)]
    return 1 - sum(density(w) * w.numel() for w in weights) / sum(w.numel() for w in weights)


def write(result: Result, folder: Path, command: str) -> list[Path]:
    """Write the JSON, the Markdown table and the figure; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{result.name}{suffix}" for suffix in (".json", ".md", ".svg")]
    content = {"command": command, "about": result.about, "rows": result.rows, "curves": result.curves}
    _replace(paths[0], json.dumps(content, indent=1) + "\n")
    lines = [
        f"# {result.title}",
        "",
        result.about,
        "",
        *table(result.rows),
        "",
        f"![figure]({paths[2].name})",
        "",
    ]
    lines += [f"Made by `{command}`.", ""]
    _replace(paths[1], "\n".join(lines))
    _draw(result, paths[2])
    return paths


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = [f"| {' | '.join(keys)} |", f"|{'---|' * len(keys)}"]
    return head + [f"| {' | '.join(_cell(row.get(key)) for key in keys)} |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text)
    beside.replace(path)


def _draw(result: Result, path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, (x, y, error) in result.curves.items():
        axes.errorbar(x, y, yerr=np.asarray(error) if error else None, marker="o", capsize=2, label=label)
    x_label, y_label, logarithmic = result.axes
    axes.set(xlabel=x_label, ylabel=y_label, title=result.title)
    if logarithmic:
        axes.set_yscale("log")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    # the same result always draws the same file
    with mpl.rc_context({"svg.hashsalt": result.name}):
        figure.savefig(path, format="svg", metadata={"Date": None})
