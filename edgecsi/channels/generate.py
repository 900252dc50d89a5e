"""Synthetic downlink channels from 3GPP TR 38.901, in the angular-delay form that CSI networks eat.

Every sample is made the same way: 3.5 GHz, a 32-element omnidirectional half-wavelength linear array at
the base station, one antenna at the terminal, 1024 tones over 2.5 MHz. The frequency response goes through
an IFFT over the tones, the first 32 taps are kept, an FFT over the antennas with the zero angle in the
middle gives the angles, and the sample is scaled so that max(|re|, |im|) = 0.5 around the offset 0.5.

Profiles:
    ``cdl-a`` ... ``cdl-e``  clustered delay lines (TR 38.901, clause 7.7.1) with a delay spread of 30 ns.
        Their cluster angles are fixed, so they are easy to compress. ``cdl-c`` is the reference set.
    ``cdl-ac``, ``cdl-acd``  a mix: the profiles take turns, sample by sample.
    ``umi``                  drops in an urban micro cell (clause 7.2), every one with angles of its own.

A *spec* names a set in one word: ``cdl-ac:20000:seed=7`` is 20,000 samples of the A/C mix from seed 7. The
same spec always gives the same samples, and a shorter set is the beginning of a longer one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi import disk
from edgecsi.disk import cache_dir
from edgecsi.errors import DataError, ToolchainError

ANTENNAS = 32
TAPS = 32
TONES = 1024
BANDWIDTH_HZ = 2.5e6
CARRIER_HZ = 3.5e9
DELAY_SPREAD_S = 30e-9

SamplesDone = Callable[[int, int], None]
"""Called with (samples done, samples wanted)."""

_CHUNK = 500  # samples drawn from one seed; part of what a spec means, so never change it alone
_GENERATOR_VERSION = 1
_MAX_SAMPLES = 1_000_000
_SPEC = re.compile(r"(?P<profile>cdl-[a-e]+|umi):(?P<count>\d{1,9})(?::seed=(?P<seed>\d{1,9}))?")
_SPEC_FORM = "PROFILE:COUNT[:seed=N] with PROFILE cdl-a … cdl-e, a mix such as cdl-ac, or umi"


@dataclass(frozen=True)
class ChannelSpec:
    """One reproducible set: profile name, number of samples, seed."""

    profile: str
    count: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.profile}:{self.count}:seed={self.seed}"

    @property
    def members(self) -> tuple[str, ...]:
        """The single profiles that take turns: ``cdl-ac`` → ``("A", "C")``, ``umi`` → ``("umi",)``."""
        return ("umi",) if self.profile == "umi" else tuple(self.profile.removeprefix("cdl-").upper())


def is_spec(text: str) -> bool:
    """True if ``text`` looks like a generator spec rather than a file name."""
    return re.match(r"(cdl-[a-z]+|umi):", text) is not None


def parse_spec(text: str) -> ChannelSpec:
    """Read ``PROFILE:COUNT[:seed=N]``.

    Raises:
        DataError: the spec is malformed, names no samples or repeats a profile.
    """
    match = _SPEC.fullmatch(text)
    if match is None:
        raise DataError(f"{text!r} is no channel spec", "it does not read like one", f"write {_SPEC_FORM}")
    spec = ChannelSpec(match["profile"], int(match["count"]), int(match["seed"] or 0))
    if not 1 <= spec.count <= _MAX_SAMPLES:
        raise DataError(
            f"{text!r} asks for {spec.count} samples",
            f"a generated set has 1 to {_MAX_SAMPLES:,}",
            "ask for another count",
        )
    if len(set(spec.members)) != len(spec.members):
        raise DataError(f"{text!r} names a profile twice", "a mix gives each an equal share", "name it once")
    return spec


def generate(
    spec: ChannelSpec | str, *, cache: bool = True, progress: SamplesDone | None = None
) -> NDArray[Any]:
    """Make, or take from the cache, the channels of a spec.

    Args:
        spec: what to make, e.g. ``"cdl-ac:20000:seed=7"``.
        cache: keep the result below :func:`cache_dir` and read it from there next time.
        progress: called after every chunk.

    Returns:
        float32 ``[N, 2, 32, 32]`` (real/imaginary, angle, delay) in [0, 1], 0.5 meaning zero.

    Raises:
        DataError: malformed spec.
        ToolchainError: sionna is not installed, or the cache cannot be written.
    """
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    stored = cache_dir() / "channels" / f"{_cache_name(spec)}.npy"
    if cache:
        if (found := _read_cache(stored, spec.count)) is not None:
            return found
        disk.cache("channels")  # before the work, if it cannot be written

    members = spec.members
    samples = np.empty((spec.count, 2, ANTENNAS, TAPS), np.float32)
    done = 0
    for index, member in enumerate(members):
        wanted = len(range(index, spec.count, len(members)))
        for chunk, start in enumerate(range(0, wanted, _CHUNK)):
            stop = min(start + _CHUNK, wanted)
            gains, delays = _paths(member, _chunk_seed(spec.seed, member, chunk))
            part = _angular_delay(gains, delays)[: stop - start]
            samples[index + start * len(members) :: len(members)][: stop - start] = part
            done += stop - start
            if progress is not None:
                progress(done, spec.count)
    if cache:
        _write_cache(stored, samples)
    return samples


def _paths(member: str, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Path gains, complex128 ``[500, antennas, paths]``, and delays in s, ``[500 or 1, paths]``."""
    import torch

    # sionna reseeds torch's global generator, even on import; the caller's random numbers must not move
    with torch.random.fork_rng(devices=[]):
        try:
            from sionna.phy import config
            from sionna.phy.channel.tr38901 import CDL, PanelArray, UMi
            from sionna.phy.channel.utils import gen_single_sector_topology
        except ImportError as error:
            raise ToolchainError(
                "Channels cannot be generated",
                f"sionna is missing ({error})",
                "pip install 'edgecsi[data]'",
            ) from error
        config.seed = seed

        def array(columns: int) -> Any:
            return PanelArray(1, columns, "single", "V", "omni", CARRIER_HZ)

        arrays = {"ut_array": array(1), "bs_array": array(ANTENNAS)}
        if member == "umi":
            model = UMi(
                CARRIER_HZ,
                "low",
                direction="downlink",
                enable_pathloss=False,
                enable_shadow_fading=False,
                **arrays,
            )
            model.set_topology(*gen_single_sector_topology(_CHUNK, 1, "umi"))
            gains, delays = model(num_time_samples=1, sampling_frequency=BANDWIDTH_HZ)
        else:
            cdl = CDL(member, DELAY_SPREAD_S, CARRIER_HZ, direction="downlink", **arrays)
            gains, delays = cdl(batch_size=_CHUNK, num_time_steps=1, sampling_frequency=BANDWIDTH_HZ)
    a = gains[:, 0, 0, 0, :, :, 0].numpy().astype(np.complex128)
    return a, delays[:, 0, 0, :].numpy().astype(np.float64)


