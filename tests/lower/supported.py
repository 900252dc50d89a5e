"""Makes `docs/supported.md` of the operators under test: ``python -m tests.lower.supported``.

Each function of `tests.lower.operators` is lowered by itself; what computes it is what the plan calls. With names of
themes, only their tables are made anew. The last section comes from what `tests.lower.random_networks` published.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from edgecsi import target as targets
from edgecsi.codegen.program import PlannedEntry
from edgecsi.lower import lower
from tests.lower import operators, random_networks

PAGE = Path(__file__).parents[2] / "docs" / "supported.md"
BEGIN = "<!-- made by `python -m tests.lower.supported` -->"
HEAD = f"""# Operators

What of PyTorch a network may use. Each line is a test: the library answers what PyTorch answers, to 1e-5 of the largest
output, NaN and infinity included. Shapes are compiled in; inputs and outputs are float32, or int32 for integers and
booleans of any width; half precision inside is rounded after every operation, as PyTorch does on a CPU.

Three things can compute an operator: **own** kernels (written for the target, their knobs can be tuned), nothing at all
(**folded**: it goes into weights, into the kernel before it, or is only another view of the same memory), or **TVM**'s
loops, vectorised but not tuned. What depends on parameters alone is computed when the library is built.

NaN and infinity come out wherever PyTorch lets them out. They may go further than in PyTorch where PyTorch leaves out
terms: in the whole of a Fourier transform, in interpolation at a weight of zero, and where infinity meets the zeros that
fill the blocks of a kernel for zeros. And they may stay out of an output all of whose weights there are zero: such
kernels skip zeros, so that 0 · NaN is not computed. A complex number times a real one has NaN in the part that had it,
in PyTorch in both.

Sorting and cumulative sums compare every element with every other along the axis: quick for the hundreds that networks
have, refused where it takes more than 268 million steps (16,384 numbers).

What a network decides by values of its own parameters and buffers is decided when it is built: masks of
`nn.TransformerDecoder`, `x[:, self.used]`. `sort`, `topk` and `argsort` give equal values in the order in which they
stand, as `stable=True` does; PyTorch's own `topk` promises no order, so that of equal values it may choose others.

Not supported, and refused by name: random numbers and dropout that is left on, results whose size depends on data
(`nonzero`, `x[x > 0]`, `unique`, `item()`), branches on values, gradients in forward, packed sequences, singular values
and eigenvalues (`svd`, `pinv`, `eigh`), inverses and other systems of more than 16 equations, special functions (`i0`
and other Bessel functions), complex inputs and outputs (pass `view_as_real`).

{BEGIN}
"""


def computed_by(entry: PlannedEntry) -> str:
    """Who computes the calls of a plan, apart from copies of the caller's tensors."""
    own = {call.kernel for call in entry.calls if call.kernel not in ("tvm", "elementwise")}
    own |= {"elementwise" for call in entry.calls if call.kernel == "elementwise"} if not own else set()
    foreign = any(call.kernel == "tvm" for call in entry.calls)
    parts = [f"own: {', '.join(f'`{kernel}`' for kernel in sorted(own))}"] if own else []
    return "; ".join([*parts, *(["TVM"] if foreign else [])]) or "folded"


def rows(theme: str) -> list[str]:
    """The lines of a theme's table."""
    found = []
    for name in operators.THEMES[theme]:
        module, example = operators.network(theme, name)
        entry = lower(module, [example], "full", targets.load("x86"))[0]
        found.append(f"| {name.replace('|', '/')} | {computed_by(entry)} |")
        print(found[-1], file=sys.stderr, flush=True)
    return found


def section(theme: str) -> str:
    """A theme's heading and table."""
    return "\n".join(
        [f"## {theme.capitalize()}", "", "| operator | computed by |", "|---|---|", *rows(theme), ""]
    )


def main() -> None:
    """Write the page."""
    torch.set_num_threads(1)
    asked = sys.argv[1:] or list(operators.THEMES)
    old = PAGE.read_text("utf-8").partition(BEGIN)[2]
    before = {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in old.split("\n## ")[1:]}
    parts = [section(theme) if theme in asked else before[theme.capitalize()] for theme in operators.THEMES]
    PAGE.write_text("\n".join([HEAD, *parts, random_networks.published()]), "utf-8")


if __name__ == "__main__":
    main()
