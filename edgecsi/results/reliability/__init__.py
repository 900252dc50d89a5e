"""What edgecsi survives, tried and counted: the script behind docs/reliability.md.

    python -m edgecsi.results.reliability fuzz --minutes 120    # broken and hostile files, every reader
    python -m edgecsi.results.reliability faults                # a disk that fails, a kill, at every step of the work
    python -m edgecsi.results.reliability memory                # guard pages, valgrind
    python -m edgecsi.results.reliability page                  # write docs/reliability.md

Each adds to its JSON in docs/results, and goes on there when it is run again.
"""
