"""What tuning brings to all networks: the page, and which records ship."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgecsi.kernels.records import Record, append
from edgecsi.results import tuned
from edgecsi.results.tuned import geometric_mean, networks, next_of, page, summary, worth_shipping
from edgecsi.tune.result import Candidate, InPlace, TunedLayer, TuneResult


def layer(workload: str, default_us: float, best_us: float, others: int = 0) -> TunedLayer:
    return TunedLayer(
        "fc", ("more",) * others, workload, Candidate("a", {}), Candidate("b", {"x": 1}), default_us, best_us,
        default_us > best_us, 9, 0, {"a": (default_us,), "b": (best_us,)},
    )  # fmt: skip


def result(**changes: Any) -> TuneResult:
    entries = {
        "encoder": InPlace(20.0, 18.0, 0.9, 0.89, 0.91),
        "decoder": InPlace(80.0, 79.0, 0.99, 0.98, 1.0),
    }
    layers = (
        layer("large", 10.0, 6.0),
        layer("small", 1.0, 0.9),
        layer("same", 5.0, 5.0),
        layer("often", 3.0, 2.0, 3),
    )
    made = TuneResult(
        "net", "host", "znver4", "local", "measured", "2026-11-30", layers, entries, "r.jsonl", 9, 0, 1.0, True
    )  # fmt: skip
    return replace(made, **changes)


def test_only_what_gains_a_share_of_the_network_ships() -> None:
    faster = {"full": InPlace(100.0, 90.0, 0.9, 0.89, 0.91)}
    assert worth_shipping(result(entries=faster)) == {"large", "often"}
    assert worth_shipping(result()) == set()  # 1.8 of 100 is sure
    assert worth_shipping(result(entries={"full": InPlace(100.0, 90.0, 0.9, 0.79, 1.01)})) == set()


def test_what_was_counted_ships_where_cycles_fall_too() -> None:
    faster = {"full": InPlace(100.0, 90.0, 0.9, 0.9, 0.9)}
    for cycles, ships in (((10.0, 6.0), {"large"}), ((10.0, 9.8), set()), ((None, None), set())):
        counted = replace(layer("large", 10.0, 6.0), default_cycles=cycles[0], best_cycles=cycles[1])
        assert worth_shipping(result(means="counted", layers=(counted,), entries=faster)) == ships
    parts = tuple(replace(layer(w, 10.0, 8.0), default_cycles=9.0, best_cycles=8.0) for w in ("one", "two"))
    for ratio, all_ship in ((0.96, {"one", "two"}), (0.98, set())):  # 2 % each, of the whole
        whole = {"full": InPlace(100.0, 100 * ratio, ratio, ratio, ratio)}
        assert worth_shipping(result(means="counted", layers=parts, entries=whole)) == all_ship


def test_the_mean_of_ratios() -> None:
    mean, low, high = geometric_mean(
        [{"ratio": 0.5, "low": 0.49, "high": 0.51}, {"ratio": 1.0, "low": 1.0, "high": 1.0}]
    )
    assert mean == pytest.approx(0.5**0.5)
    assert low < mean < high < 0.72


def test_the_page_has_every_entry() -> None:
    tree = asdict(result()) | {"validity": {"state": "valid", "reasons": []}}
    text = page({"tuned-host": {"machine": {"cpu": "EPYC"}, "date": "2026-11-30", "networks": {"net": tree}}})
    assert "| net | encoder | 20.0 | 18.0 | 0.900 | 0.890 to 0.910 | 3 |" in text
    assert "**0.944**" in text
    stored = {"tuned-host": {"machine": {"cpu": "EPYC"}, "networks": {"net": tree}}}
    said = summary(stored, Path("docs/results/epyc"))
    assert "For host on EPYC: 0.944 of the defaults' time" in said
    assert "most for net, encoder: 0.900" in said
    assert "(../results/epyc/tuned.md)" in said


def test_all_that_ships_is_tuned() -> None:
    assert {"csinet-cr4", "fullycon", "csinet-cr4+prune90-bsr16x4-int8"} <= set(networks())


def works(**seconds: float) -> Any:
    return {
        key: SimpleNamespace(choice=SimpleNamespace(cost=SimpleNamespace(seconds=value)))
        for key, value in seconds.items()
    }


def test_what_most_networks_have_is_searched_first() -> None:
    all_works = {"one": works(large=5.0), "two": works(shared=2.0, own=1.0), "three": works(shared=2.0)}
    assert next_of(all_works, set()) == ("one", 0.5)
    all_works["four"] = works(shared=2.0)
    assert next_of(all_works, set())[0] == "two"
    assert next_of(all_works, {"shared"})[0] == "one"
    assert next_of(all_works, {"large", "own", "shared"})[1] == 1.0


def test_all_are_tuned_in_one_go_and_again_where_a_choice_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second network gives up what the first one had confirmed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuned, "networks", lambda: ["a", "b"])
    monkeypatch.setattr(tuned, "lowered_entries", lambda *arguments: {})
    monkeypatch.setattr(tuned, "kinds_of", lambda lowered: works(w=1.0))
    file, order = tmp_path / "r.jsonl", []

    def tune(name: str, target: str, *, minutes: float, **options: Any) -> TuneResult:
        order.append(name)
        best = "b" if order == ["a"] else "a"
        found = layer("w", 2.0, 1.0 if best == "b" else 2.0)
        found = replace(found, best=Candidate(best, {}))
        record = Record(
            "choice", "w", "fc", best, {}, "", target, "znver4", version("apache-tvm"), "measured", 1.0
        )
        append(file, [record])
        return result(layers=(found,), records=str(file), complete=order != ["a", "b"])

    monkeypatch.setattr(tuned, "tune", tune)
    assert tuned.main(["--records", str(file), "--target", "x86"]) == 0
    assert sorted(order[:2]) == ["a", "b"]
    assert sorted(order[2:]) == ["a", "b"]  # one was given up, the other had no time for all
    assert tuned.main(["--records", str(file), "--target", "x86"]) == 0
    assert len(order) == 4  # all done
    assert (tmp_path / "docs" / "results" / "tuned.md").is_file()
