"""What `pip install` gives is what is in the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgecsi import target

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packed."""
    source = tmp_path_factory.mktemp("copy") / "source"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "edgecsi", source / "edgecsi", symlinks=True, ignore=skip)
    shutil.copytree(ROOT / "targets", source / "targets")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    folder = source.parent
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {path.relative_to(ROOT) for path in (ROOT / "edgecsi").rglob("*") if path.is_file()}
    wanted = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    assert wanted - packed == set()
    assert {f"edgecsi/_targets/{name}.toml" for name in target.list_targets()} <= packed


USER = """
import edgecsi

with edgecsi.load("bundle") as network:
    reveal_type(network.run([0.0], entry="encoder"))
reveal_type(edgecsi.build)
edgecsi.load(3)
"""


@pytest.mark.parametrize("editable", [False, True])
def test_mypy_finds_the_installed_package(editable: bool, source: Path, wheel: Path, tmp_path: Path) -> None:
    if editable:
        make = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
        subprocess.run([sys.executable, "-c", make], cwd=source, check=True, capture_output=True)
        wheel = next(tmp_path.glob("*.whl"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    zipfile.ZipFile(wheel).extractall(next((tmp_path / "venv" / "lib").glob("python*/site-packages")))
    (tmp_path / "user.py").write_text(USER)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    command = [sys.executable, "-m", "mypy", "--python-executable", "venv/bin/python", "user.py"]
    said = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True).stdout
    assert "def (model: str, target: str" in said
    assert 'user.py:7: error: Argument 1 to "load"' in said
    assert said.count("error:") == 1, said


def test_targets_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    source = (
        "import sys; sys.path.insert(0, 'site'); import edgecsi.target as t; "
        "print(t.__file__, *t.list_targets(), t.load('arm').mcpu)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0].startswith(str(tmp_path))
    assert done.stdout.split()[1:] == [*target.list_targets(), "cortex-a72"]


def test_the_lock_fits_the_project_and_names_no_host() -> None:
    for name in ("requirements.lock", "requirements-peers.lock"):
        lines = (ROOT / name).read_text().splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert all(line.count("==") == 1 and "/" not in line and "+" not in line for line in pins)
    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines()[1:])
    assert locked["torch"] == "2.13.0"
    assert locked["apache-tvm"] == "0.27.0.post1"
    assert locked["apache-tvm-ffi"] == "0.1.14.post1"
