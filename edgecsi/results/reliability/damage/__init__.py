"""Ways to damage a file, by how it is built: from a flipped bit to a header that lies and a pickle that runs a program.

Each takes a good file and a source of choices, and gives a bad one (or, by chance, another good one). The choices are
drawn by hypothesis, which then finds the smallest file that still shows a fault.
"""

from __future__ import annotations

from edgecsi.results.reliability.damage.archives import MARK, NPY, ZIP
from edgecsi.results.reliability.damage.bytes import BYTES, Draw, Way
from edgecsi.results.reliability.damage.safetensors import SAFETENSORS
from edgecsi.results.reliability.damage.toml import TOML
from edgecsi.results.reliability.damage.trees import JSON, JSONL

__all__ = ["MARK", "Draw", "Way", "ways"]


def ways(form: str) -> dict[str, Way]:
    """Every way to damage a file that is built so, by its name."""
    own = {"json": JSON, "jsonl": JSONL, "toml": TOML, "safetensors": SAFETENSORS, "zip": ZIP, "npy": NPY}
    return BYTES | own.get(form, {})
