import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgecsi.cli import main
from edgecsi.models.checkpoint_files import read_metadata
from edgecsi.models.registry import WEIGHTS


def test_models_lists_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("csinet-cr4", "crnet-cr16", "clnet-cr64", "fullycon"))


def test_models_show_counts_macs_per_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "csinet-cr4", "--json", "-"]) == 0
    cost = json.loads(capsys.readouterr().out)["cost"]
    assert cost["full"]["macs"] == cost["encoder"]["macs"] + cost["decoder"]["macs"] == 5_414_912


def test_compressed_networks_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    name = "csinet-cr4+prune90-bsr16x4-int8-dynamic"
    record = json.loads(read_metadata(WEIGHTS / f"{name}.safetensors")["compression"])
    before, after, pruned = (
        f"{score:.4g}" for score in (record["before"], record["after"], record["steps"][0]["score"])
    )
    share = f"{record['bytes_after'] / record['bytes_before']:.1%}"
    assert float(before) < float(after) < float(before) + 0.5
    assert main(["models"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name} ")]
    assert line.split()[1:] == ["nmse_db", before, after, share]

    assert main(["models", "show", name]) == 0
    output = capsys.readouterr().out
    for told in (
        f"prune, then nmse_db {pruned}",
        "umi:24000:seed=1",
        f"{before} before, {after} after",
        f"({share})",
    ):
        assert told in output
    assert main(["models", "show", name, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"].endswith(f"{name}.safetensors")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("csinet-cr5", "csinet-cr4"),
        ("csinet-cr4+int8-trainde", "csinet-cr4+int8-trained"),
        ("csinet+", "csinet"),
    ],
)
def test_models_show_suggests_the_nearest_name(
    name: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "show", name]) == 3
    assert nearest in capsys.readouterr().err


def test_recipes_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json", "-"]) == 0
    names = [recipe["name"] for recipe in json.loads(capsys.readouterr().out)]
    assert "int8-dynamic" in names
    for name in names:
        assert main(["recipes", "show", name]) == 0


def test_a_wrong_recipe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "bad.toml"
    recipe.write_text('[[steps]]\ndo = "prune"\npattern = "bsr16x1"\nsparsity = 1.5\n')
    assert main(["recipes", "show", str(recipe)]) == 3
    assert "sparsity" in capsys.readouterr().err
    assert main(["recipes", "show", "no-such-recipe"]) == 3


def test_train_leaves_weights_and_a_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.safetensors"
    options = ["--data", "cdl-c:40:seed=1", "--epochs", "2", "--batch", "12", "--threads", "1", "--json", "-"]
    assert main(["train", "csinet-cr64", "-o", str(out), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert out.is_file()
    assert [epoch["epoch"] for epoch in found["history"]] == [1, 2]
    assert Path(found["curve_json"]).is_file()


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("train", ["csinet-cr64", "--epochs", "1"]),
        ("compress", ["csinet-cr16", "--recipe", "int8-weights"]),
    ],
)
def test_generating_channels_shows_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, options: list[str]
) -> None:
    told: list[tuple[float, float, str]] = []

    @contextmanager
    def progress(title: str) -> Iterator[Callable[[float, float, str], None]]:
        yield lambda done, total, what: told.append((done, total, what))

    monkeypatch.setattr(f"edgecsi.cli.{verb}.progress", progress)
    monkeypatch.setenv("EDGECSI_CACHE", str(tmp_path / "empty"))
    data = "cdl-c:20:seed=5"
    assert main([verb, *options, "--data", data, "-o", str(tmp_path / "o.safetensors"), "--json", "-"]) == 0
    assert (20, 20, f"generating {data}") in told
    assert told[-1][2] != f"generating {data}"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["csinet-cr5", "--data", "cdl-c:40"], 3),
        (["csinet-cr64", "--data", "missing.npz"], 3),
        (["csinet-cr64", "--data", "cdl-c:40", "--epochs", "0"], 2),
        (["csinet-cr64"], 2),
    ],
)
def test_train_refuses_what_makes_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    assert main(["train", *arguments, "-o", str(tmp_path / "x.safetensors")]) == code
    assert "Traceback" not in capsys.readouterr().err
