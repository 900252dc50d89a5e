"""The experiments of the two source papers on our data: ``python -m edgecsi.compress.experiments NAME``.

Each file has one function ``run(quick, say) -> Result``, written as ``docs/results/NAME.json``, ``.md`` and
``.svg``.
"""

NAMES = ("erak", "guo-csi", "guo-detection", "patterns")
