"""The experiments of the two source papers on our data: ``edgecsi experiments run NAME [--quick]``.

Each file has one function ``run(quick, say) -> Result``, written as ``docs/results/NAME.json``, ``.md`` and
``.svg``.
"""

NAMES = ("erak", "guo-csi", "guo-detection", "patterns")
