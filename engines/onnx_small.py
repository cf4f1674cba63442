"""How weights are kept small in ONNX files. ONNX Runtime makes fp32 of them once, when it loads."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

LEAST_BYTES = 4096  # matrices from this size on are kept as bytes


def halves(proto: onnx.ModelProto) -> None:
    """Keep the weights as the fp16 values they are, half the file; ONNX Runtime turns them into fp32 once, when it loads."""
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor)
        half = value.astype(np.float16) if value.dtype == np.float32 and value.size > 256 else None
        if half is None or not np.array_equal(half.astype(np.float32), value):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        proto.graph.node.insert(0, helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))


def bytes_and_halves(proto: onnx.ModelProto) -> None:
    """Round the weights: matrices to bytes with a scale a row, the rest to fp16."""
    nodes = []
    for tensor in list(proto.graph.initializer):
        value = numpy_helper.to_array(tensor)
        if value.dtype != np.float32 or value.size <= 256:
            continue
        name = tensor.name
        if value.ndim == 2 and value.size >= LEAST_BYTES and name.endswith(".weight"):
            scale = np.maximum(np.abs(value).max(1, keepdims=True) / 127, 1e-6).astype(np.float16)
            small = np.clip(np.rint(value / scale.astype(np.float32)), -127, 127).astype(np.int8)
            proto.graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
            nodes += [
                helper.make_node("Cast", [f"{name}.small"], [f"{name}.whole"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Cast", [f"{name}.scale"], [f"{name}.size"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}.whole", f"{name}.size"], [name]),
            ]
        else:
            small = value.astype(np.float16)
            if not np.isfinite(small).all():
                raise ValueError(f"{name} holds numbers that do not fit into fp16 or are not finite; take an earlier checkpoint (step-N.pt)")
            nodes.append(helper.make_node("Cast", [f"{name}.small"], [name], to=onnx.TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(small, f"{name}.small"))
    for node in reversed(nodes):
        proto.graph.node.insert(0, node)
