"""The experiments of the two source papers, on our data: ``python -m edgecsi.compress.experiments NAME [--quick]``.

Each file has one function ``run(quick) -> Result``; each leaves ``docs/results/NAME.json``, ``.md`` and ``.svg``.
"""
