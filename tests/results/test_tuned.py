"""What tuning brings to all networks: the page, and which records ship."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from edgecsi.results.tuned import geometric_mean, networks, page, worth_shipping
from edgecsi.tune.result import Candidate, Compared, TunedLayer, TuneResult


def layer(workload: str, default_us: float, best_us: float, others: int = 0) -> TunedLayer:
    return TunedLayer(
        "fc", ("more",) * others, workload, Candidate("a", {}), Candidate("b", {"x": 1}), default_us, best_us,
        default_us > best_us, 9, 0, {"a": (default_us,), "b": (best_us,)},
    )  # fmt: skip


def result(**changes: Any) -> TuneResult:
    entries = {
        "encoder": Compared(20.0, 18.0, 0.9, 0.89, 0.91),
        "decoder": Compared(80.0, 79.0, 0.99, 0.98, 1.0),
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
    faster = {"full": Compared(100.0, 90.0, 0.9, 0.89, 0.91)}
    assert worth_shipping(result(entries=faster)) == {"large", "often"}
    assert worth_shipping(result()) == set()  # 1.8 of 100 is sure
    assert worth_shipping(result(entries={"full": Compared(100.0, 90.0, 0.9, 0.79, 1.01)})) == set()


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


def test_all_that_ships_is_tuned() -> None:
    assert {"csinet-cr4", "fullycon", "csinet-cr4+prune90-bsr16x4-int8"} <= set(networks())
