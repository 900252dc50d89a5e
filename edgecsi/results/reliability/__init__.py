"""What edgecsi survives, tried and counted: the script behind docs/reliability.md.

    python -m edgecsi.results.reliability fuzz --minutes 120    # broken and hostile files, every reader
    python -m edgecsi.results.reliability faults                # a disk that fails, a kill, at every step of the work
    python -m edgecsi.results.reliability memory                # guard pages, valgrind
    python -m edgecsi.results.reliability deployment            # connections, power and disks that fail
    python -m edgecsi.results.reliability devices               # the same while a bundle runs or is timed
    python -m edgecsi.results.reliability tuning                # searches that are killed
    python -m edgecsi.results.reliability page                  # write docs/reliability.md

Each writes its JSON in docs/results; the first and the third go on counting there when they are run again.
"""
