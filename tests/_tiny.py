"""A hand-made library with the C face of a bundle, to test bundle/ and device/ without the compiler.

`tiny-net` has the entries `encoder` (8 → 4), `decoder` (4 → 8), `full` and `pair` (two inputs, two outputs).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecsi import cpu
from edgecsi.bundle import (
    Bundle,
    Check,
    Entry,
    Layer,
    Manifest,
    ModelOrigin,
    TargetInfo,
    Tensor,
    Versions,
    embedded_json,
    golden_npz,
    write_bundle,
)
from edgecsi.bundle.manifest import canonical

HOST = cpu.machine()

SOURCE = r"""
#include <math.h>
#include <string.h>
#include <time.h>
#define API __attribute__((visibility("default")))
static const char *const messages[] = {"ok", "null pointer", "the CPU lacks a required feature"};
API const char *tiny_net_strerror(int code) { return code > 0 || code < -2 ? "unknown" : messages[-code]; }
API const char *tiny_net_manifest(void) { return MANIFEST; }

static float gain = 0;                                   /* set by a constructor: proves init_array runs */
__attribute__((constructor)) static void start(void) { gain = 2; }

static int encode(const float *x, float *y) {
    for (int i = 0; i < 4; i++) y[i] = gain * x[2 * i] + x[2 * i + 1];
    return 0;
}
static int decode(const float *x, float *y) {
    for (int i = 0; i < 8; i++) y[i] = 1 / (1 + expf(-x[i / 2]));
    return 0;
}
static double now(void) {
    struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec;
}

API int tiny_net_encoder_ws(const float *x, float *y, void *ws) { return x && y && ws ? encode(x, y) : -1; }
API int tiny_net_encoder(const float *x, float *y) { return x && y ? encode(x, y) : -1; }
API int tiny_net_encoder_profile(const float *x, float *y, void *ws, double *ns) {
    double start = now(); int code = tiny_net_encoder_ws(x, y, ws); ns[0] = now() - start; return code;
}
API int tiny_net_decoder_ws(const float *x, float *y, void *ws) { return x && y && ws ? decode(x, y) : -1; }
API int tiny_net_decoder(const float *x, float *y) { return x && y ? decode(x, y) : -1; }
API int tiny_net_decoder_profile(const float *x, float *y, void *ws, double *ns) {
    double start = now(); int code = tiny_net_decoder_ws(x, y, ws); ns[0] = now() - start; return code;
}
#ifdef SLOW /* takes x[0] seconds, and counts how many calls are under way */
static int active;
API int tiny_net_active(void) { return __atomic_load_n(&active, __ATOMIC_SEQ_CST); }
static void take(float seconds) {
    __atomic_add_fetch(&active, 1, __ATOMIC_SEQ_CST);
    for (double end = now() + 1e9 * seconds; now() < end;) {}
    __atomic_sub_fetch(&active, 1, __ATOMIC_SEQ_CST);
}
#endif
API int tiny_net_full_ws(const float *x, float *y, void *ws) {
    if (!x || !y || !ws) return -1;
#ifdef SLOW
    take(x[0]);
#endif
#ifdef HANG
    for (volatile int forever = 1; forever;) {}
#endif
#ifdef CRASH
    *(volatile int *)8 = 1;
#endif
#ifdef SLOW
    nanosleep(&(struct timespec){0, 200000}, 0);
#endif
#ifdef FAIL
    return -2;
#endif
    if ((unsigned long)ws % 64) return -1;
    return encode(x, ws) || decode(ws, y);
}
API int tiny_net_full(const float *x, float *y) {
    _Alignas(64) char ws[64]; return x && y ? tiny_net_full_ws(x, y, ws) : -1;
}
API int tiny_net_full_profile(const float *x, float *y, void *ws, double *ns) {
    double t0 = now(); encode(x, ws); double t1 = now(); decode(ws, y); ns[0] = t1 - t0; ns[1] = now() - t1;
    return 0;
}
API int tiny_net_pair(const float *a, const float *b, float *sum, float *product) {
    if (!a || !b || !sum || !product) return -1;
    for (int i = 0; i < 3; i++) { sum[i] = a[i] + b[i]; product[i] = a[i] * b[i]; }
    return 0;
}
API int tiny_net_pair_ws(const float *a, const float *b, float *s, float *p, void *ws) {
    return ws ? tiny_net_pair(a, b, s, p) : -1;
}
API int tiny_net_pair_profile(const float *a, const float *b, float *s, float *p, void *ws, double *ns) {
    ns[0] = 1; return tiny_net_pair_ws(a, b, s, p, ws);
}

/* TVM's face: arguments are tensors (7: a DLTensor; 70: an object, in which that follows a header of 24 bytes). */
typedef struct { int type; unsigned padding; union { long long integer; char *pointer; } value; } Any;
static float *data(const Any *a) { return *(float **)(a->value.pointer + (a->type == 70 ? 24 : 0)); }
#define FACE(entry, count, ...) API int __tvm_ffi_##entry(void *self, const Any *a, int n, Any *result) { \
    (void)self, (void)result; return n == count ? tiny_net_##entry(__VA_ARGS__) : -1; }
