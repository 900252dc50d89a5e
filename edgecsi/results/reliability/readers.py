"""Everything that reads a file which somebody else may have written, with a good file of each kind."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgecsi import target as targets
from edgecsi.bench.result import read_result
from edgecsi.bundle import Bundle, read_bundle, read_golden
from edgecsi.channels import files as channels
from edgecsi.channels.named import load_named
from edgecsi.cli.inspect import command as inspect
from edgecsi.codegen.interface import render_header
from edgecsi.compress import recipe as recipes
from edgecsi.device import names as device
from edgecsi.kernels.records import Record, append, read_records
from edgecsi.models.load import load_model
from edgecsi.pipeline import BuildOptions, build

NETWORK = """
import torch

def make():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(12, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4)), torch.zeros(1, 12)

class Several(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(12, 6)

    def forward(self, csi, gain, places):
        code = torch.relu(self.fc(csi)) * gain
        return {"code": code, "best": code.argmax(1), "mean": code.mean() + places.sum()}

def several():
    torch.manual_seed(1)
    return Several().eval(), (torch.rand(1, 12), torch.tensor(0.5), torch.tensor([[3, 1]]))
"""


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: of the kind of file. suffix: of its name. form: how it is built, which says how it can be damaged:
            ``json``, ``toml``, ``safetensors``, ``zip``, ``npy`` or ``bytes``.
        sample: a good file of it in the folder of samples. read: reads the damaged one, which lies at this path.
    """

    name: str
    suffix: str
    form: str
    sample: str
    read: Callable[[Path], object]


def make_samples(folder: Path) -> None:
    """Write a good file for every reader; they are small, so that most of the time goes into reading."""
    import h5py
    import scipy.io
    import torch

    from edgecsi.models.checkpoints import write_weights

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(NETWORK)
    build(BuildOptions(f"{folder / 'net.py'}:make", "host", out=folder / "bundle", name="net"))
    shutil.copy(folder / "bundle" / "manifest.json", folder / "manifest.json")
    options = BuildOptions(
        f"{folder / 'net.py'}:several", "host", out=folder / "several", name="net", recipe="int8-dynamic"
    )
    build(options)
    module = load_model(f"{folder / 'net.py'}:make").module
    torch.save({"epoch": 3, "state_dict": module.state_dict()}, folder / "checkpoint.pth")
    write_weights(folder / "own.safetensors", module.state_dict(), {"model": "net.py:make", "config": "{}"})
    weights = Path(targets.__file__).parent / "models" / "weights"
    shutil.copy(
        weights / "fullycon+prune75-bsr4x1-int8-weights.safetensors", folder / "compressed.safetensors"
    )
    x = np.random.default_rng(0).random((3, 2, 32, 32), np.float32)
    np.save(folder / "channels.npy", x)
    np.savez(folder / "channels.npz", H=x)
    np.savez_compressed(folder / "packed.npz", H=x)
    np.savez(folder / "named.npz", csi=x[:, :, 0], gain=np.float32(0.5))
    (folder / "devices.toml").write_text(
        '[devices]\npi = "ssh://pi@raspberrypi:2222"\nlab = "rpc://10.0.0.7:9090"\n'
    )
    scipy.io.savemat(folder / "channels.mat", {"HT": x.reshape(3, -1)}, do_compression=True)
    with h5py.File(folder / "new.mat", "w", userblock_size=512) as file:
        file["HT"] = x.reshape(3, -1).T
    with (folder / "new.mat").open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    (folder / "target.toml").write_text(
        'extends = "rpi5"\ndescription = "mine"\nmcpu = "cortex-a76"\nmattr = ["-sha2"]\nfeatures = ["fp", "asimd"]\n'
        "l1_bytes = 65536\nl1_gbps = 76.0\ncores = 4\n"
    )
    (folder / "recipe.toml").write_text(
        'description = "mine"\n\n[[steps]]\ndo = "prune"\nlayers = ["*.fc"]\npattern = "bsr16x4"\nsparsity = 0.75\n\n'
        '[[steps]]\ndo = "quantize"\nmode = "dynamic"\nbits = 8\n'
    )
    quick = [
        "bench",
        str(folder / "bundle"),
        "--quick",
        "--seconds",
        "0.02",
        "--json",
        str(folder / "result.json"),
    ]
    subprocess.run([sys.executable, "-m", "edgecsi", *quick], check=True, capture_output=True)
    record = Record(
        "trial", "dense 12 6", "0", "f32_dense", {"rows": 4}, "c0de", "host", "cpu", "0.27", "measured", 1.5
    )
    append(
        folder / "records.jsonl",
        [record, replace(record, us=2.5), replace(record, kind="choice", default_us=3.0)],
    )


def readers(samples: Path) -> list[Reader]:
    """All readers, of files damaged from those in `samples`."""
    net = f"{samples / 'net.py'}:make"

    def within(whole: str, name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
        """Reads a bundle that is whole but for the damaged file."""

        def read_there(path: Path) -> object:
            place = path.parent / whole
            if not place.exists():
                shutil.copytree(samples / whole, place)
            shutil.copy(path, place / name)
            try:
                return read(place)
            finally:
                shutil.copy(samples / whole / name, place / name)

        return read_there

    def shown(place: Path) -> object:
        """As `edgecsi inspect --layers` does, and with the header that its manifest gives."""
        with contextlib.redirect_stdout(io.StringIO()):
            assert inspect.callback is not None
            inspect.callback(place, True, False, "local", None, None)
        return render_header(read_bundle(place).manifest)

    def values(whole: str) -> Callable[[Path], object]:
        """The damaged values, although their hash is wrong."""
        return lambda place: read_golden(Bundle(place, read_bundle(samples / whole).manifest), "full")

    def device_names(path: Path) -> object:
        os.environ["XDG_CONFIG_HOME"] = str(path.parent)
        place = device.user_file()
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
        return [device.check(named.spec) for named in device.listed()]

    def library(path: Path) -> object:
        """The damaged library, in a bundle whose manifest vouches for it."""
        from edgecsi.bundle.elf import check_library

        with path.open("rb") as stream:
            check_library(stream, path, read_bundle(samples / "bundle").manifest)
        return None

    return [
        Reader("manifest", ".json", "json", "manifest.json", within("bundle", "manifest.json", read_bundle)),
        Reader("manifest of several tensors, shown", ".json", "json", "several/manifest.json",
               within("several", "manifest.json", shown)),
        Reader("file of a bundle", ".npz", "bytes", "bundle/golden.npz", within("bundle", "golden.npz", read_bundle)),
        Reader("golden values", ".npz", "zip", "bundle/golden.npz", within("bundle", "golden.npz", values("bundle"))),
        Reader("golden values of several tensors", ".npz", "zip", "several/golden.npz",
               within("several", "golden.npz", values("several"))),
        Reader("library", ".so", "bytes", "bundle/libnet.so", library),
        Reader("checkpoint", ".pth", "zip", "checkpoint.pth", lambda path: load_model(net, str(path))),
        Reader("weights", ".safetensors", "safetensors", "own.safetensors", lambda p: load_model(net, str(p))),
        Reader("compressed network", ".safetensors", "safetensors", "compressed.safetensors",
               lambda path: load_model(str(path))),
        Reader("numpy array", ".npy", "npy", "channels.npy", channels.read),
        Reader("numpy archive", ".npz", "zip", "channels.npz", channels.read),
        Reader("packed numpy archive", ".npz", "zip", "packed.npz", channels.read),
        Reader("arrays by name", ".npz", "zip", "named.npz",
               lambda path: load_named(path, {"csi": (1, 2, 32), "gain": ()})),
        Reader("names of devices", ".toml", "toml", "devices.toml", device_names),
        Reader("MATLAB 5 file", ".mat", "bytes", "channels.mat", channels.read),
        Reader("MATLAB 7.3 file", ".mat", "bytes", "new.mat", channels.read),
        Reader("target", ".toml", "toml", "target.toml", targets.load),
        Reader("recipe", ".toml", "toml", "recipe.toml", recipes.load),
        Reader("result", ".json", "json", "result.json", read_result),
        Reader("records of tuning", ".jsonl", "jsonl", "records.jsonl", lambda path: read_records([path])),
    ]  # fmt: skip
