"""The ONNX step as a GPU wants it: one batch size, constants folded, slot masks inside, matrix products in half precision.

TensorRT networks are strongly typed: precision is what the ONNX says. What stays fp32 in every precision: the state (a memory near 1 does not
fit into half), all that is not a matrix product (epsilons of 1e-10, powers of magnitudes, the level follower, norms, softmax over a mask of
-1e9) and the input and output spectra. The weights are fp16 values anyway, so fp16 rounds only what goes into the products.

Inputs beside those of the model: `active`, `reset`: [slots] bool. Outputs: `y`; `NAME.new` for every small state and for `trunk.pos`;
`trunk.at`: [slots] int32, the ring row to write, -1 for none; `trunk.k.row`, `trunk.v.row`: [slots, layers, heads, dim].
A slot with `reset` starts afresh in this step, one without `active` keeps its state: streams come and go without a launch of their own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnxruntime as ort

from ..engine import EngineError

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
RINGS = ("trunk.k", "trunk.v")
POS, AT = "trunk.pos", "trunk.at"
LARGEST = 6e4  # a key or value beyond fp16's range is no sound; NaN and infinities would outlive a reset in the ring

_PRODUCTS = {"MatMul": 2, "Gemm": 3, "Conv": 3, "ConvTranspose": 3}  # operator → leading inputs that become half


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise EngineError("GPU engines are made with the package onnx: pip install 'voicewire[gpu]'") from None
    return onnx


def lower(model: Path, bucket: int, precision: Precision) -> bytes:
    """The step of `model` for `bucket` slots. EngineError when a package is missing or the model is not one of ours."""
    onnx = _onnx()
    proto = _fold(_fold(model.read_bytes(), bucket), bucket)  # twice: norms join convolutions once the weights are constants
    graph = onnx.load_from_string(proto)
    if {i.name for i in graph.graph.input} < {"x", POS, *RINGS}:
        raise EngineError(f"{model} is not a step of voicewire")
    _squares(graph, onnx)
    if precision == "fp16":
        _halve(graph, onnx, onnx.TensorProto.FLOAT16, _PRODUCTS)
    elif precision == "bf16":  # TensorRT has no transposed convolution in bf16
        _halve(graph, onnx, onnx.TensorProto.BFLOAT16, {k: v for k, v in _PRODUCTS.items() if k != "ConvTranspose"})
    _mask(graph, onnx, bucket)
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


def _mask(graph: Any, onnx: Any, bucket: int) -> None:
    """`active` and `reset` around the step. All first states but the pinned prefix are zeros."""
    g, helper, kinds = graph.graph, onnx.helper, onnx.TensorProto
    inputs, outputs = {i.name: i for i in g.input}, {o.name: o for o in g.output}
    small = [n.removesuffix(".new") for n in outputs if n.endswith(".new")]
    shapes = {n: [d.dim_value for d in inputs[n].type.tensor_type.shape.dim] for n in (*small, *RINGS)}
    before: list[Any] = []
    after: list[Any] = []

    def constant(name: str, value: object, dtype: type) -> str:
        g.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def like(mask: str, rank: int) -> str:  # [slots] → [slots, 1, ...]
        name = f"{mask}.{rank}"
        if rank == 1:
            return mask
        if all(node.output[0] != name for node in before):
            before.append(helper.make_node("Reshape", [mask, constant(f"{name}.shape", [bucket] + [1] * (rank - 1), np.int64)], [name]))
        return name

    zero, zero64 = constant("mask.zero", 0, np.float32), constant("mask.zero64", 0, np.int64)
    one64, none64 = constant("mask.one64", 1, np.int64), constant("mask.none64", -1, np.int64)
    window = constant("mask.window", shapes[RINGS[0]][2], np.int64)
    largest = constant("mask.largest", LARGEST, np.float32)
    for node in g.node:  # the step reads the state as `reset` leaves it and writes under other names
        for i, name in enumerate(node.input):
            if name in small or name == POS:
                node.input[i] = f"{name}.in"
        for i, name in enumerate(node.output):
            if name.endswith(".new") or name.endswith(".row"):
                node.output[i] = f"{name}.raw"
            for j, used in enumerate(node.input):
                if used.endswith((".new", ".row")) and used in outputs:
                    node.input[j] = f"{used}.raw"
    for name in small:
        rank = len(shapes[name])
        before.append(helper.make_node("Where", [like("reset", rank), zero, name], [f"{name}.in"]))
        after.append(helper.make_node("Where", [like("active", rank), f"{name}.new.raw", f"{name}.in"], [f"{name}.new"]))
    before.append(helper.make_node("Where", ["reset", zero64, POS], [f"{POS}.in"]))
    after += [
        helper.make_node("Add", [f"{POS}.in", one64], [f"{POS}.next"]),
        helper.make_node("Where", ["active", f"{POS}.next", f"{POS}.in"], [f"{POS}.new"]),
        helper.make_node("Mod", [f"{POS}.in", window], [f"{AT}.row"]),
        helper.make_node("Where", ["active", f"{AT}.row", none64], [f"{AT}.wide"]),
        helper.make_node("Cast", [f"{AT}.wide"], [AT], to=kinds.INT32),
    ]
    for name in (f"{r}.row" for r in RINGS):
        after += [
            helper.make_node("Abs", [f"{name}.raw"], [f"{name}.size"]),
            helper.make_node("LessOrEqual", [f"{name}.size", largest], [f"{name}.sane"]),  # false for NaN
            helper.make_node("Where", [f"{name}.sane", f"{name}.raw", zero], [name]),
        ]
    nodes = [*before, *g.node, *after]
    del g.node[:]
    g.node.extend(nodes)
    g.input.extend(helper.make_tensor_value_info(n, kinds.BOOL, [bucket]) for n in ("active", "reset"))
    g.output.append(helper.make_tensor_value_info(f"{POS}.new", kinds.INT64, [bucket]))
    g.output.append(helper.make_tensor_value_info(AT, kinds.INT32, [bucket]))