FACE(encoder, 2, data(a), data(a + 1))
FACE(decoder, 2, data(a), data(a + 1))
FACE(full, 2, data(a), data(a + 1))
FACE(pair, 4, data(a), data(a + 1), data(a + 2), data(a + 3))
"""


def _layer(name: str, macs: int) -> Layer:
    return Layer(name, "dense", "f32_dense", "the only one", {"tile": 4}, 1.0, 32, 0, macs, None)


def _entry(inputs: dict[str, int], outputs: dict[str, int], workspace: int, layers: int) -> Entry:
    return Entry(
        tuple(Tensor(name, (1, size)) for name, size in inputs.items()),
        tuple(Tensor(name, (1, size)) for name, size in outputs.items()),
        workspace,
        8 * layers,
        0,
        tuple(_layer(f"layer{i}", 8) for i in range(layers)),
    )


def manifest(arch: str = HOST, features: tuple[str, ...] = ()) -> Manifest:
    emulate = {"x86_64": "max", "aarch64": "cortex-a72"}[arch]
    return Manifest(
        name="tiny-net",
        library="libtiny-net.so",
        header="tiny-net.h",
        created_with=Versions("0.1.0", "2.13.0", "0.27.0", "0.1.14", "22", "0.15"),
        model=ModelOrigin("tiny", "tiny", None, None),
        target=TargetInfo(
            f"tiny-{arch}", arch, f"{arch}-linux-gnu", "generic", (), features, "2.28", emulate
        ),
        entries={
            "encoder": _entry({"csi": 8}, {"codeword": 4}, 0, 1),
            "decoder": _entry({"codeword": 4}, {"csi": 8}, 0, 1),
            "full": _entry({"csi": 8}, {"reconstruction": 8}, 64, 2),
            "pair": _entry({"a": 3, "b": 3}, {"sum": 3, "product": 3}, 0, 1),
        },
        check=Check("not run", "there is no PyTorch model"),
    )


def encoder(x: np.ndarray) -> np.ndarray:
    return 2 * x[..., 0::2] + x[..., 1::2]


def decoder(codeword: np.ndarray) -> np.ndarray:
    return np.repeat(1 / (1 + np.exp(-codeword)), 2, axis=-1)


def full(x: np.ndarray) -> np.ndarray:
    return decoder(encoder(x))


def compile_library(path: Path, about: Manifest, *flags: str, source: str = SOURCE) -> Path:
    """Compile the library for the manifest's architecture into ``path``."""
    text = embedded_json(about).decode().replace("\\", "\\\\").replace('"', '\\"')
    unit = path.with_suffix(".c")
    unit.write_text(f'#define MANIFEST "{text}"\n{source}')
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        f"{about.target.triple}.{about.target.glibc}",
    ]
    command += [
        "-shared",
        "-fPIC",
        "-O2",
        "-fvisibility=hidden",
        f"-Wl,-soname,{about.library}",
        *flags,
        str(unit),
        "-lm",
        "-o",
        str(path),
    ]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`libraries(arch, "-DHANG", …)` is the library for that architecture, compiled once a session.

    The flags HANG, CRASH and FAIL make `full` go wrong in that way, SLOW makes it take 0.3 ms.
    """
    folder = tmp_path_factory.mktemp("libraries")

    @cache
    def library(arch: str = HOST, *flags: str) -> Path:
        return compile_library(folder / f"{arch}{''.join(flags)}.so", manifest(arch), *flags)

    return library


@pytest.fixture
def bundle(libraries: Callable[..., Path], tmp_path: Path) -> Bundle:
    """A bundle for this machine, the test's own."""
    return make_bundle(tmp_path / "tiny-net", libraries(), manifest())


def reseal(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a bundle's manifest as an attacker would, who knows how to make a digest and hashes match."""
    path = folder / "manifest.json"
    tree = json.loads(path.read_bytes())
    for name, info in tree["files"].items():
        if (folder / name).is_file():
            data = (folder / name).read_bytes()
            info.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    change(tree)
    tree.pop("digest", None)
    tree["digest"] = hashlib.sha256(canonical(tree)).hexdigest()
    path.write_bytes(canonical(tree))


def files(library: Path, about: Manifest) -> dict[str, bytes | Path]:
    """What the writer takes: the library, a header, golden values."""
    x = np.random.default_rng(0).normal(size=(3, 1, 8)).astype(np.float32)
    a = x[..., :3]
    values = {
        "encoder": {"csi": x, "codeword": encoder(x)},
        "decoder": {"codeword": encoder(x), "csi": full(x)},
        "full": {"csi": x, "reconstruction": full(x)},
        "pair": {"a": a, "b": a + 1, "sum": 2 * a + 1, "product": a * (a + 1)},
    }
    return {
        about.library: library,
        about.header: b"/* tiny */\n",
        "golden.npz": golden_npz(about.entries, values),
    }


def make_bundle(out: Path, library: Path, about: Manifest) -> Bundle:
    return write_bundle(out, about, files(library, about))
