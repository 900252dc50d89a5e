"""The first hour of a new user: what is typed, by the docs and off the path, and what has to come of it.

    python -m tests.first_hour            all of it, in a fresh clone, without a terminal and with one of 80 columns
    python -m tests.first_hour --light    only what takes a moment: `tests/test_first_hour.py` does this

Every step is a command, its exit code and the words that decide. On the terminal no line may be wider than it is, nor
may a word be broken. The documented commands themselves are typed by `python -m tests.documented`.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Step:
    """What is typed, the exit code, and words that must be in the answer (or, after ``!``, must not)."""

    line: str
    code: int
    words: tuple[str, ...] = ()


CODEC = '''
import torch
from torch import nn
from edgecsi.channels.shipped import test_set

class Codec(nn.Module):
    """The principal components of the channels that ship."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(2048, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 2048), nn.Unflatten(1, (2, 32, 32)))

    def forward(self, x):
        return self.decoder(self.encoder(x))

def make():
    net, x = Codec(), torch.from_numpy(test_set(64)).flatten(1)
    mean = x.mean(0)
    axes = torch.linalg.svd(x - mean, full_matrices=False)[2][:16]
    with torch.no_grad():
        for layer, weight, bias in ((net.encoder[1], axes, -axes @ mean), (net.decoder[0], axes.T, mean)):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return net.eval(), torch.zeros(1, 2, 32, 32)

def untrained():
    torch.manual_seed(0)
    return Codec().eval(), torch.zeros(1, 2, 32, 32)

def noisy():
    class Noisy(Codec):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))
    return Noisy().eval(), torch.zeros(1, 2, 32, 32)
