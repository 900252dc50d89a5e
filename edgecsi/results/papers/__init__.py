"""The experiments of the two source papers on our data: ``edgecsi experiments run NAME [--quick]``.

Each file has one function ``run(quick, say, time) -> Experiment``, written as ``docs/results/NAME.json``, ``.md`` and
``.svg``. ``time`` builds and times a network, or is None; only the experiments in ``TIMED`` take it.
"""

NAMES = ("erak", "guo-csi", "guo-detection", "patterns")
TIMED = ("erak", "guo-csi", "guo-detection")
