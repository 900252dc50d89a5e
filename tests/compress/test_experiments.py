"""How experiments are written down; that they run is checked by their quick modes."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from edgecsi.compress import recipe, zoo
from edgecsi.compress.experiments import NAMES
from edgecsi.compress.experiments.common import Result, write
from edgecsi.compress.experiments.patterns import _at_budget


def test_results_are_written_the_same_every_time(tmp_path: Path) -> None:
    rows = [{"model": "a", "nmse_db": -17.123456}, {"model": "b", "nmse_db": None, "note": "x"}]
    result = Result("mine", "Title", "About.", rows, ("x", "y", False), {"a": ([1, 2], [3, 4], [])})
    first = [path.read_bytes() for path in write(result, tmp_path, "make it")]
    assert first == [path.read_bytes() for path in write(result, tmp_path, "make it")]
    assert json.loads(first[0])["rows"] == rows
    assert "| a | -17.12 |  |" in first[1].decode()
    assert first[2].startswith(b"<?xml")
    assert len(list(tmp_path.iterdir())) == 3


def test_sparsity_at_the_budget_is_interpolated() -> None:
    curve = ([0.5, 0.7, 0.9], [0.0, 0.25, 0.75], [])
    assert _at_budget({"a": curve}) == "a 80.0%"
    assert _at_budget({"a": ([0.5, 0.7], [1.0, 2.0], [])}) == "a below 50%"
    assert _at_budget({"a": ([0.5, 0.7], [0.1, 0.2], [])}) == "a above 70%"


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_a_file(name: str) -> None:
    assert callable(import_module(f"edgecsi.compress.experiments.{name.replace('-', '_')}").run)


def test_the_zoo_names_recipes_that_exist() -> None:
    jobs = zoo.jobs()
    assert len(set(jobs)) == len(jobs)
    assert {name for _, name, _ in jobs} <= set(recipe.list_recipes())
