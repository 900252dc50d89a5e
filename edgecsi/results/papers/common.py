"""What the experiments share: data, figures of one network, finished rows, and how results are written down."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecsi import disk, drawing
from edgecsi.channels.generate import generate
from edgecsi.channels.metrics import nmse_db, rho
from edgecsi.channels.shipped import test_set
from edgecsi.compress import CompressProgress, compress
from edgecsi.compress import recipe as recipes
from edgecsi.compress.codeword import group_codeword, rotate_codeword
from edgecsi.compress.prune import prunable
from edgecsi.compress.recipe import Pattern, Prune
from edgecsi.compress.reconstruct import Reference, reconstruct
from edgecsi.compress.size import density, stored_bytes, zipped_bytes
from edgecsi.disk import cache_dir
from edgecsi.models.checkpoint_files import read_metadata
from edgecsi.models.load import load_model
from edgecsi.results import zoo

Say = Callable[[str], None]
Row = dict[str, Any]
Curve = tuple[list[float], list[float], list[float]]
"""x, y, and the error of y or nothing."""
ModelTimer = Callable[[str, Row | None], Row]
"""Builds MODEL for this machine and times it: (MODEL, what it gave before or None) -> ``library_bytes``,
``latency_us`` (median of the C call), ``validity`` and ``library``, a hash; if library and CPU are the same as
before and that was valid, what it gave before."""
CALIBRATION = "umi:24000:seed=1"  # the training set of the shipped networks
_VERSION = 1  # part of what a finished row means: raised when a figure is computed in another way


@dataclass
class Experiment:
    """Tables, and what to draw of them.

    Attributes:
        name: of the experiment. title: of the figure. about: what the reader must know, in Markdown.
        rows: dictionaries with the same keys. summary: a short table that comes before them, with its title.
        panels: title → label → curve; a plot each, side by side.
        axes: labels of the x and y axis, and whether y is logarithmic. y_range: what of y is drawn.
    """

    name: str
    title: str
    about: str
    rows: list[Row]
    axes: tuple[str, str, bool]
    panels: dict[str, dict[str, Curve]] = field(default_factory=dict)
    summary: tuple[str, list[Row]] | None = None
    y_range: tuple[float, float] | None = None


# training on without compression: a recipe's own loop, schedule and order of the data, imitating nobody
CONTROL = """[[steps]]
do = "distill"
teacher = 0.0
epochs = {epochs}
lr = {lr}
"""


class Finished:
    """Rows and networks that an experiment has finished, so that one which was killed goes on where it was.

    They lie in ``experiments/NAME`` of edgecsi's cache, a file each, named by the hash of all that they depend on.

    Args:
        experiment: its name.
    """

    def __init__(self, experiment: str) -> None:
        self.folder = cache_dir() / "experiments" / experiment

    def row(self, settings: Mapping[str, Any], make: Callable[[], Row]) -> Row:
        """What ``make`` returned when it was last called with these settings, or returns now."""
        found = self.find(settings)
        return self.keep(settings, make()) if found is None else found

    def find(self, settings: Mapping[str, Any]) -> Row | None:
        """The row of these settings, None if there is none."""
        with suppress(OSError, ValueError, KeyError):
            row: Row = json.loads(self.path(settings, ".json").read_text("utf-8"))["row"]
            return row
        return None

    def keep(self, settings: Mapping[str, Any], row: Row) -> Row:
        """Keep a row, replacing an earlier one."""
        path = self.path(settings, ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write(path, json.dumps({"settings": settings, "row": row}, indent=1) + "\n")
        return row

    def network(self, model: str, text: str, data: str, say: Say, batch: int = 100) -> str:
        """File of what a recipe makes of a network, made now if it is not there.

        Args:
            model: dense, of the zoo. text: the recipe. data: to train on. batch: samples a step.
        """
        settings = {"model": model, "weights": load_model(model).sha256, "recipe": text, "data": data}
        path = self.path(settings, ".safetensors")
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)

            def tell(at: CompressProgress) -> None:
                if not at.phase:
                    say(f"{model} {at.kind}, epoch {at.epoch}/{at.epochs}: {at.score:.4g}")

            compress(
                model,
                recipes.parse(text, "experiment"),
                data,
                path,
                batch=batch,
                accept_loss=True,
                progress=tell,
            )
        return str(path)

    def latency(self, model: str, time: ModelTimer | None, say: Say) -> Row:
        """What a timer says of MODEL, or said before; nothing if it was never asked."""
        settings = {"latency": Path(model).name[:20], "weights": load_model(model).sha256}
        found = self.find(settings)
        if time is not None:
            found = self.keep(settings, time(model, found))
            say(f"{Path(model).name}: {found['latency_us']} µs, {found['validity']}")
        return found or {}

    def path(self, settings: Mapping[str, Any], suffix: str) -> Path:
        """Where a file of these settings lies."""
        text = json.dumps([_VERSION, settings], sort_keys=True)
        label = "-".join(
            str(value) for value in settings.values() if isinstance(value, str) and len(value) < 30
        )
        label = "".join(c if c.isalnum() or c in "-." else "_" for c in label)
        return self.folder / f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:12]}{suffix}"


def fingerprint(module: nn.Module) -> str:
    """A hash of all weights of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Shipped:
    """A compressed network that ships: its recipe, MODEL on the command line, and the training behind it."""

    recipe: str
    model: str
    epochs: int
    lr: float


