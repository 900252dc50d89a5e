"""The engines edgecsi is compared with, one file each.

Every peer gets the same PyTorch module with the same weights, the same input, and one thread: the bundle's, or the
uncompressed network where that has layers of edgecsi's own. It is timed the way its users call it: numpy array in, numpy
array out.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgecsi.bench.peers.protocol import Array, Batched, Peer, Run, RunSeveral, Several
from edgecsi.errors import UsageError
from edgecsi.names import suggestion

__all__ = ["Array", "Batched", "Peer", "Run", "RunSeveral", "Several", "all_peers", "find_peers"]


def all_peers() -> list[Peer]:
    """Every known engine, in the order of reports; imports none of them."""
    from edgecsi.bench.peers.executorch import ExecuTorch
    from edgecsi.bench.peers.litert import LiteRT
    from edgecsi.bench.peers.onnxruntime import OnnxRuntime
    from edgecsi.bench.peers.openvino import OpenVINO, OpenVINOBf16
    from edgecsi.bench.peers.pytorch import PyTorch

    return [OnnxRuntime(), OpenVINO(), OpenVINOBf16(), LiteRT(), ExecuTorch(), PyTorch()]


def find_peers(names: Sequence[str]) -> list[Peer]:
    """The engines of these names, in this order.

    Raises:
        UsageError: there is no engine of such a name.
    """
    known = {peer.name: peer for peer in all_peers()}
    for name in names:
        if name not in known:
            raise UsageError(
                f"there is no engine {name!r} to compare with",
                f"known are {', '.join(known)}",
                suggestion(name, known, "name some of them, separated by commas"),
            )
    return [known[name] for name in dict.fromkeys(names)]
