"""Fewer bits where that is allowed: what is chosen, and the recipe that comes of it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecsi.cli import main
from edgecsi.compress import recipe as recipes
from edgecsi.errors import Notice, UsageError
from edgecsi.tune import precision
from edgecsi.tune.precision import Option, choose, tune_with
from edgecsi.tune.result import InPlace, TuneResult

NET = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(48, 40), torch.nn.ReLU(), torch.nn.Linear(40, 24)), torch.zeros(1, 48)
"""
OPTIONS = [
    Option("a", "f16 weights", 6.0, 4.0, 0.001), Option("a", "int8 weights", 3.0, 7.0, 0.05),
    Option("b", "f16 weights", 60.0, 40.0, 0.001), Option("b", "int8, dynamic", 30.0, 70.0, 0.4),
]  # fmt: skip


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1.0, {"a": "int8 weights", "b": "int8, dynamic"}),
        (0.1, {"a": "int8 weights", "b": "f16 weights"}),
        (0.01, {"a": "f16 weights", "b": "f16 weights"}),
        (0.0, {}),
    ],
)
def test_the_fastest_formats_within_the_loss_are_chosen(most: float, expected: dict[str, str]) -> None:
    assert choose(OPTIONS, most, lambda mixture: 0.0) == expected


def test_losses_that_add_up_to_more_than_they_do_alone_cost_a_format() -> None:
    assert choose(OPTIONS, 1.0, lambda mixture: 0.6 * len(mixture)) == {"a": "int8 weights"}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network whose tuning takes no time: int8 layers take half of what others do."""
    (tmp_path / "net.py").write_text(NET)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32))

    def tuned(model: str, target: str, *, recipe: str | None = None, **options: Any) -> TuneResult:
        us = 10.0 if recipe is None else 6.0
        if recipe is not None and Path(recipe).name == "all.toml":  # what is only tried is not told
            warnings.warn(Notice("recipe all loses 12 dB"), stacklevel=1)
        entries = {"full": InPlace(us, us, 1.0, 1.0, 1.0)}
        return TuneResult(
            model, target, "cpu", "local", "measured", "", (), entries, str(tmp_path / "r"), 0, 0, 0.0, True
        )

    monkeypatch.setattr(precision, "tune", tuned)
    monkeypatch.setattr(
        precision, "_times",
        lambda network, target, result, recipe: dict.fromkeys(
            network.layers, 5.0 if recipe is None or 'mode = "weights"' not in recipe.read_text() else 2.0
        ),
    )  # fmt: skip
    return f"{tmp_path / 'net.py'}:make"


def test_a_recipe_comes_of_it(model: str, tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    result = tune_with(
        model, "x86", allow=["f16", "int8"], max_loss_db=0.1, data=str(tmp_path / "x.npy"), recipe_to=out
    )
    assert result.precision is not None
    assert result.precision.formats == {"0": "int8 weights", "2": "int8 weights"}
    assert 0 <= result.precision.loss_db <= 0.1
    (step,) = recipes.load(out).steps
    assert isinstance(step, recipes.Quantize)
    assert step.mode == "weights"
    assert recipes.load(out).post_training


def test_nothing_is_written_where_nothing_is_gained(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = precision.tune
    monkeypatch.setattr(
        precision, "tune",
        lambda *a, **o: replace(real(*a, **o), entries={"full": InPlace(10.0, 10.0, 1.0, 1.0, 1.0)}),
    )  # fmt: skip
    out = tmp_path / "mine.toml"
    result = tune_with(
        model, "x86", allow=["int8"], max_loss_db=0.1, data=str(tmp_path / "x.npy"), recipe_to=out
    )
    assert result.precision is not None
    assert not result.precision.recipe
    assert not out.exists()


def test_unknown_formats_and_losses_are_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="no format 'int9'"):
        tune_with(model, "x86", allow=["int9"], max_loss_db=0.1, data="test", recipe_to=tmp_path / "t.toml")
    assert main(["tune", model, "--target", "x86", "--allow", "int8", "--max-loss", "much"]) == 2
    assert "much is no loss" in capsys.readouterr().err


def test_convolutions_and_dense_layers_may_be_int16_where_that_is_faster(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text("""
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(32, 4)), \\
        torch.zeros(1, 2, 4, 4)
""")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 2, 4, 4)).astype(np.float32))
    monkeypatch.setattr(
        precision, "_times",
        lambda network, target, result, recipe: dict.fromkeys(
            network.layers, 2.0 if recipe is not None and "int16" in recipe.read_text() else 5.0
        ),
    )  # fmt: skip
    out = tmp_path / "mine.toml"
    asked = {"max_loss_db": 1.0, "data": str(tmp_path / "x.npy"), "recipe_to": out}
    result = tune_with(model, "x86", allow=["f16", "int16"], minutes=1.0, **asked)
    assert result.precision is not None
    assert result.precision.formats == {"0": "int16", "2": "int16"}
    (step,) = recipes.load(out).steps
    assert isinstance(step, recipes.Halve)
    assert (step.arithmetic, step.layers) == ("int16", ("0", "2"))
    with pytest.raises(UsageError, match="int16"):
        tune_with(model, "rpi4", allow=["int16"], **asked)
