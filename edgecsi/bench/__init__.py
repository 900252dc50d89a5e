"""Measuring: how fast a bundle is, against whom, and whether the figure can be believed
(docs/how-we-measure.md).

statistics    medians with confidence intervals, percentiles, ratios of interleaved series
environment   what the machine did before, during and after: the validity of a result
measure       the protocol: warm-up, interleaved turns, cold L2, cold start, memory
throughput    samples a second: batches on several threads
peers/        one file per engine we compare with
limits        what this machine's core can do at best; layers: every layer held against it
result        what was found, as data; `edgecsi.report` shows it
api           run_bench: all of it for one bundle
"""
