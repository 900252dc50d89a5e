"""``python -m edgecsi.compress.experiments NAME [--quick] [-o FOLDER]``"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from edgecsi.compress.experiments import NAMES
from edgecsi.compress.experiments.common import write


def main() -> None:
    """Run one experiment and write its results."""
    parser = argparse.ArgumentParser(prog="python -m edgecsi.compress.experiments")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--quick", action="store_true", help="a small part of it, under 3 minutes")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results"), help="folder")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    module = import_module(f"edgecsi.compress.experiments.{options.name.replace('-', '_')}")
    result = module.run(options.quick, lambda text: print(text, flush=True))
    command = f"python -m edgecsi.compress.experiments {options.name}" + (" --quick" if options.quick else "")
    for path in write(result, options.output, command):
        print(path)


if __name__ == "__main__":
    main()
