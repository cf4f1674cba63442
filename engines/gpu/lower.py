"""The ONNX step as a GPU wants it: one batch size, constants folded, small states packed into one tensor, slot masks
inside, matrix products in half precision.

TensorRT networks are strongly typed: precision is what the ONNX says. What stays fp32 in every precision: the state (a memory near 1 does not
fit into half), all that is not a matrix product (epsilons of 1e-10, powers of magnitudes, the level follower, norms, softmax over a mask of
-1e9) and the input and output spectra. The weights are fp16 values anyway, so fp16 rounds only what goes into the products.

Inputs: `x`, `moving`, `fixed`, `trunk.pos`, `trunk.k`, `trunk.v` and the masks `active`, `reset`: [slots] bool. Outputs: `y`, `moving.new`,
`trunk.pos.new`, `trunk.k.row`, `trunk.v.row`, and `trunk.at`: [slots] int32, the place in the rings for the rows, -1 for none. What is packed
into `moving` and `fixed`, and where, says `layout.Layout`. A slot with `reset` starts from zeros in this step, one without `active` keeps its
state bit for bit: streams come and go without a launch of their own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnxruntime as ort

from ..engine import EngineError
from .layout import AT, FIXED, MOVING, POS, RINGS, Layout

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

LARGEST = 6e4  # keys and values beyond fp16's range are no sound; NaN and infinities in a ring would outlive its stream
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
    """The states of a pack as slices of one input, the new ones as one output; both behind the masks."""
    g, helper, kinds = graph.graph, onnx.helper, onnx.TensorProto
    before: list[Any] = []
    after: list[Any] = []

    def constant(name: str, value: Any, dtype: type = np.int64) -> str:
        g.initializer.append(onnx.numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def node(into: list[Any], op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        into.append(helper.make_node(op, inputs, [output], **attributes))

    for n in g.node:  # the step reads the counter as `reset` leaves it; what leaves it is looked at first
        n.input[:] = [f"{POS}.in" if name == POS else name for name in n.input]
        n.output[:] = [f"{name}.raw" if name.endswith(".row") else name for name in n.output]
    axis, column = constant("pack.axis", [1]), constant("pack.column", [bucket, 1])
    zero, zero64, one64, none64 = constant("pack.0", 0, np.float32), constant("pack.0l", 0), constant("pack.1l", 1), constant("pack.-1l", -1)
    for mask in ("active", "reset"):
        node(before, "Reshape", [mask, column], f"{mask}.column")
    node(before, "Where", ["reset.column", zero, MOVING], f"{MOVING}.in")
    node(before, "Where", ["reset", zero64, POS], f"{POS}.in")
    for pack, source in ((MOVING, f"{MOVING}.in"), (FIXED, FIXED)):
        for name, part in layout.packs[pack].items():
            bounds = [constant(f"{name}.{end}", [at]) for end, at in (("from", part.offset), ("to", part.offset + part.words))]
            node(before, "Slice", [source, *bounds, axis], f"{name}.flat")
            node(before, "Reshape", [f"{name}.flat", constant(f"{name}.shape", [bucket, *part.shape])], name)
    for name, part in layout.packs[MOVING].items():
        node(after, "Reshape", [f"{name}.new", constant(f"{name}.new.shape", [bucket, part.words])], f"{name}.new.flat")
    node(after, "Concat", [f"{n}.new.flat" for n in layout.packs[MOVING]], f"{MOVING}.next", axis=1)
    node(after, "Where", ["active.column", f"{MOVING}.next", f"{MOVING}.in"], f"{MOVING}.new")
    node(after, "Add", [f"{POS}.in", one64], f"{POS}.next")
    node(after, "Where", ["active", f"{POS}.next", f"{POS}.in"], f"{POS}.new")
    node(after, "Mod", [f"{POS}.in", constant("pack.window", layout.first[RINGS[0]].shape[2])], "trunk.at.active")
    node(after, "Where", ["active", "trunk.at.active", none64], "trunk.at.wide")
    node(after, "Cast", ["trunk.at.wide"], AT, to=kinds.INT32)
    largest = constant("pack.largest", LARGEST, np.float32)
    for row in (f"{ring}.row" for ring in RINGS):
        node(after, "Abs", [f"{row}.raw"], f"{row}.size")
        node(after, "LessOrEqual", [f"{row}.size", largest], f"{row}.sane")  # false for NaN
        node(after, "Where", [f"{row}.sane", f"{row}.raw", zero], row)
    nodes = [*before, *g.node, *after]
    del g.node[:]
    g.node.extend(nodes)
    packed = {n for pack in layout.packs.values() for n in pack}
    inputs = [i for i in g.input if i.name not in packed]
    outputs = [o for o in g.output if o.name.removesuffix(".new") not in packed]
    del g.input[:], g.output[:]
    info = helper.make_tensor_value_info
    g.input.extend([*inputs, *(info(pack, kinds.FLOAT, [bucket, layout.words(pack)]) for pack in (MOVING, FIXED))])
    g.input.extend(info(mask, kinds.BOOL, [bucket]) for mask in ("active", "reset"))
    g.output.extend([*outputs, info(f"{MOVING}.new", kinds.FLOAT, [bucket, layout.words(MOVING)])])
    g.output.extend([info(f"{POS}.new", kinds.INT64, [bucket]), info(AT, kinds.INT32, [bucket])])