def shipped(network: str, dense_sha256: str | None, say: Say) -> list[Shipped]:
    """The compressed networks that ship, those that were made from these dense weights."""
    found = []
    for _, name, _ in [job for job in zoo.jobs() if job[0] == network]:
        path = zoo.path_of(network, name)
        if not path.is_file():
            continue
        record = json.loads(read_metadata(path)["compression"])
        if record["weights_sha256"] != dense_sha256:
            say(f"{path.name} was made from other dense weights: left out")
            continue
        epochs, lr = 0, 0.0
        for step in recipes.parse(record["recipe_text"], name).steps:
            phases = 2 if isinstance(step, Prune) and step.rewind != "none" else 1
            epochs += step.epochs * phases
            lr = max(lr, step.lr if step.epochs else 0.0)
        found.append(Shipped(name, f"{network}+{name}", epochs, lr))
    return found


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


class Prunable:
    """A network to be pruned by reconstruction again and again, without training.

    Args:
        module: not changed. samples: inputs, float32 ``[N, 2, 32, 32]``.
        together: entries of the codeword that are grouped; 0 to rotate it to its principal components instead.
    """

    def __init__(self, module: nn.Module, samples: Tensor, together: int) -> None:
        self._module, self._samples = copy.deepcopy(module), samples
        with torch.no_grad():
            if together:
                group_codeword(self._module, samples, together)
            else:
                rotate_codeword(self._module, samples)
        dense = [name for name, part in self._module.named_modules() if isinstance(part, nn.Linear)]
        self._reference = Reference(self._module, dense, samples)

    def pruned(self, pattern: str, sparsity: float) -> nn.Module:
        """A copy with this share of zeros in its dense layers together (N:M patterns state it themselves)."""
        copied = copy.deepcopy(self._module)
        layers = prunable(copied, Prune(pattern=pattern, sparsity=sparsity))
        parsed = Pattern.parse(pattern)
        shares = dict.fromkeys(layers, 1 - parsed.keep / parsed.group) if parsed.group else sparsity
        reconstruct(copied, layers, parsed, shares, self._samples, self._reference)
        return copied.eval()


def zeros(module: nn.Module) -> float:
    """Share of zeros in the dense layers together."""
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Linear)]
    return 1 - sum(density(w) * w.numel() for w in weights) / sum(w.numel() for w in weights)


def change(ratio: float) -> str:
    """A ratio to the dense network as the papers state it: 0.135 is −86.5 %."""
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "−")


def write(result: Experiment, folder: Path, command: str) -> list[Path]:
    """Write the JSON, the Markdown table and the figure; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{result.name}{suffix}" for suffix in (".json", ".md", ".svg")]
    content: Row = {"command": command, "about": result.about}
    lines = [f"# {result.title}", "", result.about, ""]
    if result.summary is not None:
        title, rows = result.summary
        content["summary"] = rows
        lines += [f"## {title}", "", *table(rows), "", "## All rows", ""]
    content |= {"rows": result.rows, "panels": result.panels}
    lines += [*table(result.rows), "", f"![figure]({paths[2].name})", "", f"Made by `{command}`.", ""]
    disk.write(paths[0], json.dumps(content, indent=1) + "\n")
    disk.write(paths[1], "\n".join(lines))
    _draw(result, paths[2])
    return paths


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = [f"| {' | '.join(keys)} |", f"|{'---|' * len(keys)}"]
    return head + [f"| {' | '.join(_cell(row.get(key)) for key in keys)} |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _draw(result: Experiment, path: Path) -> None:
    count = max(len(result.panels), 1)
    figure = drawing.figure(1.5 + 5.5 * count, 4.5)
    import matplotlib as mpl

    x_label, y_label, logarithmic = result.axes
    for axes, (title, curves) in zip(
        figure.subplots(1, count, squeeze=False)[0], result.panels.items(), strict=False
    ):
        for label, (x, y, error) in curves.items():
            axes.errorbar(x, y, yerr=np.asarray(error) if error else None, marker="o", capsize=2, label=label)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        if logarithmic:
            axes.set_yscale("log")
        if result.y_range is not None:
            axes.set_ylim(result.y_range)
        axes.grid(True, which="both", alpha=0.3)
        axes.legend(fontsize="small")
    # the same result always draws the same file
    with mpl.rc_context({"svg.hashsalt": result.name}):
        figure.savefig(path, format="svg", metadata={"Date": None})
