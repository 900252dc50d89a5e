"""Packages: lintian finds no error, they install, and a C program builds against them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import edgecsi
from edgecsi.bundle import Bundle, read_bundle
from edgecsi.bundle.signature import sign
from edgecsi.cli import main
from edgecsi.deploy.package import write_package
from edgecsi.errors import UsageError
from tests import _tiny

ADA = "Ada Lovelace <ada@lovelace.org>"
PROGRAM = """
#include <tiny-net.h>
int tiny_net_encoder(const float *, float *);
int main(void) { float x[8] = {1, 2}, y[4]; return tiny_net_encoder(x, y) || y[0] != 4; }
"""


@pytest.fixture(scope="session")
def packed(
    libraries: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    folder = tmp_path_factory.mktemp("packed")

    def bundle(arch: str = _tiny.HOST) -> Bundle:
        about = dataclasses.replace(_tiny.manifest(arch), build_number=7)
        return _tiny.make_bundle(folder / arch, libraries(arch, "-s"), about)

    return bundle


def _run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def root(packed: Callable[..., Bundle], tmp_path: Path) -> Path:
    """A system on which the package is installed."""
    root = tmp_path / "root"
    for folder in ("updates", "info", "triggers"):
        (root / "var/lib/dpkg" / folder).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    deb = write_package(packed(), "deb", tmp_path, maintainer=ADA)
    _run("dpkg", f"--root={root}", "--force-not-root", "--force-depends", "--force-bad-path", "-i", deb)
    return root


@pytest.mark.needs("lintian")
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_lintian_finds_no_error(packed: Callable[..., Bundle], tmp_path: Path, arch: str) -> None:
    deb = write_package(packed(arch), "deb", tmp_path, maintainer=ADA)
    assert deb.name.endswith({"x86_64": "_amd64.deb", "aarch64": "_arm64.deb"}[arch])
    found = _run("lintian", "--allow-root", "--fail-on", "error", deb)
    assert "E:" not in found


@pytest.mark.needs("dpkg", "pkg-config", "cc")
def test_a_program_builds_against_the_installed_package_with_pkg_config(root: Path, tmp_path: Path) -> None:
    lib = root / "usr/lib" / f"{_tiny.HOST}-linux-gnu"
    settings = {"PKG_CONFIG_LIBDIR": str(lib / "pkgconfig"), "PKG_CONFIG_SYSROOT_DIR": str(root)}
    flags = _run("pkg-config", "--cflags", "--libs", "tiny-net", **settings).split()
    assert _run("pkg-config", "--modversion", "tiny-net", **settings).strip() == "7"
    (tmp_path / "main.c").write_text(PROGRAM)
    _run("cc", tmp_path / "main.c", *flags, "-o", tmp_path / "main")
    _run(tmp_path / "main", LD_LIBRARY_PATH=str(lib))


@pytest.mark.needs("dpkg")
def test_what_is_installed_is_the_bundle_itself(root: Path) -> None:
    home = root / "usr/lib" / f"{_tiny.HOST}-linux-gnu" / "edgecsi" / "tiny-net"
    assert edgecsi.load(home).manifest.build_number == 7
    assert read_bundle(home).manifest.name == "tiny-net"


@pytest.mark.needs("cmake", "cc")
def test_a_program_builds_against_the_unpacked_archive_with_cmake(
    packed: Callable[..., Bundle], tmp_path: Path
) -> None:
    archive = write_package(packed(), "tar", tmp_path)
    (tmp_path / "there").mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path / "there"], check=True)
    (prefix,) = (tmp_path / "there").iterdir()
    source = tmp_path / "source"
    source.mkdir()
    (source / "main.c").write_text(PROGRAM)
    (source / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(p C)\nfind_package(tiny-net 7 REQUIRED)\n"
        "add_executable(main main.c)\ntarget_link_libraries(main tiny-net::tiny-net)\n"
    )
    _run("cmake", "-S", source, "-B", source / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    _run("cmake", "--build", source / "build")
    _run(source / "build" / "main")


@pytest.mark.parametrize("kind", ["deb", "tar"])
def test_the_same_bundle_gives_the_same_bytes(
    packed: Callable[..., Bundle], tmp_path: Path, kind: str
) -> None:
    first, second = (
        write_package(packed(), kind, tmp_path / name, maintainer=ADA).read_bytes() for name in ("a", "b")
    )
    assert first == second


@pytest.mark.needs("ssh-keygen")
def test_the_signature_travels_along(packed: Callable[..., Bundle], tmp_path: Path) -> None:
    key = tmp_path / "key"
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    bundle = packed()
    sign(bundle, key)
    with tarfile.open(write_package(bundle, "tar", tmp_path)) as tar:
        assert any(name.endswith("/manifest.json.sig") for name in tar.getnames())


@pytest.mark.parametrize("arguments", [["--version", "one two"], ["--maintainer", "nobody"], []])
def test_what_cannot_be_in_a_package_is_a_mistake_of_the_command_line(
    packed: Callable[..., Bundle], tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEBEMAIL", raising=False)
    assert (
        main(["package", str(packed().path), "-o", str(tmp_path / "out"), *arguments]) == UsageError.exit_code
    )
    assert not (tmp_path / "out").exists()
