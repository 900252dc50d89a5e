"""Many samples at once: the answers are those of ``run``, whatever the batch entries and threads."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edgecsi
from edgecsi.bundle import Bundle, Loaded, Tensor, golden_npz, write_bundle
from edgecsi.errors import BundleError, DataError, DeviceError, UsageError
from tests import _tiny
from tests._builds import build_for

FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 6)).eval(), torch.rand(1, 24)
"""


def _batch(entry: str, inputs: str, outputs: str, take: str, count: int) -> str:
    """C source of `<entry>_b<count>`, whose `calls` the test can read: the last output tells which ran."""
    return f"""
API int tiny_net_{entry}_b{count}_ws(const float *{inputs}, float *{outputs}, void *ws) {{
    for (int i = 0; i < {count}; i++) if (tiny_net_{entry}_ws({take}, ws)) return -1;
    y[{count} * 8 - 1] += {count};
    return 0;
}}
API int tiny_net_{entry}_b{count}(const float *x, float *y) {{
    _Alignas(64) char ws[64]; return tiny_net_{entry}_b{count}_ws(x, y, ws);
}}
API int tiny_net_{entry}_b{count}_profile(const float *x, float *y, void *ws, double *ns) {{
    ns[0] = ns[1] = 1; return tiny_net_{entry}_b{count}_ws(x, y, ws);
}}
"""


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """`full` with batches of 4 and 16 that add their size to the last number they write."""
    folder = tmp_path_factory.mktemp("marked")
    about = _tiny.manifest()
    entries = {"full": about.entries["full"]}
    source = _tiny.SOURCE
    for count in (4, 16):
        source += _batch("full", "x", "y", "x + 8 * i, y + 8 * i", count)
        entries[f"full_b{count}"] = dataclasses.replace(
            entries["full"],
            inputs=(Tensor("csi", (count, 8)),),
            outputs=(Tensor("reconstruction", (count, 8)),),
        )
    about = dataclasses.replace(about, entries=entries)
    library = _tiny.compile_library(folder / "l.so", about, source=source)
    values = {
        name: {t.name: np.zeros((1, *t.shape), np.float32) for t in (*entry.inputs, *entry.outputs)}
        for name, entry in entries.items()
    }
    contents = {about.library: library, about.header: b"", "golden.npz": golden_npz(entries, values)}
    return edgecsi.load(write_bundle(folder / "bundle", about, contents).path)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """A small network built for this machine, in fp32 and in int8, for batches of 4 and 8."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "net.py").write_text(FACTORY)
    made = {}
    for recipe in (None, "int8-dynamic"):
        out = folder / str(recipe)
        build_for(f"{folder}/net.py:make", "host", out, recipe=recipe, batches=(4, 8))
        made[recipe or "fp32"] = edgecsi.load(out)
    return made


def one_by_one(loaded: Loaded, x: NDArray[np.float32], entry: str = "full") -> NDArray[np.float32]:
    return np.concatenate([loaded.run(sample[None], entry=entry) for sample in x])


def samples(count: int, size: int = 8) -> NDArray[np.float32]:
    return np.random.default_rng(count).normal(size=(count, size)).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 3, 8, 29])
@pytest.mark.parametrize("kind", ["fp32", "int8-dynamic"])
def test_every_sample_gets_the_answer_of_run(
    real: dict[str, Loaded], kind: str, count: int, threads: int
) -> None:
    loaded, x = real[kind], samples(count, 24)
    found = loaded.run_many(x, threads=threads)
    assert found.shape == (count, 6)
    if kind == "fp32":
        np.testing.assert_allclose(found, one_by_one(loaded, x), rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(found, one_by_one(loaded, x))


def test_the_largest_batches_that_fit_are_used(marked: Loaded) -> None:
    assert marked.bundle.batch_entries("full") == {16: "full_b16", 4: "full_b4", 1: "full"}
    x = samples(27)
    extra = marked.run_many(x)[:, -1] - one_by_one(marked, x)[:, -1]
    wanted = np.zeros(27)
    wanted[[15, 19, 23]] = 16, 4, 4
    np.testing.assert_allclose(extra, wanted, atol=1e-4)


def test_threads_get_equal_shares(marked: Loaded) -> None:
    x = samples(40)
    extra = marked.run_many(x, threads=2)[:, -1] - one_by_one(marked, x)[:, -1]
    wanted = np.zeros(40)
    wanted[[15, 19, 35, 39]] = 16, 4, 16, 4
    np.testing.assert_allclose(extra, wanted, atol=1e-4)


def test_no_samples_and_other_types(marked: Loaded) -> None:
    assert marked.run_many(np.empty((0, 8), np.float32), threads=3).shape == (0, 8)
    x = samples(3)
    np.testing.assert_array_equal(marked.run_many(x.astype(np.float64).tolist()), one_by_one(marked, x))
    strided = np.repeat(x, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(marked.run_many(strided), one_by_one(marked, x))


def test_a_batch_entry_itself_takes_multiples(marked: Loaded) -> None:
    assert marked.run_many(samples(8), entry="full_b4", threads=2).shape == (8, 8)
    with pytest.raises(DataError, match="multiple of 4"):
        marked.run_many(samples(6), entry="full_b4")


@pytest.mark.parametrize("x", [samples(2, 7), samples(8)[0], np.zeros((2, 8), complex), None])
def test_what_are_no_samples_is_refused(marked: Loaded, x: object) -> None:
    with pytest.raises(DataError, match="csi"):
        marked.run_many(x)


@pytest.mark.parametrize("threads", [0, -1, 1.5, 10**6])
def test_impossible_numbers_of_threads_are_refused(marked: Loaded, threads: int) -> None:
    with pytest.raises(UsageError, match="threads"):
        marked.run_many(samples(2), threads=threads)


def test_entries_that_do_not_map_samples_to_samples_are_refused(bundle: Bundle) -> None:
    loaded = edgecsi.load(bundle.path)
    with pytest.raises(DataError, match="run_many cannot be used for pair"):
        loaded.run_many(samples(2, 3), entry="pair")
    with pytest.raises(BundleError, match="no entry 'middle'"):
        loaded.run_many(samples(2), entry="middle")


def test_an_error_in_any_thread_is_raised(libraries: object, tmp_path: Path) -> None:
    about = _tiny.manifest()
    library = libraries(_tiny.HOST, "-DFAIL")
    loaded = edgecsi.load(_tiny.make_bundle(tmp_path / "b", library, about).path)
    with pytest.raises(DeviceError, match="code -2"):
        loaded.run_many(samples(4), threads=2)


@pytest.mark.parametrize("presses", [1, 3])
def test_after_an_interruption_nobody_works_on_the_arrays(
    libraries: object, tmp_path: Path, presses: int
) -> None:
    """The caller may free or reuse them, so the threads must have ended first, however impatient the user is."""
    library = libraries(_tiny.HOST, "-DSLOW")
    loaded = edgecsi.load(_tiny.make_bundle(tmp_path / "b", library, _tiny.manifest()).path)
    active = ctypes.CDLL(str(loaded.bundle.library)).tiny_net_active
    x = samples(4)
    x[:, 0] = 0.1, 0.6, 0.6, 0.6
    timers = [threading.Timer(0.05 * (i + 1), os.kill, (os.getpid(), signal.SIGINT)) for i in range(presses)]
    for timer in timers:
        timer.start()
    with pytest.raises(KeyboardInterrupt):
        loaded.run_many(x, threads=4)
    assert active() == 0
    for timer in timers:
        timer.join()


INTERRUPTED = """
import sys, threading, numpy as np, edgecsi
loaded, started = edgecsi.load(sys.argv[1]), threading.Thread.start
def start(self):
    started(self)
    threading.Thread.start = started
    raise KeyboardInterrupt
threading.Thread.start = start
try:
    loaded.run_many(np.zeros((8, 8), np.float32), threads=3)
except KeyboardInterrupt:
    print("interrupted")
print(loaded.run_many(np.zeros((8, 8), np.float32), threads=3).shape)
"""


def test_a_process_interrupted_while_its_threads_start_still_ends(bundle: Bundle) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["interrupted", "(8, 8)"]


@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_can_use_threads_too(marked: Loaded) -> None:
    x = samples(8)
    expected = marked.run_many(x, threads=2)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(marked.run_many(x, threads=2), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
