"""Training: it learns, it can be interrupted anywhere, and it leaves a full record."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgecsi.channels.shipped import test_set as shipped_set
from edgecsi.errors import DataError, InputError, ModelError, UsageError
from edgecsi.models import fullycon
from edgecsi.models.load import load_model
from edgecsi.training import loop
from edgecsi.training.loop import Epoch
from edgecsi.training.tasks import Reconstruction
from edgecsi.training.train import TrainResult, train


@pytest.fixture
def data(tmp_path: Path) -> str:
    np.save(tmp_path / "data.npy", shipped_set(88))
    return str(tmp_path / "data.npy")


def short(data: str, out: Path, **options: Any) -> TrainResult:
    return train("csinet-cr64", data, out, **{"epochs": 3, "batch": 16, "seed": 5, **options})


def test_it_learns_and_writes_weights_that_say_how_they_were_made(data: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "csinet.safetensors"
    seen: list[tuple[Epoch, int]] = []
    result = short(data, out, epochs=6, progress=lambda epoch, epochs: seen.append((epoch, epochs)))
    assert [(epoch.epoch, epochs) for epoch, epochs in seen] == [(n, 6) for n in range(1, 7)]
    assert seen[-1][0].loss < seen[0][0].loss / 1.5
    assert result.best == min(epoch.score for epoch in result.history) == seen[-1][0].best
    model = load_model(str(out))
    assert model.name == "csinet-cr64"
    options = f"--data {data} --epochs 6 --lr 0.001 --batch 16 --seed 5"
    assert model.metadata["command"] == f"edgecsi train csinet-cr64 {options} -o csinet.safetensors"
    assert float(model.metadata["nmse_db"]) == result.best
    assert set(json.loads(model.metadata["versions"])) == {"edgecsi", "torch", "sionna-no-rt"}
    assert sorted(os.listdir(out.parent)) == ["csinet.json", "csinet.png", "csinet.safetensors"]


def test_the_kept_weights_are_those_of_the_best_epoch(data: str, tmp_path: Path) -> None:
    result = short(data, tmp_path / "a.safetensors", epochs=4)
    held_out = torch.from_numpy(shipped_set(88)[80:])
    module = load_model(str(result.weights)).module
    with torch.no_grad():
        error = (module(held_out) - held_out).square().sum((1, 2, 3))
    ratio = (error / (held_out - 0.5).square().sum((1, 2, 3))).mean()
    assert 10 * float(torch.log10(ratio)) == pytest.approx(result.best, abs=1e-4)


def test_the_curve_is_a_file_that_can_be_read(data: str, tmp_path: Path) -> None:
    result = short(data, tmp_path / "a.safetensors")
    curve = json.loads(result.curve_json.read_text())
    assert [epoch["epoch"] for epoch in curve["history"]] == [1, 2, 3]
    assert curve["metric"] == "nmse_db"
    assert curve["nmse_db"] == result.best
    assert result.curve_png is not None
    assert result.curve_png.read_bytes().startswith(b"\x89PNG")


def test_same_arguments_same_bytes(data: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = short(data, tmp_path / "1" / "a.safetensors").weights.read_bytes()
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random numbers moved"
    torch.manual_seed(2)
    assert short(data, tmp_path / "2" / "a.safetensors").weights.read_bytes() == first
    assert short(data, tmp_path / "3" / "a.safetensors", seed=6).weights.read_bytes() != first


@pytest.mark.parametrize("step", [0, 3, 5, 8, 12, 17])
def test_killed_anywhere_it_ends_the_same(
    step: int, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 steps an epoch, then the validation: the steps above lie within, between and at the end."""
    whole = short(data, tmp_path / "whole" / "a.safetensors").weights.read_bytes()
    loss = Reconstruction.loss
    calls = 0

    def killed(self: Reconstruction, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > step:
            raise KeyboardInterrupt
        return loss(self, output, target)

    out = tmp_path / "killed" / "a.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Reconstruction, "loss", killed)
        with pytest.raises(KeyboardInterrupt):
            short(data, out)
    assert not out.exists()
    assert short(data, out).weights.read_bytes() == whole


def interrupted(data: str, out: Path) -> None:
    def stop(epoch: Epoch, epochs: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        short(data, out, progress=stop)


def test_it_goes_on_from_weights_and_so_does_the_curve(data: str, tmp_path: Path) -> None:
    first = short(data, tmp_path / "a.safetensors")
    second = short(data, tmp_path / "b.safetensors", init=str(first.weights), lr=1e-4, epochs=2)
    assert second.history[0].loss < first.history[0].loss
    curve = json.loads(second.curve_json.read_text())
    assert [past["score"] for past in curve["earlier"]] == [past.score for past in first.history]
    assert curve["init"] == str(first.weights) in curve["command"]
    with pytest.raises(ModelError, match="does not hold the weights of csinet-cr32"):
        train("csinet-cr32", data, tmp_path / "c.safetensors", epochs=1, init=str(first.weights))


def test_frozen_layers_stay_while_the_others_learn(data: str, tmp_path: Path) -> None:
    first = short(data, tmp_path / "a.safetensors")
    second = short(data, tmp_path / "b.safetensors", init=str(first.weights), freeze=("*fc",), epochs=1)
    before, after = load_file(first.weights), load_file(second.weights)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    dense = {name for name in before if name.endswith("fc.weight")}
    assert len(dense) == 2
    assert not changed & dense
    assert {name for name in before if name.endswith("conv.weight")} <= changed
    assert "--freeze '*fc'" in json.loads(second.curve_json.read_text())["command"]
    with pytest.raises(UsageError, match="no layer to freeze"):
        short(data, tmp_path / "c.safetensors", freeze=("*fc", "head*"))


def test_the_state_of_another_training_is_not_continued(data: str, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    interrupted(data, out)
    with pytest.raises(UsageError) as refused:
        short(data, out, lr=2e-3, seed=9)
    assert "lr 0.001 there, 0.002 here" in str(refused.value)
    assert "seed 5 there, 9 here" in str(refused.value)
    assert len(short(data, out, lr=2e-3, resume=False).history) == 3


def test_a_damaged_state_is_explained(data: str, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    interrupted(data, out)
    state = out.with_suffix(".resume")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UsageError, match="--restart"):
        short(data, out)


def test_a_diverging_training_stops_and_writes_no_weights(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "schedule", lambda done: float("inf"))
    with pytest.raises(ModelError, match=r"the loss became .* in epoch 1"):
        short(data, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_the_schedule_rises_then_falls() -> None:
    assert loop.schedule(0) < 0.05
    assert loop.schedule(loop.WARM_UP) == pytest.approx(1)
    assert loop.schedule(0.5) > loop.schedule(0.9) > loop.schedule(1)
    assert loop.schedule(1) == pytest.approx(loop.FINAL_LR)


def test_a_detector_learns_bits_and_reports_them_beside_the_classics(tmp_path: Path) -> None:
    result = train(
        "fullycon",
        "mimo:6000:seed=1",
        tmp_path / "f.safetensors",
        epochs=2,
        batch=200,
    )
    assert result.metric == "ber"
    assert result.best < 0.3
    rates = result.report["error_rates"]
    assert set(rates) == {"snr_db", "fullycon", "zero_forcing", "matched_filter"}
    assert json.loads(result.curve_json.read_text())["ber"] == result.best
    assert load_model(str(result.weights)).name == "fullycon"


@pytest.fixture(autouse=True)
def few_transmissions(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fullycon.error_rates
    monkeypatch.setattr(fullycon, "error_rates", lambda detect: original(detect, transmissions=2000))


def test_what_cannot_be_trained_is_explained(data: str, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    with pytest.raises(ModelError, match="no model of the zoo"):
        train("resnet", data, out)
    with pytest.raises(DataError, match="mimo:COUNT"):
        train("fullycon", data, out)
    with pytest.raises(UsageError, match=r"\.safetensors"):
        train("csinet-cr64", data, tmp_path / "a.pth")
    for wrong in ({"epochs": 0}, {"batch": 1}, {"lr": 0.0}):
        with pytest.raises(UsageError):
            short(data, out, **wrong)
    np.save(tmp_path / "few.npy", shipped_set(3))
    with pytest.raises(DataError, match="too few"):
        short(str(tmp_path / "few.npy"), out)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        short(data, tmp_path / "file" / "a.safetensors")
