"""Matrix products of a written graph in bfloat16, the rest in float32.

Only products are faster in the short type (matrix units of CPUs with AMX or AVX512-BF16, tensor cores of GPUs); sums, norms and
softmax keep full precision. The graph on disk is rewritten: each product's operands are cast, and its result is cast back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Not Einsum: its CPU kernel also sums in bfloat16, so the error grows with the width.
_PRODUCTS = {"MatMul": "product", "BatchMatMul": "output", "BatchMatMulV2": "output"}


def truncates() -> bool:
    """Whether TensorFlow truncates a product in bfloat16 on this machine, instead of rounding to the nearest.

    It does on a CPU without instructions for bfloat16 (AVX512-BF16, AMX); the largest error of a product is then twice as large.
    """
    import tensorflow as tf

    product = tf.matmul(tf.constant([[1.0, 1.0]], tf.bfloat16), tf.constant([[1.0], [0.75 * 2**-7]], tf.bfloat16))
    return bool(product.numpy()[0, 0] == 1.0)


def rewrite(version: Path) -> int:
    """Rewrite `version/saved_model.pb`; returns the number of products."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = version / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    count = sum(_rewrite_function(function) for meta in saved.meta_graphs for function in meta.graph_def.library.function)
    path.write_bytes(saved.SerializeToString(deterministic=True))
    (version / "fingerprint.pb").unlink(missing_ok=True)  # that of the graph before the change
    return count


def _rewrite_function(function: Any) -> int:
    from tensorflow.core.framework import types_pb2

    renamed: dict[str, str] = {}
    nodes = []
    for node in function.node_def:
        if node.op not in _PRODUCTS or node.attr["T"].type != types_pb2.DT_FLOAT:
            nodes.append(node)
            continue
        operands = [name for name in node.input if not name.startswith("^")]
        product = type(node)()
        product.CopyFrom(node)
        product.name = f"{node.name}/bfloat16"
        product.attr["T"].type = types_pb2.DT_BFLOAT16
        product.attr.pop("_output_shapes", None)
        casts = []
        for number, operand in enumerate(operands):
            cast = _cast(node, f"{node.name}/bfloat16_{number}", operand, types_pb2.DT_FLOAT, types_pb2.DT_BFLOAT16)
            product.input[number] = f"{cast.name}:y:0"
            casts.append(cast)
        result = _cast(node, node.name, f"{product.name}:{_PRODUCTS[node.op]}:0", types_pb2.DT_BFLOAT16, types_pb2.DT_FLOAT)
        renamed[f"{node.name}:{_PRODUCTS[node.op]}:0"] = f"{node.name}:y:0"
        nodes += [*casts, product, result]
    if not renamed:
        return 0
    for node in nodes:
        for number, name in enumerate(node.input):
            node.input[number] = renamed.get(name, name)
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del function.node_def[:]
    function.node_def.extend(kept)
    for name, source in dict(function.ret).items():
        function.ret[name] = renamed.get(source, source)
    return len(renamed)


def _cast(like: Any, name: str, source: str, given: int, wanted: int) -> Any:
    node = type(like)(name=name, op="Cast", input=[source], device=like.device)
    node.attr["SrcT"].type, node.attr["DstT"].type = given, wanted
    node.attr["Truncate"].b = False
    return node
