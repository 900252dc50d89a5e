"""Rules for all tests: a cache of their own, and what happens when a program they need is missing."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecsi import cpu
from edgecsi.disk import cache_dir
from tests._cpu import LACKS

DEBIAN_PACKAGE = {
    "busybox": "busybox",
    "cc": "gcc",
    "cmake": "cmake",
    "dpkg": "dpkg",
    "getconf": "libc-bin",
    "lintian": "lintian",
    "pkg-config": "pkg-config",
    "qemu-aarch64": "qemu-user",
    "qemu-aarch64-static": "qemu-user-static",
    "qemu-x86_64": "qemu-user",
    "readelf": "binutils",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "valgrind": "valgrind",
}

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""For PyTorch here and in programs that tests start: with as many threads as cores in each of several processes, small
networks spend most of their time waiting for each other."""

INSTRUCTIONS = {"avx2", "avx512f", "avx512_vnni", "avx512vbmi", "avx_vnni"}
"""Of x86, that kernels are written for."""


FIRST = (
    "tests/hostile/test_fuzz.py",
    "tests/faults/test_system_calls.py",
    "tests/cli/test_experiments.py",
    "tests/device/test_arm64.py",
    "tests/deploy/test_arm64.py",
    "tests/device/test_rpc.py",
    "tests/cli/test_demo.py",
    "tests/codegen/test_guarded.py",
    "tests/deploy/test_faults.py",
    "tests/deploy/test_ssh.py",
    "tests/device/test_remote.py",
)
"""Where the longest tests are: begun first, so that no process is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first; the others as they come."""
    files = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: files.get(item.location[0], len(FIRST)))


def pytest_configure() -> None:
    """Of PyTorch's and TVM's objects, hundreds of thousands stay: looking for garbage among them takes an eighth of every
    build, and is done less often.

    Signals reach tests also where they were started in the background, which makes programs ignore some."""
    gc.set_threshold(10_000, 10, 10)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """``@pytest.mark.needs("qemu-aarch64")``: skip without it, but fail where CI=true."""
    for mark in item.iter_markers("needs"):
        for tool in mark.args:
            if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
                message = f"{tool} is missing; install the Debian package {DEBIAN_PACKAGE[tool]}"
                if os.environ.get("CI") == "true":
                    pytest.fail(message, pytrace=False)
                pytest.skip(message)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One plain line about the instructions that nothing in this run has executed.

    ARM runs under QEMU. For AVX-512 and VNNI there is no emulator to be had that starts a program: QEMU and Valgrind end
    at AVX2.
    """
    skipped = [
        report.longrepr[2].split(LACKS)[1].split(", ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and LACKS in report.longrepr[2]
    ]
    # Tests of the target "host" are made for what it has, and so are not even skipped.
    lacking = {feature for features in skipped for feature in features} | (INSTRUCTIONS - cpu.features())
    if lacking:
        names = ", ".join(sorted(lacking))
        terminalreporter.write_line(
            f"Not tested, for this CPU lacks it: {names} ({len(skipped)} tests skipped)"
        )


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests neither see nor leave anything in the user's cache or among the user's records, but for the C libraries that
    zig needs minutes to compile."""
    folder = tmp_path_factory.mktemp("cache")
    zig = str(cache_dir() / "zig")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
            if name not in os.environ:
                patch.setenv(name, zig)
        patch.setenv("EDGECSI_CACHE", str(folder))
        patch.setenv("EDGECSI_DATA", str(folder / "own"))
        yield folder


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may be larger than 4 KB, which is how a full disk feels to those who write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
