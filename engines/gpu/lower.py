"""The ONNX step as a GPU wants it: one batch size, constants folded, small states packed into one tensor, matrix products in half precision.

TensorRT networks are strongly typed: precision is what the ONNX says. What stays fp32 in every precision: the state (a memory near 1 does not
fit into half), all that is not a matrix product (epsilons of 1e-10, powers of magnitudes, the level follower, norms, softmax over a mask of
-1e9) and the input and output spectra. The weights are fp16 values anyway, so fp16 rounds only what goes into the products.

Inputs: `x`, `moving`, `fixed`, `trunk.pos`, `trunk.k`, `trunk.v`; outputs: `y`, `moving.new`, `trunk.k.row`, `trunk.v.row`. What is packed
into `moving` and `fixed`, and where, says `layout.Layout`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnxruntime as ort

from ..engine import EngineError
from .layout import FIXED, MOVING, Layout

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_PRODUCTS = {"MatMul": 2, "Gemm": 3, "Conv": 3, "ConvTranspose": 3}  # operator → leading inputs that become half


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise EngineError("GPU engines are made with the package onnx: pip install 'voicewire[gpu]'") from None
    return onnx


def lower(model: Path, layout: Layout, bucket: int, precision: Precision) -> bytes:
    """The step of `model` for `bucket` slots. EngineError when a package is missing or the model is not one of ours."""
    onnx = _onnx()
    proto = _fold(_fold(model.read_bytes(), bucket), bucket)  # twice: norms join convolutions once the weights are constants
    graph = onnx.load_from_string(proto)
    if {i.name for i in graph.graph.input} != {"x", *layout.first}:
        raise EngineError(f"{model} is not a step of voicewire with the state of its engine")
    _squares(graph, onnx)
    if precision == "fp16":
        _halve(graph, onnx, onnx.TensorProto.FLOAT16, _PRODUCTS)
    elif precision == "bf16":  # TensorRT has no transposed convolution in bf16
        _halve(graph, onnx, onnx.TensorProto.BFLOAT16, {k: v for k, v in _PRODUCTS.items() if k != "ConvTranspose"})
    _pack(graph, onnx, bucket, layout)
    del graph.metadata_props[:]
    keep = [o for o in graph.opset_import if o.domain == ""]
    del graph.opset_import[:]
    graph.opset_import.extend(keep)
    onnx.checker.check_model(graph, full_check=precision != "bf16")  # its type inference knows no bf16 convolutions
    data: bytes = graph.SerializeToString()
    return data


def _fold(model: bytes, bucket: int) -> bytes:
    """Constants folded and shapes fixed, by ONNX Runtime, in plain ONNX operators."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name("slots", bucket)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return path.read_bytes()


def _squares(graph: Any, onnx: Any) -> None:
    """x^2 as x x: a power with a tensor for exponent is a slow function on a GPU."""
    two = {i.name for i in graph.graph.initializer if np.array_equal(onnx.numpy_helper.to_array(i), 2.0)}
    for node in graph.graph.node:
        if node.op_type == "Pow" and node.input[1] in two:
            node.op_type = "Mul"
            node.input[1] = node.input[0]


def _halve(graph: Any, onnx: Any, dtype: int, products: dict[str, int]) -> None:
    """Matrix products between casts; constants cast once, here."""
    g, helper = graph.graph, onnx.helper
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in g.initializer}
    cast: dict[str, str] = {}  # each tensor is cast once
    nodes = []
    for node in g.node:
        if node.op_type in products:
            for i, name in enumerate(node.input[: products[node.op_type]]):
                if name and name not in cast:
                    cast[name] = f"{name}.half"
                    if name in constants:
                        g.initializer.append(helper.make_tensor(cast[name], dtype, constants[name].shape, constants[name].ravel()))
                    else:
                        nodes.append(helper.make_node("Cast", [name], [cast[name]], to=dtype))
                node.input[i] = cast.get(name, "")
            out = node.output[0]
            node.output[0] = f"{out}.product"
            nodes += [node, helper.make_node("Cast", [node.output[0]], [out], to=onnx.TensorProto.FLOAT)]
        else:
            nodes.append(node)
    del g.node[:]
    g.node.extend(nodes)
    _drop_unused(g)
    del g.value_info[:]


def _drop_unused(g: Any) -> None:
    used = {name for node in g.node for name in node.input}
    kept = [i for i in g.initializer if i.name in used]
    del g.initializer[:]
    g.initializer.extend(kept)


def _pack(graph: Any, onnx: Any, bucket: int, layout: Layout) -> None:
    """The states of a pack as slices of one input, the new ones as one output."""
    g, helper = graph.graph, onnx.helper
    before: list[Any] = []
    after: list[Any] = []

    def constant(name: str, value: list[int]) -> str:
        g.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    axis = constant("pack.axis", [1])
    for pack in (MOVING, FIXED):
        for name, part in layout.packs[pack].items():
            bounds = [constant(f"{name}.{end}", [at]) for end, at in (("from", part.offset), ("to", part.offset + part.words))]
            before.append(helper.make_node("Slice", [pack, *bounds, axis], [f"{name}.flat"]))
            before.append(helper.make_node("Reshape", [f"{name}.flat", constant(f"{name}.shape", [bucket, *part.shape])], [name]))
    for name, part in layout.packs[MOVING].items():
        after.append(helper.make_node("Reshape", [f"{name}.new", constant(f"{name}.new.shape", [bucket, part.words])], [f"{name}.new.flat"]))
    after.append(helper.make_node("Concat", [f"{n}.new.flat" for n in layout.packs[MOVING]], [f"{MOVING}.new"], axis=1))
    nodes = [*before, *g.node, *after]
    del g.node[:]
    g.node.extend(nodes)
    packed = {n for pack in layout.packs.values() for n in pack}
    inputs = [i for i in g.input if i.name not in packed]
    outputs = [o for o in g.output if o.name.removesuffix(".new") not in packed]
    del g.input[:], g.output[:]
    info, kind = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    g.input.extend([*inputs, *(info(pack, kind, [bucket, layout.words(pack)]) for pack in (MOVING, FIXED))])
    g.output.extend([*outputs, info(f"{MOVING}.new", kind, [bucket, layout.words(MOVING)])])
