"""Rules for all tests: a cache of their own, and what happens when a program they need is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecsi.disk import cache_dir

DEBIAN_PACKAGE = {
    "cc": "gcc",
    "cmake": "cmake",
    "dpkg": "dpkg",
    "lintian": "lintian",
    "pkg-config": "pkg-config",
    "qemu-aarch64": "qemu-user",
    "qemu-x86_64": "qemu-user",
    "readelf": "binutils",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """``@pytest.mark.needs("qemu-aarch64")``: skip without it, but fail where CI=true."""
    for mark in item.iter_markers("needs"):
        for tool in mark.args:
            if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
                message = f"{tool} is missing; install the Debian package {DEBIAN_PACKAGE[tool]}"
                if os.environ.get("CI") == "true":
                    pytest.fail(message, pytrace=False)
                pytest.skip(message)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests neither see nor leave anything in the user's cache, but for the C libraries that zig needs minutes to
    compile."""
    folder = tmp_path_factory.mktemp("cache")
    zig = str(cache_dir() / "zig")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
            if name not in os.environ:
                patch.setenv(name, zig)
        patch.setenv("EDGECSI_CACHE", str(folder))
        yield folder