'''
PREPARE = """
import numpy as np, torch
from codec import Codec, make, untrained
from edgecsi.channels.shipped import test_set
x = test_set(12)
np.save("x.npy", x)
np.save("flat.npy", x.reshape(12, -1))
np.save("one.npy", x[:1])
np.save("single.npy", x[0])
np.savez("x.npz", channels=x)
np.save("wide.npy", x * 3)
np.save("codewords.npy", np.zeros((3, 16), np.float32))
open("page.npy", "w").write("<!DOCTYPE html><html><body>404</body></html>")
open("page.mat", "w").write("<!DOCTYPE html><html><body>404</body></html>")
open("short.npy", "wb").write(open("x.npy", "rb").read()[:999])
torch.save(make()[0], "whole.pth")
torch.save({"model": make()[0].state_dict(), "ema": untrained()[0].state_dict()}, "two.pth")
"""

LIGHT = [
    Step("edgecsi", 2, ("Verbs:",)),
    Step("edgecsi --help", 0, ("build", "doctor")),
    Step("edgecsi help build", 0, ("--target", "Example:")),
    Step("edgecsi help data generate", 0, ("umi",)),
    Step("edgecsi bulid codec.py:make", 2, ("did you mean build",)),
    Step("edgecsi build csinet-cr4", 2, ("--target",)),
    Step("edgecsi models", 0, ("csinet-cr4",)),
    Step("edgecsi -q models", 0, ("csinet-cr4",)),
    Step("edgecsi recipes", 0, ("int8-dynamic",)),
    Step("edgecsi recipes show int8-static", 0, ("description",)),
    Step("edgecsi recipes show INT8_static", 3, ("did you mean int8-static",)),
    Step("edgecsi targets", 0, ("rpi4",)),
    Step("edgecsi targets show rpi5", 0, ("cortex-a76",)),
    Step("edgecsi targets show RPI_4", 3, ("rpi4",)),
    Step("edgecsi records list", 0),
    Step("edgecsi device list", 0),
    Step("edgecsi inspect nowhere", 3, ("is no bundle",)),
    Step("edgecsi eval nowhere --data test --json /sys/no.json", 4, ("/sys/no.json",)),
    Step("edgecsi bench nowhere --json no/where.json", 3, ("its folder does not exist",)),
    Step("edgecsi bench --limits --threads 2", 2, ("--batch",)),
    Step("edgecsi data generate cdl-c:100000 -o /sys/no.npz", 4, ("cannot be written",)),
    Step("edgecsi data generate cdl-c:100000 -o out.txt", 2, (".npz",)),
    Step("edgecsi data info page.npy", 3, ("web page",)),
    Step("edgecsi data info page.mat", 3, ("web page",)),
    Step("edgecsi data info short.npy", 3, ("!zip bomb",)),
    Step("edgecsi data info x.npz", 0, ("12",)),
    Step("edgecsi experiments run patterns --quick -o DOCS", 2, ("holds the whole patterns",)),
]
"""What needs no PyTorch."""
MEDIUM = [
    Step("edgecsi models show csinet-cr16", 0, ("MACs",)),
    Step("edgecsi models show csinet-cr17", 3, ("csinet-cr16",)),
    Step("edgecsi build CsiNet_CR4 --target host --dry-run", 3, ("csinet-cr4",)),
    Step("edgecsi build csinet-cr16 --target rpi44 --dry-run", 3, ("rpi4",)),
    Step("edgecsi build csinet-cr16 --target host --entry decode --dry-run", 2, ("encoder, decoder, full",)),
    Step("edgecsi build csinet-cr16 --target host --recipe int8_dynamik --dry-run", 3, ("int8-dynamic",)),
    Step("edgecsi build csinet-cr16 --target host --calib x.npy", 2, ("--recipe",)),
    Step("edgecsi build codec.py --target host", 3, ("codec.py:make", "untrained")),
    Step("edgecsi build two.pth --target host", 3, ("FILE.py:factory --weights two.pth",)),
    Step("edgecsi build pkg/net.py:make --target host --dry-run", 3, ("pkg.net:make",)),
    Step("edgecsi build codec.py:make --target host --weights whole.pth --dry-run", 3, ("state_dict",)),
    Step("edgecsi build codec.py:make --target host --weights pkg --dry-run", 3, ("pkg is a folder",)),
    Step("edgecsi build codec.py:make --target host --weights two.pth --dry-run", 0, ("ema",)),
    Step("edgecsi build codec.py:untrained --target host --dry-run", 0, ("looks untrained: NMSE",)),
    Step("edgecsi build codec.py:make --target host --dry-run --explain", 0, ("encoder.1", "!untrained")),
    Step("edgecsi build codec.py:noisy --target host --dry-run", 3, ("!bug",)),
    Step("edgecsi build codec.py:make --target host --recipe int8-static --dry-run", 3, ("--calib",)),
    Step("edgecsi build codec.py:make --target host -o /sys/no", 4, ("cannot be written",)),
    Step(
        "edgecsi compress codec.py:make --recipe int8-weights --data x.npy -o no/x.safetensors",
        3,
        ("folder",),
    ),
]
HEAVY = [
    Step("edgecsi doctor", 0, ("qemu-aarch64",)),
    Step("edgecsi build codec.py:make --target host --recipe int8-dynamic --calib one.npy -o one", 0, ("1 sample",)),
    Step("edgecsi build codec.py:make --target host", 0, ("codec-host", "fp32 network", "passed")),
    Step("edgecsi build codec.py:make --target rpi4", 0, ("codec-rpi4",)),
    Step("edgecsi build codec.py:make --target rpi4 -o codec-host2", 0),
    Step("edgecsi build codec.py:make --target host -o codec-host2", 0, ("holds codec for rpi4",)),
    Step("edgecsi build codec.py:make --target host --recipe int8-weights", 0, ("codec-int8-weights-host", "loss")),
    Step("edgecsi inspect codec-int8-weights-host", 0, ("fp32 network", "compressed network in PyTorch", "loss")),
    Step("edgecsi eval codec-int8-weights-host --data test --samples 50", 0, ("--model codec.py:make",)),
    Step(
        "edgecsi eval codec-int8-weights-host --data test --samples 50 --model codec.py:make", 0,
        ("fp32 network", "compressed network in PyTorch", "loss"),
    ),
    Step("edgecsi eval codec-rpi4 --data x.npy --device emulate", 0, ("NMSE",)),
    Step("edgecsi build codec.py:make --target host --entry encoder -o enc", 0),
    *(Step(f"edgecsi run enc -i {name} -o codes.npy", 0, ("12 16" if name != "single.npy" else "1 16",))
      for name in ("x.npy", "flat.npy", "x.npz", "single.npy")),
    Step("edgecsi run enc -i x.npy -o x.npy", 2, ("is an input",)),
    Step("edgecsi eval enc --data x.npy --model codec.py:make", 0, ("encoder",)),
    Step("edgecsi bench enc --quick", 0, ("encoder",)),
    Step("edgecsi run codec-host -i wide.npy -o y.npy", 0),
    Step("edgecsi run codec-host -i codec.py -o y.npy", 3, ("!allow_pickle", "looks like a text")),
    Step("edgecsi bench codec-host --against ONNXruntim", 2, ("did you mean onnxruntime",)),
    Step("edgecsi run codec-host -i codewords.npy -o y.npy", 3, ("2, 32, 32",)),
    Step("edgecsi bench codec-host --quick --seconds 0.1 --repeat 3", 0, ("3 runs in processes of their own", "spread")),
    Step("edgecsi bench codec-host --quick --batch 64 --entry encoder", 0, ("no entry that takes 64 at once",)),
    Step("edgecsi bench codec-host --quick --against executorch,torch --model codec.py:make", 4, ("pip install",)),
    Step("edgecsi bench codec-host --quick --against torch --json b.json --model codec.py:make", 0, ("torch", "loss")),
    Step("edgecsi report b.json -o r.html", 0, ("r.html",)),
    Step("edgecsi compare b.json b.json", 0, ("same",)),
    Step(
        "edgecsi compress codec.py:make --recipe int8-weights --data test -o small.safetensors", 0,
        ("next: edgecsi build codec.py:make --weights small.safetensors",),
    ),
    Step(
        "edgecsi compress codec.py:make --recipe int8-weights -o blind.safetensors", 0,
        ("without --data nothing is fitted", "next:"),
    ),
    Step("edgecsi models show small.safetensors", 0, ("codec.py:make", "int8-weights")),
    Step("edgecsi build small.safetensors --target host", 3, ("codec.py:make --weights small.safetensors",)),
    Step("edgecsi build codec.py:make --weights small.safetensors --target host -o small", 0, ("fp32 network", "loss")),
    Step("edgecsi package codec-rpi4 --format tar", 0, (".tar.gz",)),
    Step("edgecsi deploy codec-host local --root here", 0, ("release",)),
]  # fmt: skip


def prepare(folder: Path, root: Path = ROOT) -> dict[str, str]:
    """Fill a folder with what the steps use; returns the environment to run them in."""
    (folder / "codec.py").write_text(CODEC)
    (folder / "prepare.py").write_text(PREPARE)
    (folder / "pkg").mkdir()
    for name, text in {"__init__": "", "parts": CODEC, "net": "from .parts import make\n"}.items():
        (folder / "pkg" / f"{name}.py").write_text(text)
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
    }
    for name in ("CI", "TERM", "NO_COLOR"):
        environment.pop(name, None)
    (folder / "bin").mkdir()
    (folder / "bin" / "edgecsi").write_text(f'#!/bin/sh\nexec {sys.executable} -m edgecsi "$@"\n')
    (folder / "bin" / "edgecsi").chmod(0o755)
    subprocess.run([sys.executable, "prepare.py"], cwd=folder, env=environment, check=True)
    return environment


def words_of(step: Step, root: Path = ROOT) -> list[str]:
    """The command line, ready to run."""
    return shlex.split(step.line.replace("DOCS", str(root / "docs" / "results")))


def piped(step: Step, folder: Path, environment: dict[str, str], root: Path = ROOT) -> Iterator[str]:
    """Run a step without a terminal; yields what is wrong."""
    done = subprocess.run(
        words_of(step, root), cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    yield from wrong(step, done.returncode, done.stdout + done.stderr)


def on_terminal(
    step: Step, folder: Path, environment: dict[str, str], root: Path = ROOT, width: int = 80
) -> Iterator[str]:
    """Run a step on a terminal of this width; yields what is wrong."""
    code, said = typed(words_of(step, root), folder, environment, width)
    text = shown(said)
    yield from wrong(step, code, text)
    yield from (f"wider than {width}: {line}" for line in too_wide(text, width))


def typed(words: list[str], folder: Path, environment: dict[str, str], width: int = 80) -> tuple[int, str]:
    """Run a command on a terminal of this width; its exit code, and all that the terminal was sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {"TERM": "xterm"} | {k: v for k, v in environment.items() if k != "COLUMNS"}
    with subprocess.Popen(
        words, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # nobody holds the other end any more
                break
            if not part:
                break
            said += part
        code = process.wait(900)
    os.close(ours)
    return code, said.decode(errors="replace")


def shown(text: str) -> str:
    """What stays on a terminal: without colours, and without what was written over."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")
    return "\n".join(line.rpartition("\r")[2] for line in text.split("\n"))


def too_wide(text: str, width: int) -> list[str]:
    """Lines of tables and texts that a terminal would break; one word alone cannot be broken better."""
    return [line for line in text.splitlines() if len(line) > width and len(line.split()) > 1]


def wrong(step: Step, code: int, text: str) -> Iterator[str]:
    """What is not as it should be."""
    joined = " ".join(text.split())
    if code != step.code:
        yield f"exit code {code} instead of {step.code}: {text.strip()[-700:]}"
    yield from (
        f"does not say {word!r}: {text.strip()[-700:]}"
        for word in step.words
        if word[0] != "!" and word not in joined
    )
    yield from (f"says {word[1:]!r}" for word in step.words if word[0] == "!" and word[1:] in joined)
    if "Traceback" in text or "this is a bug" in text:
        yield f"a traceback: {text.strip()[-700:]}"


def main() -> int:
    """Replay it; returns how many steps went wrong."""
    light = "--light" in sys.argv
    failed = 0
    with tempfile.TemporaryDirectory(prefix="first-hour-") as folder:
        clone = Path(folder) / "edgecsi"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        for run in (piped, on_terminal):
            here = Path(folder) / run.__name__
            here.mkdir()
            environment = prepare(here, clone)
            for step in LIGHT + ([] if light else MEDIUM + HEAVY):
                found = list(run(step, here, environment, clone))
                failed += bool(found)
                print(
                    f"{'WRONG' if found else 'ok   '} {run.__name__:<11} {step.line}",
                    *found,
                    sep="\n      ",
                    flush=True,
                )
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