def _angular_delay(gains: NDArray[Any], delays: NDArray[Any]) -> NDArray[Any]:
    """Path gains ``[B, antennas, paths]`` and delays ``[B, paths]`` to float32 ``[B, 2, angles, taps]``."""
    taps = gains @ _truncated_ifft(delays)
    angles = np.fft.fftshift(np.fft.fft(taps, axis=1), axes=1)
    parts = np.stack([angles.real, angles.imag], axis=1)
    peak = np.abs(parts).max(axis=(1, 2, 3), keepdims=True)
    scaled: NDArray[Any] = (parts / (2 * peak) + 0.5).astype(np.float32)
    return scaled


def _truncated_ifft(delays: NDArray[Any]) -> NDArray[Any]:
    """The first taps of the IFFT over all tones of a unit path, complex128 ``[B, paths, taps]``.

    A path with delay τ has the response exp(-j2π f τ) on the tones f = (n - N/2)·Δf. Its IFFT is the
    geometric series Σₙ exp(j2πn·x)/N with x = k/N - Δf·τ, which has a closed form: no tone is ever computed.
    """
    spacing = BANDWIDTH_HZ / TONES
    shift = delays[..., None] * spacing
    x = np.arange(TAPS) / TONES - shift
    numerator, denominator = np.expm1(2j * np.pi * TONES * x), np.expm1(2j * np.pi * x)
    whole = np.abs(denominator) < 1e-12  # the path falls exactly on a tap
    series = np.where(whole, 1.0, numerator / np.where(whole, 1.0, denominator) / TONES)
    basis: NDArray[Any] = series * np.exp(1j * np.pi * TONES * shift)
    return basis


def _chunk_seed(seed: int, member: str, chunk: int) -> int:
    """A seed of its own for every chunk, so that sets of different length begin alike."""
    entropy = hashlib.sha256(f"{_GENERATOR_VERSION} {seed} {member} {chunk}".encode()).digest()
    return int.from_bytes(entropy[:4], "little")


def _cache_name(spec: ChannelSpec) -> str:
    return f"{spec.profile}-{spec.count}-seed{spec.seed}-v{_GENERATOR_VERSION}"


def _read_cache(path: Path, count: int) -> NDArray[Any] | None:
    """The cached set, or None: a damaged cache file is made again, not an error."""
    try:
        samples: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return samples if samples.shape == (count, 2, ANTENNAS, TAPS) and samples.dtype == np.float32 else None


def _write_cache(path: Path, samples: NDArray[Any]) -> None:
    with disk.whole(path, disk.CACHE_FIX) as beside, beside.open("wb") as file:
        np.save(file, samples)
