"""ONNX models whose weights and products are in fp16, all else in fp32, as torch's autocast has it."""

from typing import Any

import numpy as np

from cond_detr.errors import InputError

FLOAT, FLOAT16 = 1, 10  # as ONNX numbers types
LARGEST = float(np.finfo(np.float16).max)
PRODUCTS = {"MatMul", "Gemm", "Conv"}
# What is done to weights before: those of convolutions are scaled by their normalisation
PREPARING = {"Transpose", "Concat", "Reshape", "Unsqueeze", "Mul"}


def in_fp16(model: Any) -> Any:
    """Converts a ``ModelProto``.

    Coordinates stay in fp32, of which fp16 would round a sixth of a pixel away in an image of 300. So do the scores of
    attention, from the product to the softmax: of a score of 50, fp16 would round up to 2 % of the weight away.

    Raises:
        InputError: if fp16 has no number for a weight.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    check_fits(model.graph)
    scores = set(nodes_of_scores(model.graph))
    in_fp32 = {node.name for node in model.graph.node} - products(model.graph) | scores
    model = convert_float_to_float16(model, keep_io_types=True, op_block_list=[], node_block_list=list(in_fp32))
    _join(model.graph, in_fp32)
    OnnxModel.graph_topological_sort(model.graph)  # the converter puts casts at the end
    return model


def check_fits(graph: Any) -> None:
    """Checks weights as the graph has them: those of convolutions are scaled by their normalisation.

    Raises:
        InputError: if fp16 has no number for one.
    """
    from onnx.numpy_helper import to_array

    names = products(graph)
    used = {name for node in graph.node if node.name in names for name in node.input}
    for weight in graph.initializer:
        if weight.name in used and weight.data_type == FLOAT:
            largest = float(np.abs(to_array(weight)).max(initial=0.0))
            if not largest <= LARGEST:
                raise InputError(f"{weight.name} of the ONNX model cannot be fp16: it has {largest:.3g}")


def products(graph: Any) -> set[str]:
    """The names of a graph's products, and of the nodes that prepare their weights."""
    constant = {weight.name for weight in graph.initializer}
    for node in graph.node:
        if constant.issuperset(node.input):
            constant.update(node.output)
    maker = _makers(graph)
    names: set[str] = set()
    nodes = [node for node in graph.node if node.op_type in PRODUCTS]
    while nodes:
        node = nodes.pop()
        names.add(node.name)
        before = [maker[name] for name in node.input if name in maker and name in constant]
        nodes += [each for each in before if each.op_type in PREPARING and each.name not in names]
    return names


def nodes_of_scores(graph: Any) -> list[str]:
    """The names of a graph's nodes from the products before a softmax to the softmax."""
    maker = _makers(graph)
    names, nodes = [], [node for node in graph.node if node.op_type == "Softmax"]
    while nodes:
        node = nodes.pop()
        names.append(node.name)
        if node.op_type not in {"MatMul", "Gemm"}:
            nodes += [maker[name] for name in node.input if name in maker]
    return names


def _makers(graph: Any) -> dict[str, Any]:
    """The node that each value comes from."""
    return {output: node for node in graph.node for output in node.output}


def _join(graph: Any, in_fp32: set[str]) -> None:
    """Takes out the casts to fp16 and back that the converter puts around whatever stays in fp32."""
    maker = _makers(graph)
    fp32 = {output for node in graph.node if node.name in in_fp32 for output in node.output}
    fp32 |= {value.name for value in graph.input}
    before: dict[str, str] = {}  # of a value that was cast there and back
    for node in graph.node:
        there = maker.get(node.input[0]) if _casts(node, FLOAT) else None
        if there is not None and _casts(there, FLOAT16) and there.input[0] in fp32:
            node.input[0] = before[node.output[0]] = there.input[0]
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = before.get(name, name)
    for kind in (FLOAT, FLOAT16):  # what then nobody takes
        taken = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        for node in [node for node in graph.node if _casts(node, kind) and node.output[0] not in taken]:
            graph.node.remove(node)


def _casts(node: Any, kind: int) -> bool:
    """Whether a node is a cast to a type."""
    return bool(node.op_type == "Cast" and node.attribute[0].i == kind)
