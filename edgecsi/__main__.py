"""``python -m edgecsi``: the same as the program ``edgecsi``."""

from edgecsi.cli import main

if __name__ == "__main__":
    main()
