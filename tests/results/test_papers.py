"""How experiments are written down; that they run is checked by their quick modes."""

from __future__ import annotations

import copy
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecsi.compress import recipe
from edgecsi.models import fullycon
from edgecsi.results import zoo
from edgecsi.results.papers import NAMES
from edgecsi.results.papers.common import Curve, Experiment, Finished, change, fingerprint, write
from edgecsi.results.papers.guo_detection import compare, wrong_bits
from edgecsi.results.papers.patterns import at_budget


def test_results_are_written_the_same_every_time(tmp_path: Path) -> None:
    rows = [{"model": "a", "nmse_db": -17.123456}, {"model": "b", "nmse_db": None, "note": "x"}]
    panels: dict[str, dict[str, Curve]] = {
        "left": {"a": ([1, 2], [3, 4], [])},
        "right": {"b": ([1], [2], [1])},
    }
    short = ("In short", [{"best": "a"}])
    result = Experiment("mine", "Title", "About.", rows, ("x", "y", False), panels, short, (0.0, 5.0))
    first = [path.read_bytes() for path in write(result, tmp_path, "make it")]
    assert first == [path.read_bytes() for path in write(result, tmp_path, "make it")]
    written = json.loads(first[0])
    assert (written["rows"], written["summary"]) == (rows, short[1])
    text = first[1].decode()
    assert "| a | -17.12 |  |" in text
    assert text.index("## In short") < text.index("| best |") < text.index("## All rows")
    assert first[2].startswith(b"<?xml")
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_finished_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECSI_CACHE", str(tmp_path))
    settings = {"model": "a", "sparsity": 0.5}
    assert Finished("mine").find(settings) is None
    assert Finished("mine").row(settings, lambda: {"nmse_db": -1.5}) == {"nmse_db": -1.5}
    assert Finished("mine").row(dict(reversed(settings.items())), dict) == {"nmse_db": -1.5}
    assert Finished("mine").find(settings | {"sparsity": 0.6}) is None
    assert Finished("other").find(settings) is None
    Finished("mine").path(settings, ".json").write_text('{"row"')  # torn by an earlier version, or by hand
    assert Finished("mine").row(settings, lambda: {"nmse_db": -2}) == {"nmse_db": -2}


def test_a_hash_tells_networks_apart() -> None:
    one = torch.nn.Linear(3, 2)
    two = copy.deepcopy(one)
    assert fingerprint(one) == fingerprint(two)
    with torch.no_grad():
        two.weight[0, 0] += 1e-6
    assert fingerprint(one) != fingerprint(two)


def test_changes_are_written_as_the_papers_write_them() -> None:
    assert change(0.135) == "−86.5 %"
    assert change(1.2) == "+20.0 %"


def test_sparsity_at_the_budget_is_interpolated() -> None:
    assert at_budget(([0.5, 0.7, 0.9], [0.0, 0.25, 0.75], [])) == "80.0%"
    assert at_budget(([0.5, 0.7, 0.9], [0.1, 0.05, 0.6], [])) == "86.0%"
    assert at_budget(([0.5, 0.7], [1.0, 2.0], [])) == "below 50%"
    assert at_budget(([0.5, 0.7], [0.1, 0.2], [])) == "70% or more"


def test_errors_that_both_make_cancel() -> None:
    rng = np.random.default_rng(0)
    dense = (rng.random(100_000) < 0.02).astype(np.uint8)
    same = compare(dense, dense)
    assert (same.ratio, same.paired) == (1.0, 0.0)
    assert same.bits == 20 * 100_000
    more = dense | (rng.random(100_000) < 0.001).astype(np.uint8)
    alike, apart = compare(more, dense), compare(rng.permutation(more), dense)
    assert alike.ratio == apart.ratio == pytest.approx(1.05, abs=0.02)
    assert alike.spread == pytest.approx(np.sqrt(alike.errors), rel=0.05)
    # about 100 errors differ of 2000; unpaired, all of both count
    assert alike.paired == pytest.approx(np.sqrt(100) / 2000, rel=0.3)
    assert apart.paired == pytest.approx(np.sqrt(4100) / 2000, rel=0.1)


def test_all_networks_see_the_same_transmissions() -> None:
    class Decorrelator(torch.nn.Module):
        def forward(self, received: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(fullycon.zero_forcing(received.numpy()))

    first, again = (wrong_bits(Decorrelator(), 8.0, 30_000) for _ in range(2))
    assert np.array_equal(first, again)
    assert np.array_equal(first[:20_000], wrong_bits(Decorrelator(), 8.0, 20_000))
    assert first.sum() > 100


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_a_file(name: str) -> None:
    assert callable(import_module(f"edgecsi.results.papers.{name.replace('-', '_')}").run)


def test_the_zoo_names_recipes_that_exist() -> None:
    jobs = zoo.jobs()
    assert len(set(jobs)) == len(jobs)
    assert {name for _, name, _ in jobs} <= set(recipe.list_recipes())
