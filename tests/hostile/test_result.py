"""Results from strangers: refused, or shown as the text they are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecsi.bench import result as results
from edgecsi.cli import main
from edgecsi.errors import DataError
from edgecsi.report.export import as_csv, as_json, markdown
from edgecsi.report.html import html
from edgecsi.report.make import make_report
from edgecsi.report.read import read_shown
from tests import _results

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&`|=cmd()"


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        _results.written(tmp_path, "run", _results.result(peer=500.0)).read_text()
    )
    return found


def _set(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: Any) -> None:
        for step in path[:-1]:
            tree = tree[step]
        tree[path[-1]] = value

    return change


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another kind": _set("kind", value="edgecsi bundle"),
    "no kind": lambda tree: tree.pop("kind"),
    "schema of text": _set("schema", value="1"),
    "schema true": _set("schema", value=True),
    "schema of the future": _set("schema", value=99),
    "a field too many": _set("extra", value=1),
    "a field too few": lambda tree: tree.pop("machine"),
    "NaN": _set("engines", 0, "warm", "median", value=float("nan")),
    "infinity": _set("engines", 0, "warm", "p90", value=float("inf")),
    "text for a number": _set("engines", 0, "warm", "median", value="45"),
    "true for a number": _set("engines", 0, "warm", "samples", value=True),
    "samples of text": _set("engines", 0, "samples", value=["1"] * 8000),
    "samples of fractions": _set("engines", 0, "samples", value=[1.5] * 8000),
    "samples below zero": _set("engines", 0, "samples", value=[-1] * 8000),
    "samples too large": _set("engines", 0, "samples", value=[2**70] * 8000),
    "nested samples": _set("engines", 0, "samples", value=[[1], [2, 3]]),
    "no samples": _set("engines", 0, "samples", value=[]),
    "rounds that do not add up": _set("engines", 0, "rounds", value=[1, 2]),
    "a broken histogram": _set("engines", 0, "samples", value={"count": 1, "histogram": {"edges_ns": [], "counts": []}}),
    "an endless histogram": _set(
        "engines", 0, "samples",
        value={"count": 20_000, "histogram": {"edges_ns": list(range(20_001)), "counts": [1] * 20_000}},
    ),
    "engines of numbers": _set("engines", value=[1, 2]),
    "engines of text": _set("engines", value="edgecsi"),
    "no engine's name": lambda tree: tree["engines"][0].pop("name"),
    "an endless name": _set("bundle", "name", value="x" * 20_000),
    "an unknown validity": _set("validity", "state", value="perfect"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_result_is_refused(name: str, tree: dict[str, Any], tmp_path: Path) -> None:
    BROKEN[name](tree)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError) as error:
        read_shown([path])
    assert "broken.json" in str(error.value)
    assert error.value.fix
    assert main(["report", str(path), "-o", str(tmp_path / "page.html")]) == 3
    assert not (tmp_path / "page.html").exists()
    assert main(["compare", str(path), str(path)]) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "1",
        '{"kind": "edgecsi bench", "schema": 2}',
        "[" * 100_000,
        '{"a": 1e999}',
        '"\\ud800"',
        "\0",
    ],
)
def test_what_is_no_result_at_all_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"broken\.json"):
        read_shown([path])


def test_a_gigabyte_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as stream:
        stream.truncate(1 << 30)
    monkeypatch.setattr(results, "MAX_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"huge\.json") as error:
        read_shown([path])
    assert "more than 1 MB" in error.value.why


def test_a_result_that_never_ends_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "MAX_BYTES", 1 << 20)
    with pytest.raises(DataError):
        read_shown([Path("/dev/zero")])


def test_text_of_a_result_makes_no_markup(tmp_path: Path) -> None:
    found = _results.result(peer=500.0)
    bundle = dataclasses.replace(
        found.bundle, name=EVIL, model=EVIL, recipe=EVIL, target=EVIL, data=EVIL, digest=EVIL
    )
    engines = tuple(dataclasses.replace(engine, version=EVIL) for engine in found.engines)
    engines = (dataclasses.replace(engines[0], name=EVIL), *engines[1:])
    evil = dataclasses.replace(
        found,
        bundle=bundle,
        entry=EVIL,
        device=EVIL,
        engines=engines,
        machine=dataclasses.replace(found.machine, cpu=EVIL, caches={EVIL: EVIL}, versions={EVIL: EVIL}),
        before=dataclasses.replace(found.before, governor=EVIL, date=EVIL),
        after=dataclasses.replace(found.after, date=EVIL),
        validity=results.Validity("suspect", (EVIL,)),
        layers=tuple(dataclasses.replace(layer, name=EVIL, kernel=EVIL) for layer in found.layers),
        skipped=(results.Skipped(EVIL, EVIL, EVIL),),
        commands=(EVIL,),
        program=EVIL,
    )
    others = [
        dataclasses.replace(evil, bundle=dataclasses.replace(bundle, nmse_db=-float(i))) for i in range(3)
    ]
    for number, group in enumerate(([evil], others)):
        paths = [_results.written(tmp_path, f"{number}-{i}", one) for i, one in enumerate(group)]
        report = make_report(read_shown(paths), title=EVIL)
        page = html(report)
        assert page.count("<script") == page.count("</script") == 1
        assert "<img" not in page
        text = markdown(report)
        for line in text.replace(EVIL + "\n", "").splitlines():
            assert "<script" not in line
            assert "<img" not in line
        assert all(
            not cell.startswith(("=", "+", "@"))
            for line in as_csv(report).splitlines()
            for cell in line.split(",")
        )
        json.loads(as_json(report))


def test_a_folder_may_hold_other_files_but_not_broken_results(tmp_path: Path, tree: dict[str, Any]) -> None:
    (tmp_path / "other.json").write_text('{"kind": "limits"}')
    assert len(read_shown([tmp_path])) == 1
    tree["schema"] = 77
    (tmp_path / "zz.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"zz\.json"):
        read_shown([tmp_path])
