"""Reshapes cost nothing: views of views become one, and a layer writes the shape that is looked at itself."""

from __future__ import annotations

import math

from edgecsi.lower.graph import Graph


def merge_views(graph: Graph) -> None:
    """Views of views become one; views that change nothing go; a layer writes the viewed shape itself."""
    changed = True
    while changed:
        changed = False
        for view in [n for n in graph.nodes if n.op == "view"]:
            if not any(n is view for n in graph.nodes):
                continue
            source = view.inputs[0]
            producer = graph.producer(source)
            if producer is not None and producer.op == "view":
                view.inputs[0] = producer.inputs[0]
                view.attrs["offset"] = view.attrs.get("offset", 0) + producer.attrs.get("offset", 0)
                changed = True
            elif (
                source.shape == view.output.shape
                and not view.attrs.get("offset")
                and not graph.is_output(view.output)
            ):
                graph.forward(view.output, source)
                graph.drop(view)
                changed = True
            elif (
                producer is not None
                and producer.op == "dense"
                and len(view.output.shape) == 4
                and len(source.shape) == 2
                and view.output.shape[0] == source.shape[0]
                and math.prod(view.output.shape) == math.prod(source.shape)  # not a part of it
                and graph.only_reader(source) is view
                and all(f.operand is None for f in producer.epilogue)
                and not any(f.step.constants for f in producer.epilogue)
            ):
                producer.output = view.output
                producer.attrs["image"] = True  # its outputs are written as an image, whatever their number
                graph.drop(view)
                changed = True
        graph.remove_dead()
