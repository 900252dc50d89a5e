"""What sixteen bits cost without training, in docs/choosing-compression.md: ``python -m edgecsi.results.sixteen_bits``.

Scored on one half of the shipped test set; the other shows the layers' inputs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

from edgecsi import disk
from edgecsi.channels.metrics import nmse_db
from edgecsi.channels.shipped import test_set
from edgecsi.codegen.zig import zig_cc
from edgecsi.compress import apply_post_training
from edgecsi.models.load import load_model
from edgecsi.results import script

PAGE = Path("docs") / "choosing-compression.md"
RECIPES = ("f16-weights", "int16", "f16")
NETWORKS = ("csinet-cr4", "csinet-cr16", "crnet-cr16")
_COSTS = " · ".join([r"[−-]?\d+\.\d\d"] * len(NETWORKS)) + " dB"


@torch.no_grad()
def loss(network: str, recipe: str) -> float:
    """NMSE lost, in dB."""
    shown, x = torch.from_numpy(test_set()).chunk(2)
    module = load_model(network).module.eval()
    made = apply_post_training(module, x[:1], recipe, shown)
    before, after = (nmse_db(x.numpy(), net(x).numpy()) for net in (module, made))
    return after - before


def peaks() -> str:
    """Products a second of one core, in fp32, bf16 and int16; x86 with AVX-512, VNNI and BF16.

    Raises:
        ToolchainError: it cannot be compiled for this machine's CPU.
    """
    with disk.scratch(runs=True) as folder:
        program = folder / "peaks"
        zig_cc(["-O2", "-mcpu=native", Path(__file__).with_name("peaks.c"), "-o", program])
        return subprocess.run([program], capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Write the figures into their rows, or say what the CPU could do."""
    parser = script.parser("sixteen_bits", __doc__)
    parser.add_argument(
        "--peaks", action="store_true", help="only how fast fp32, bf16 and int16 are multiplied here"
    )
    if parser.parse_args().peaks:
        sys.stdout.write(peaks())
        return
    page = PAGE.read_text("utf-8")
    for recipe in RECIPES:
        costs = (
            " · ".join(f"{round(loss(n, recipe), 2) + 0.0:.2f}".replace("-", "−") for n in NETWORKS) + " dB"
        )
        page, found = re.subn(rf"(?m)^(\|[^|]*\| `{recipe}`.*){_COSTS}", rf"\g<1>{costs}", page)
        assert found == 1, recipe
        sys.stdout.write(f"{recipe}: {costs}\n")
    disk.write(PAGE, page)


if __name__ == "__main__":
    main()
