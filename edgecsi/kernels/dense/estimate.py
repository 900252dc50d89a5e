"""How the loop of the dense kernels is best shaped for a target, and what it costs."""

from __future__ import annotations

from edgecsi.kernels.base import Cost
from edgecsi.kernels.tiling import read_gbps
from edgecsi.ops.operators import Dense
from edgecsi.target import Target


def indices_per_load(target: Target) -> int:
    """How many indices are read at once: x86 has few loads a cycle, and instructions to spare."""
    return 4 if target.arch == "x86_64" else 1


def prefetch_ahead(op: Dense, target: Target) -> int:
    """Bytes by which the weights of one sample should be prefetched: 0, unless they come from beyond the second-level
    cache of an x86.

    Of weights read in turn that are more than it holds, that cache soon keeps nothing. Measured on Zen 5: prefetching
    gains 13 % where a call reads twice as much, and costs as much where some is still found there, up to 1.4 times.
    """
    far = max(op.among, op.weight.nbytes) >= 1.5 * target.l2_bytes
    return 2048 if far and target.arch == "x86_64" else 0


def shared_samples(batch: int, target: Target, accumulators: int) -> int:
    """How many samples should share a loaded block: a power of two.

    x86 reads an input as part of an instruction; ARM loads it, and so should load as many weights as inputs.
    """
    most = 8 if target.vector_registers == 32 and target.arch == "x86_64" and accumulators == 1 else 4
    if accumulators > 2:
        most = 2
    return min(1 << (batch.bit_length() - 1), most)


def dense_vectors(samples: int, target: Target, accumulators: int) -> int:
    """How many vectors of weights a panel should have where all blocks are stored."""
    room = 16 if target.vector_registers == 32 else 8
    if samples == 1:
        room //= 2
    return max(1, room // (samples * accumulators))


def cost(
    target: Target,
    *,
    batch: int,
    blocks: int,
    panels: int,
    vectors: int,
    vector_bytes: float,
    instructions: float,
    index_bytes: int,
    samples: int,
    prepared: int,
    macs: int,
    input_loads: int = 1,
    together: int = 1,
) -> Cost:
    """Predicted cost of a product.

    Args:
        blocks: stored blocks, each of `vectors` vectors of weights of `vector_bytes`.
        instructions: arithmetic per vector and sample. index_bytes: of a block.
        samples: that share a loaded block. prepared: bytes moved to prepare one sample's input.
        macs: multiply-adds of one sample, zeros within blocks included. input_loads: of a block and sample.
        together: blocks whose weights are loaded at once.
    """
    stored = round(blocks * (vectors * vector_bytes + index_bytes)) + 8 * panels
    # The first-level cache delivers this many vectors a second, and about as many are computed.
    rate = target.l1_gbps * 1e9 / (4 * target.lanes_f32)
    tiles = -(-batch // samples)
    index_loads = 1 / indices_per_load(target) if index_bytes else 0
    loads = blocks * (tiles * (vectors / together + index_loads) + batch * input_loads)
    work = blocks * vectors * batch * instructions
    overhead = 12 * panels * batch
    # Loads and arithmetic overlap, but not wholly.
    compute = (max(loads, work) + 0.25 * min(loads, work) + overhead) / rate
    product = max(compute, stored / (read_gbps(target, stored) * 1e9))
    if index_bytes:
        # Inputs are loaded later and one by one. Measured with every block stored: 0 to 40 % slower.
        product *= 1.15
    prepare = batch * prepared / (target.l1_gbps * 1e9)
    return Cost(seconds=product + prepare, bytes=stored, macs=macs * batch)
