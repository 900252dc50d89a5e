import json
from pathlib import Path

import numpy as np
import pytest

from edgecsi.cli import main


def test_info_of_the_shipped_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", "test", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shape"] == [1024, 2, 32, 32]
    assert 0 <= found["minimum"] < found["maximum"] <= 1


def test_generate_and_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, converted = tmp_path / "a.npz", tmp_path / "b.npy"
    assert main(["data", "generate", "cdl-c:6:seed=3", "-o", str(made)]) == 0
    assert main(["data", "convert", str(made), "-o", str(converted)]) == 0
    assert np.load(converted).shape == (6, 2, 32, 32)
    # Nobody watches, so there is no progress bar.
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["generate", "cdl-z:5", "-o", "{}/x.npz"], 3),
        (["generate", "cdl-c:0", "-o", "{}/x.npz"], 3),
        (["generate", "cdl-c:5", "-o", "{}/x.csv"], 2),
        (["generate", "cdl-c:5", "-o", "{}/no/x.npz"], 3),
        (["generate", "cdl-c:5"], 2),
        (["convert", "{}/missing.mat", "-o", "{}/x.npz"], 3),
        (["info", "{}/missing.npz"], 3),
    ],
)
def test_bad_requests_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    assert main(["data", *(text.format(tmp_path) for text in arguments)]) == code
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_matlab_programs_write_becomes_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Complex, [receivers, antennas, subcarriers, snapshots], one array of several."""
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    h = rng.standard_normal((1, 32, 32, 7)) + 1j * rng.standard_normal((1, 32, 32, 7))
    savemat(tmp_path / "quadriga.mat", {"H": h, "Y": 2 * h})
    source, out = f"{tmp_path}/quadriga.mat#H", tmp_path / "x.npy"
    assert main(["data", "convert", source, "--samples-last", "--scale", "-o", str(out)]) == 0
    found = np.load(out)
    assert found.shape == (7, 2, 32, 32)
    expected = np.stack([h[0].real, h[0].imag])[..., 3]
    assert found[3] == pytest.approx(0.5 + expected / (2 * np.abs(expected).max()), abs=1e-6)
    capsys.readouterr()
    assert main(["data", "convert", source, "--scale", "-o", str(out)]) == 0
    assert "--samples-last" in capsys.readouterr().err
