"""Recipes: read strictly, explained in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecsi.compress import recipe
from edgecsi.compress.recipe import Pattern
from edgecsi.errors import RecipeError

PRUNE = '[[steps]]\ndo = "prune"\npattern = "bsr16x1"\nsparsity = 0.9\n'
WIDE = '[[steps]]\ndo = "quantize"\nmode = "static"\nwide = ["*"]\n'


@pytest.mark.parametrize("name", recipe.list_recipes())
def test_every_shipped_recipe_reads_and_explains_itself(name: str) -> None:
    shipped = recipe.load(name)
    assert shipped.name == name
    assert len(shipped.description) > 20
    assert len(shipped.explain()) == len(shipped.steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no steps"),
        ("steps = 3", "steps is not valid\nexpected a list, found 3"),
        ("steps = []", "no steps"),
        ("steps = [1]", r"steps\[0\] is not valid\nexpected an object, found 1"),
        ("steps = [", "not valid TOML"),
        ("description = 3\n" + PRUNE, "description is not valid\nexpected text, found 3"),
        ("colour = 'red'\n" + PRUNE, "colour is not valid\nexpected no such field"),
        ("[[steps]]\nsparsity = 0.9", "do = None"),
        ("[[steps]]\ndo = []", r"do = \[\]"),
        ('[[steps]]\ndo = "shrink"', "do = 'shrink'"),
        ('[[steps]]\ndo = "prune"\nsparsity = 0.5', "pattern is not valid\nexpected this field"),
        ('[[steps]]\ndo = "prune"\npattern = "rows"', "sparsity is 0"),
        (
            PRUNE.replace("0.9", "1.5"),
            "step 1: sparsity is not valid\nexpected a number from 0 to 0.999, found 1.5",
        ),
        (PRUNE.replace("0.9", "-0.1"), "sparsity is not valid\n.*found -0.1"),
        (PRUNE.replace("0.9", "nan"), "not valid TOML\nnan"),
        (PRUNE.replace("0.9", "true"), "sparsity is not valid\n.*found True"),
        (PRUNE.replace("0.9", '"much"'), "sparsity is not valid\n.*found much"),
        (PRUNE + "epochs = 2.5", "epochs is not valid\nexpected a whole number from 0 to 100,000, found 2.5"),
        (PRUNE + 'exclude = "encoder"', "exclude is not valid\nexpected a list, found encoder"),
        ('[[steps]]\ndo = "quantize"\nkeep_fp32 = []', "keep_fp32 is not valid\\n.*did you mean keep-fp32"),
        ('[[steps]]\ndo = "quantize"\nkeep-fp32 = 3', "keep-fp32 is not valid\\nexpected a list"),
        (PRUNE + "sparsty = 0.5", "did you mean sparsity"),
        (PRUNE.replace("bsr16x1", "bsr0x4"), "no pattern 'bsr0x4'"),
        (PRUNE.replace("bsr16x1", "4:2"), "no pattern '4:2'"),
        (PRUNE.replace("bsr16x1", "2:4"), "2:4 means 0.5"),
        ('[[steps]]\ndo = "quantize"\n' + PRUNE, "prune comes after quantize"),
        ('[[steps]]\ndo = "cluster"\n' + PRUNE, "prune comes after cluster"),
        (
            '[[steps]]\ndo = "cluster"\ncentroids = 17',
            "centroids is not valid\nexpected 16 or 32 or 64 or 256, found 17",
        ),
        (
            '[[steps]]\ndo = "quantize"\nmode = "ternary"',
            "mode is not valid\nexpected 'static' or 'dynamic'",
        ),
        (WIDE.replace("static", "dynamic"), "wide is for static quantisation\nmode is 'dynamic'"),
        (WIDE.replace("static", "weights"), "wide is for static quantisation\nmode is 'weights'"),
    ],
)
def test_bad_recipes_are_refused_in_three_lines(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        recipe.parse(text, "mine")
    assert len(str(caught.value).splitlines()) == 3


def test_files_and_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(PRUNE)
    assert recipe.load(file).name == "mine"
    with pytest.raises(RecipeError, match="did you mean int8-static"):
        recipe.load("int8-statik")
    for name, instead in (("bf16", "int16"), ("prune90-bsr16x4-BF16", "prune90-bsr16x4-int16")):
        with pytest.raises(RecipeError, match=f"nothing is computed in bf16.*\n.*\ntake {instead}, or "):
            recipe.load(name)
    with pytest.raises(RecipeError, match="cannot be read"):
        recipe.load(tmp_path / "none.toml")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not valid TOML"):
        recipe.load(file)
    file.write_text("#" * 100_000)
    with pytest.raises(RecipeError, match="too large"):
        recipe.load(file)


def test_what_a_build_may_apply() -> None:
    assert recipe.load("int8-dynamic").post_training
    assert recipe.load("int8-static").post_training
    assert not recipe.parse(PRUNE, "t").post_training


def test_patterns() -> None:
    assert Pattern.parse("bsr16x4") == Pattern("bsr16x4", 16, 4)
    assert Pattern.parse("rows") == Pattern("rows", 1, 0)
    assert Pattern.parse("columns") == Pattern("columns", 0, 1)
    assert Pattern.parse("2:4") == Pattern("2:4", keep=2, group=4)
