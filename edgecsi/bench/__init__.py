"""Measuring: how fast a bundle is, against whom, and whether the figure can be believed
(docs/how-we-measure.md).

statistics    medians with confidence intervals, percentiles, ratios of interleaved series
environment   what the machine did before, during and after: the validity of a result
measure       the protocol: warm-up, interleaved turns, cold L2, cold start, memory
throughput    samples a second: batches on several threads
peers/        one file per engine we compare with
limits        what this machine's core can do at best; layers: every layer held against it
cycles        what llvm-mca estimates for the hot loops on the Raspberry Pi's CPUs
report        the result: JSON, text table, picture
api           run_bench: all of it for one bundle
shipped       verifies every compressed network that ships, on every target
results       the script behind docs/results.md; scenarios: what it runs; workloads: networks that do not ship
knobs         what searching the kernels' knobs would add to it
"""
