"""Generated channels: reproducible, in the form the papers use, and kept for the next time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgecsi.channels import generate as generator
from edgecsi.channels.generate import ChannelSpec, generate, is_spec, parse_spec
from edgecsi.channels.shipped import SUBSETS
from edgecsi.channels.shipped import test_set as shipped_set
from edgecsi.disk import cache_dir
from edgecsi.errors import DataError


def simple_paths(member: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three random paths; the delay tells the profile."""
    rng = np.random.default_rng(seed)
    shape = (generator._CHUNK, generator.ANTENNAS, 3)
    gains = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    tap = {"A": 0, "C": 7}.get(member, 3)
    return gains, np.full((1, 3), tap / generator.BANDWIDTH_HZ)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "_paths", simple_paths)


def strongest_tap(samples: np.ndarray) -> list[int]:
    return np.square(samples - 0.5).sum(axis=(1, 2)).argmax(axis=1).tolist()


def test_a_spec_reads_back_as_it_was_written() -> None:
    assert parse_spec("cdl-ac:20000:seed=7") == ChannelSpec("cdl-ac", 20000, 7)
    assert parse_spec("umi:5") == ChannelSpec("umi", 5, 0)
    assert str(parse_spec("cdl-c:12")) == "cdl-c:12:seed=0"


@pytest.mark.parametrize(
    "text",
    ["cdl-z:10", "cdl-c:0", "cdl-c", "cdl-c:10:seed=-1", "cdl-c:10:speed=3", "cdl-aa:4", "umi:9999999"],
)
def test_a_bad_spec_is_refused_with_advice(text: str) -> None:
    with pytest.raises(DataError) as refused:
        parse_spec(text)
    assert text in refused.value.what
    assert refused.value.fix


def test_file_names_are_no_specs() -> None:
    assert is_spec("cdl-c:10")
    assert not is_spec("cdl-c.npz")
    assert not is_spec("data/umi.npy")


@pytest.mark.usefixtures("fast")
def test_same_spec_same_samples_other_seed_others() -> None:
    first = generate("cdl-c:20:seed=1", cache=False)
    assert first.dtype == np.float32
    assert first.shape == (20, 2, 32, 32)
    np.testing.assert_array_equal(first, generate("cdl-c:20:seed=1", cache=False))
    assert not np.array_equal(first, generate("cdl-c:20:seed=2", cache=False))


@pytest.mark.usefixtures("fast")
def test_a_shorter_set_is_the_beginning_of_a_longer_one() -> None:
    longer = generate("cdl-ac:1203:seed=1", cache=False)
    np.testing.assert_array_equal(generate("cdl-ac:701:seed=1", cache=False), longer[:701])


@pytest.mark.usefixtures("fast")
def test_profiles_of_a_mix_take_turns() -> None:
    assert strongest_tap(generate("cdl-ac:6", cache=False)) == [0, 7, 0, 7, 0, 7]


@pytest.mark.usefixtures("fast")
def test_samples_fill_the_range_around_one_half() -> None:
    samples = generate("umi:50", cache=False)
    peak = np.abs(samples - 0.5).max(axis=(1, 2, 3))
    np.testing.assert_allclose(peak, 0.5, atol=1e-6)
    assert samples.min() >= 0
    assert samples.max() <= 1


@pytest.mark.usefixtures("fast")
def test_progress_ends_at_the_number_of_samples() -> None:
    seen: list[tuple[int, int]] = []
    generate("cdl-ac:1100", cache=False, progress=lambda done, wanted: seen.append((done, wanted)))
    assert seen[-1] == (1100, 1100)
    assert seen == sorted(seen)


@pytest.mark.usefixtures("fast")
def test_the_second_time_comes_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    made = generate("cdl-e:7:seed=3")

    def forbidden(member: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("generated again")

    monkeypatch.setattr(generator, "_paths", forbidden)
    np.testing.assert_array_equal(generate("cdl-e:7:seed=3"), made)


@pytest.mark.usefixtures("fast")
def test_a_damaged_cache_file_is_made_again() -> None:
    made = generate("cdl-d:7:seed=3")
    (stored,) = (cache_dir() / "channels").glob("cdl-d-7-*.npy")
    stored.write_bytes(stored.read_bytes()[:1000])
    np.testing.assert_array_equal(generate("cdl-d:7:seed=3"), made)


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECSI_CACHE", "/somewhere")
    assert cache_dir() == Path("/somewhere")
    monkeypatch.delenv("EDGECSI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/edgecsi")


def test_the_closed_form_is_the_ifft_over_all_tones() -> None:
    """Delays on a tap, between taps, and a long one."""
    delays = np.array([0.0, 400e-9, 37e-9, 5.3e-6])
    tones = (np.arange(generator.TONES) - generator.TONES / 2) * generator.BANDWIDTH_HZ / generator.TONES
    response = np.exp(-2j * np.pi * delays[:, None] * tones)
    expected = np.fft.ifft(response, axis=1)[:, : generator.TAPS]
    np.testing.assert_allclose(generator._truncated_ifft(delays), expected, atol=1e-12)


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_shipped_set_is_what_the_generator_makes(subset: str) -> None:
    """The real generator, once: a few of the shipped samples, up to their rounding to 13 bits."""
    state = torch.random.get_rng_state()
    made = generate(f"{subset}:4:seed=2026", cache=False)
    np.testing.assert_allclose(shipped_set(4, subset=subset), made, atol=0.51 / 2**13)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random numbers moved"


def test_urban_micro_drops_differ_from_each_other() -> None:
    samples = generate("umi:8:seed=1", cache=False)
    angles = np.square(samples - 0.5).sum(axis=(1, 3)).argmax(axis=1)
    assert len(set(angles.tolist())) > 3
