"""Random networks and the zoo between guard pages and under valgrind; `guarded.c` and `memcheck.c` say how."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgecsi import target as targets
from edgecsi.bundle import Bundle
from edgecsi.codegen.zig import zig_cc
from edgecsi.device import toolchain
from edgecsi.errors import EdgecsiError

TARGETS = ("host", "x86", "x86-64-v4", "rpi4", "rpi5")
RECIPES = (None, "int8-dynamic", "int8-weights", "int16", "f16", "f16-weights")
NOT_FOR_IT = (
    "no layer to quantise", "no dense layer is chosen", "no kernel takes", "mixes the samples of a batch",
    "which of equal values is named first",
)  # fmt: skip
"""What a network may lack for a recipe, and a target for a network."""
STACK = 32 << 10
ZOO_TARGETS = "x86", "rpi4", "rpi5"
NETWORK = """
import numpy

from edgecsi.results.reliability.memory import random_network

def make():
    return random_network(numpy.random.default_rng({seed}))
"""


@dataclass
class Found:
    """What has been tried so far; the next run adds to it, and goes on with the next network.

    Attributes:
        watched: entries that valgrind has watched. zoo: networks of the zoo that are done, ``NAME for TARGET``.
    """

    networks: int = 0
    libraries: int = 0
    entries: int = 0
    calls: int = 0
    watched: int = 0
    stack_bytes: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)
    zoo: list[str] = field(default_factory=list)

    def tree(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def compile_guarded(arch: str, folder: Path) -> Path:
    """`guarded.c` for an architecture, static, to be run here or under QEMU."""
    program = folder / f"guarded-{arch}"
    source = Path(__file__).with_name("guarded.c")
    native = Path(toolchain.__file__).parent / "native"
    zig_cc(["-static", "-O1", "-I", native, source, "-lm", "-o", program], triple=f"{arch}-linux-musl")
    return program


def run_guarded(program: Path, bundle: Bundle, entry: str, *mode: str) -> subprocess.CompletedProcess[str]:
    """Call an entry: ``arrays`` puts guard pages around them, ``stack N`` gives the thread N bytes."""
    about, described = bundle.manifest.target, bundle.entry(entry)
    here = not targets.load(about.id).missing_on_this_cpu()
    command = [] if here else [str(toolchain.qemu(about.arch)), "-cpu", about.emulate]
    sizes = [",".join(str(t.size) for t in group) for group in (described.inputs, described.outputs)]
    symbol = f"{bundle.manifest.cname}_{entry}"
    arguments = [str(bundle.library), symbol, *sizes, str(described.workspace), *mode]
    return subprocess.run(
        [*command, program, *arguments], capture_output=True, text=True, timeout=600, check=False
    )


def compile_memcheck(folder: Path) -> Path | None:
    """`memcheck.c` for this machine; None without valgrind."""
    if shutil.which("valgrind") is None:
        return None
    program = folder / "memcheck"
    source = Path(__file__).with_name("memcheck.c")
    native = Path(toolchain.__file__).parent / "native"
    zig_cc(["-O1", "-I", native, source, "-lm", "-ldl", "-o", program], triple=targets.TRIPLES["x86_64"])
    return program


def watch(program: Path, library: Path, symbol: str, inputs: str, outputs: str, workspace: int) -> str:
    """What valgrind has to say of a call; sizes as `memcheck.c` takes them. Empty: nothing."""
    command = ["valgrind", "-q", "--error-exitcode=9", "--partial-loads-ok=no", "--undef-value-errors=no"]
    command += [str(program), str(library), symbol, inputs, outputs, str(workspace)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    return done.stderr.strip() or (f"it ends with {done.returncode}" if done.returncode else "")


def judge(program: Path, bundle: Bundle, found: Found, memcheck: Path | None = None) -> list[str]:
    """What is wrong with the entries of a bundle; counts what was tried.

    Args:
        memcheck: watches the library as well, if it runs here and needs no AVX-512, which valgrind lacks.
    """
    wrong = []
    about = targets.load(bundle.manifest.target.id)
    watched = about.arch == "x86_64" and not any(name.startswith("avx512") for name in about.features)
    for entry in bundle.manifest.entries:
        if memcheck is not None and watched:
            described = bundle.entry(entry)
            sizes = [",".join(str(t.size) for t in g) for g in (described.inputs, described.outputs)]
            symbol = f"{bundle.manifest.cname}_{entry}"
            if said := watch(memcheck, bundle.library, symbol, sizes[0], sizes[1], described.workspace):
                wrong.append(f"{entry}, valgrind: {' '.join(said.split())[:400]}")
            found.watched += 1
        done = run_guarded(program, bundle, entry, "arrays")
        counted = re.fullmatch(r"(\d+) placements, one answer\n", done.stdout)
        if done.returncode or counted is None:
            wrong.append(f"{entry}: {done.stderr.strip() or done.stdout.strip() or done.returncode}")
        else:
            found.calls += int(counted[1])
        done = run_guarded(program, bundle, entry, "stack", str(3 * STACK))
        depth = re.fullmatch(r"(\d+) bytes\n", done.stdout)
        if depth is None or int(depth[1]) > STACK:
            wrong.append(f"{entry}, stack: {(done.stderr or done.stdout).strip()}")
        else:
            found.stack_bytes = max(found.stack_bytes, int(depth[1]))
        found.entries += 1
    return wrong


def random_networks(
    found: Found, minutes: float, save: Callable[[Found], None] = lambda found: None
) -> Found:
    """Build and judge random networks for some minutes; `save` is called after each."""
    from edgecsi.pipeline import BuildOptions, build

    with tempfile.TemporaryDirectory(prefix="edgecsi-memory-") as name:
        folder = Path(name)
        programs = {arch: compile_guarded(arch, folder) for arch in targets.TRIPLES}
        memcheck = compile_memcheck(folder)
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            start, seed = time.monotonic(), found.networks
            numbers = np.random.default_rng(seed)
            (folder / "net.py").write_text(NETWORK.format(seed=seed))
            recipe = RECIPES[int(numbers.integers(len(RECIPES)))]
            batches = ((), (2,), (3, 8))[int(numbers.integers(3))]
            for target in TARGETS:
                wanted = targets.load(target)
                if wanted.arch == "x86_64" and wanted.missing_on_this_cpu():
                    continue
                options = BuildOptions(
                    f"{folder / 'net.py'}:make",
                    target,
                    out=folder / target,
                    name="net",
                    recipe=recipe,
                    batches=batches,
                )
                what = f"network {seed} for {target}, {recipe or 'fp32'}, batches {batches}"
                try:
                    bundle = build(options).bundle
                except EdgecsiError as error:
                    if not any(text in str(error) for text in NOT_FOR_IT):
                        found.findings.append(f"{what}: {' '.join(str(error).split())[:300]}")
                    continue
                except Exception as error:  # a crash is a finding, and the next network is tried
                    found.findings.append(f"{what} crashes: {' '.join(repr(error).split())[:300]}")
                    continue
                assert bundle is not None
                found.libraries += 1
                found.findings += [
                    f"{what}: {text}" for text in judge(programs[wanted.arch], bundle, found, memcheck)
                ]
            found.networks += 1
            found.seconds = round(found.seconds + time.monotonic() - start, 1)
            save(found)
    return found


def whole_zoo(found: Found, save: Callable[[Found], None]) -> Found:
    """Judge every network of the zoo for `ZOO_TARGETS`; those that are done stay so."""
    from edgecsi.models import registry
    from edgecsi.pipeline import BuildOptions, build
    from edgecsi.results.zoo import computes

    names = [info.name for info in registry.list_models()] + registry.list_compressed()
    with tempfile.TemporaryDirectory(prefix="edgecsi-memory-") as folder:
        programs = {arch: compile_guarded(arch, Path(folder)) for arch in targets.TRIPLES}
        memcheck = compile_memcheck(Path(folder))
        for target in ZOO_TARGETS:
            program = programs[targets.load(target).arch]
            for name in names:
                if f"{name} for {target}" in found.zoo or not computes(name, target):
                    continue
                start = time.monotonic()
                out = Path(folder) / f"{name}-{target}"
                bundle = build(BuildOptions(name, target, out=out, allow_random=True)).bundle
                assert bundle is not None
                found.libraries += 1
                wrong = judge(program, bundle, found, memcheck)
                found.findings += [f"{name} for {target}: {text}" for text in wrong]
                found.zoo.append(f"{name} for {target}")
                found.seconds = round(found.seconds + time.monotonic() - start, 1)
                save(found)
                shutil.rmtree(out)
    return found


def random_network(numbers: np.random.Generator) -> tuple[nn.Module, Any]:
    """A small network of odd sizes, some weights zero, with an example input: dense layers behind numbers, images,
    sequences, places in a table (integers), or several tensors, of which places come out."""
    torch.manual_seed(int(numbers.integers(2**31)))

    def some(low: int, high: int) -> int:
        return int(numbers.integers(low, high + 1))

    def activation() -> nn.Module:
        kinds: list[type[nn.Module]] = [
            nn.ReLU,
            nn.Tanh,
            nn.Sigmoid,
            nn.LeakyReLU,
            nn.Identity,
            nn.Hardsigmoid,
            nn.GELU,
        ]
        return kinds[int(numbers.integers(len(kinds)))]()

    layers: list[nn.Module] = []
    kind = ("numbers", "image", "image", "sequence", "places", "several")[some(0, 5)]
    if kind in ("numbers", "several"):
        example = torch.rand(1, some(1, 300))
    elif kind == "image":
        channels, height, across = some(1, 5), some(5, 40), some(5, 40)
        example = torch.rand(1, channels, height, across)
        for _ in range(some(1, 2)):
            made, size = some(1, 20), [1, 3, 3, 5][some(0, 3)]
            layers += [nn.Conv2d(channels, made, size, padding=some(0, size // 2)), activation()]
            channels = made
        if numbers.random() < 0.5:
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.Flatten())
    elif kind == "sequence":
        heads = some(1, 3)
        wide = heads * some(1, 7)
        example = torch.rand(1, some(1, 20), wide)
        layers += [_Attention(wide, heads), nn.LayerNorm(wide), nn.Softmax(-1), nn.Flatten()]
    else:
        rows = some(1, 50)
        example = torch.randint(rows, (1, some(1, 20)))
        layers += [nn.Embedding(rows, some(1, 9)), nn.Flatten()]
    with torch.no_grad():
        width = nn.Sequential(*layers)(example).shape[1]
    for _ in range(some(1, 3)):
        made = some(1, 150)
        layers += [nn.Linear(width, made), activation()]
        width = made
    network = nn.Sequential(*layers).eval()
    kept = float(numbers.choice([1.0, 0.5, 0.1, 0.02]))
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear):
                layer.weight *= torch.rand_like(layer.weight) < kept
    if kind != "several":
        return network, example
    count = some(1, width)
    return _Several(network, count, some(1, 9)).eval(), (
        example,
        torch.rand(1, some(1, 5)),
        torch.tensor(0.5),
    )


class _Attention(nn.Module):
    """Attention of a sequence with itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x, x, x)[0]  # type: ignore[no-any-return]


class _Several(nn.Module):
    """Three inputs, one of them a scalar; out come the largest numbers, their places, and rows of a table chosen by
    the numbers of the second input."""

    def __init__(self, network: nn.Module, count: int, rows: int) -> None:
        super().__init__()
        self.network, self.count = network, count
        self.table = nn.Parameter(torch.rand(rows, 3))

    def forward(self, x: Tensor, chosen: Tensor, gain: Tensor) -> tuple[Tensor, ...]:
        y = self.network(x) * gain
        values, places = y.topk(self.count)
        rows = self.table[(chosen * len(self.table)).long().clamp(0, len(self.table) - 1)]
        return values, places, y.sort(stable=True)[0], rows
