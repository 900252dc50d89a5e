"""An int8 convolution writes the two planes of codes that the next layer reads, instead of fp32 to be split."""

from __future__ import annotations

from edgecsi.lower.graph import Graph

_GROUP = 4  # channels that int8 kernels want side by side, at most; none may hold codes of both planes


def write_wide_codes(graph: Graph) -> None:
    """Fuse ``quantize_wide`` into the int8 convolution before it, where nobody else reads the fp32 image."""
    for node in [n for n in graph.nodes if n.op == "quantize_wide"]:
        producer = graph.producer(node.inputs[0])
        if (
            producer is None
            or producer.op != "conv2d"
            or producer.attrs.get("x_quant") is None
            or producer.y_quant is not None
            or graph.only_reader(producer.output) is not node
            or producer.output.shape[1] % _GROUP
        ):
            continue
        producer.y_quant, producer.attrs["y_fine"] = node.y_quant, node.attrs["y_fine"]
        producer.output = node.output
        graph.drop(node)
