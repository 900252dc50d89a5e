"""Products with constant weights become layers: their weights move from inputs to attributes.

After this pass ``conv2d`` and ``dense`` have one input; ``weight``, ``bias``, ``scale``, ``x_quant``, ``dynamic`` and
``table`` are attributes as in `edgecsi.ops.operators`. Dense layers multiply the last axis, whatever the rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.errors import ModelError
from edgecsi.lower.graph import Graph, Node, Value
from edgecsi.ops.operators import Half, Quant


def recognise_layers(graph: Graph) -> None:
    """Turn convolutions and products with constants, and the operators of compressed layers, into layers.

    Raises:
        ModelError: a convolution whose weights are computed while it runs.
    """
    for node in graph.nodes:
        match node.op:
            case "conv2d" if (
                node.inputs[1].data is None
            ):  # made by the network itself: TVM's definition serves
                node.op = "relax"
                node.attrs = {"call": node.attrs["call"], "name": "nn.conv2d", "index": None}
            case "conv2d":
                node.attrs.pop("call", None)
                weight = _constant(node, 1)
                node.attrs |= {"weight": weight, "bias": None}
                node.inputs = node.inputs[:1]
            case "matmul" if _matrix(node.inputs[1]) is not None:
                weight = _matrix(node.inputs[1])
                assert weight is not None
                _dense(node, weight=weight.T)
            case "dense_transposed":
                # ConvTranspose1d on length 1: weight [in, out, kernel]; with any padding one tap is left
                weight = _constant(node, 1)
                if weight.shape[2] != 1:
                    raise ModelError(
                        f"{node.path}: ConvTranspose1d with a kernel of {weight.shape[2]} on length 1",
                        "only kernels of one tap act as a fully connected layer",
                        "use nn.Linear",
                    )
                _dense(node, weight=weight[:, :, 0].T)
            case "layer_norm":
                node.attrs |= {"gamma": _constant(node, 1), "beta": _constant(node, 2)}
                node.inputs = node.inputs[:1]
            case "quantize":
                _, scale, zero_point, offset = node.attrs.pop("arguments")
                node.attrs["quant"] = Quant(float(scale), int(zero_point), float(offset))
            case "quantize_wide":
                _, scale, zero_point, offset, fine = node.attrs.pop("arguments")
                node.y_quant = Quant(float(scale), int(zero_point), float(offset))
                node.attrs["fine"] = int(fine)
            case "qs8_conv2d":
                arguments = node.attrs.pop("arguments")
                scale, zero_point, fill, stride, padding, dilation, groups, fine = arguments[4:12]
                arrays = _quantised(node, arguments)
                node.op = "conv2d"
                node.attrs |= arrays | {
                    "x_quant": Quant(float(scale), int(zero_point)), "fill": int(fill), "stride": tuple(stride),
                    "padding": tuple(padding), "dilation": tuple(dilation), "groups": int(groups),
                    "fine": int(fine),
                }  # fmt: skip
            case "to_half":
                _, offset, gain = node.attrs.pop("arguments")
                node.op, node.attrs["quant"] = "quantize", Half(float(gain))
                node.attrs["shift"] = -np.array(offset, np.float32)
            case "f16_conv2d":
                arguments = node.attrs.pop("arguments")
                fill, stride, padding, dilation, groups = arguments[4:9]
                arrays = _quantised(node, arguments)
                # the front holds every float in fp32
                arrays["weight"] = arrays["weight"].astype(np.float16)
                node.op = "conv2d"
                node.attrs |= arrays | {
                    "fill": tuple(map(float, fill)) or 0, "stride": tuple(stride), "padding": tuple(padding),
                    "dilation": tuple(dilation), "groups": int(groups),
                }  # fmt: skip
            case "f16_linear":
                arrays = _quantised(node, node.attrs.pop("arguments"))
                _dense(node, **arrays | {"weight": arrays["weight"].astype(np.float16)})
            case "qd16_conv2d":
                arguments = node.attrs.pop("arguments")
                steps, padding, dilation = arguments[4:7]
                node.op = "conv2d"
                node.attrs |= _quantised(node, arguments) | {
                    "steps": int(steps), "padding": tuple(padding), "dilation": tuple(dilation),
                }  # fmt: skip
            case "qs8_linear":
                arguments = node.attrs.pop("arguments")
                arrays = _quantised(node, arguments)
                _dense(node, **arrays, x_quant=Quant(float(arguments[4]), int(arguments[5])))
            case "qs8_wide_linear":
                arguments = node.attrs.pop("arguments")
                scale, zero_point, offset, fine = arguments[4:8]
                quant = Quant(float(scale), int(zero_point), float(offset))
                _dense(node, **_quantised(node, arguments), x_quant=quant, fine=int(fine))
            case "qd8_linear":
                _dense(node, **_quantised(node, node.attrs.pop("arguments")), dynamic=True)
            case "qd16_linear":
                arguments = node.attrs.pop("arguments")
                _dense(node, **_quantised(node, arguments), steps=int(arguments[4]))
            case "qs8w_linear":
                _dense(node, **_quantised(node, node.attrs.pop("arguments")))
            case "lut_linear":
                node.attrs.pop("arguments")
                bias = _constant(node, 3) if len(node.inputs) > 3 else None
                _dense(node, weight=_constant(node, 1), table=_constant(node, 2), bias=bias)


def _matrix(value: Value) -> NDArray[Any] | None:
    """The one matrix that a constant holds, perhaps repeated for a batch."""
    data = value.data
    if data is None or data.ndim < 2:
        return None
    several = data.reshape(-1, *data.shape[-2:])
    return several[0] if (several == several[:1]).all() else None


def _dense(node: Node, **attrs: Any) -> None:
    node.op = "dense"
    node.attrs.pop("call", None)
    node.path = node.path or node.inputs[1].name.rsplit(".", 1)[0]
    node.attrs |= {"bias": None} | attrs
    node.inputs = node.inputs[:1]


def _quantised(node: Node, arguments: list[Any]) -> dict[str, Any]:
    """Weight, scale and bias of a quantised layer; drops them from the inputs."""
    weight = _constant(node, 1)
    bias = _constant(node, 3) if arguments[3] != "none" else None
    found = {"weight": weight, "scale": _constant(node, 2).astype(np.float32), "bias": bias}
    node.path = node.path or node.inputs[1].name.rsplit(".", 1)[0]
    node.inputs = node.inputs[:1]
    return found


def _constant(node: Node, index: int) -> Any:
    data = node.inputs[index].data
    if data is None:
        raise ModelError(
            f"{node.path or node.output.name}: the weights of a layer are computed while it runs",
            "a compiled layer needs constant weights",
            "compute them once, outside of forward",
        )
    return data
