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
