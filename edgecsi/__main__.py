"""``python -m edgecsi``: the same as the program ``edgecsi``."""

import sys

from edgecsi.cli import main

if __name__ == "__main__":
    sys.exit(main())
