"""ONNX graphs made from the graph of a step: its readout alone, and a chunk of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def readout_graph(step: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph that computes the next token's logits (B, V) from a memory (B, K, D)."""
    from onnx.utils import Extractor

    model = Extractor(step).extract_model(["next_memory"], ["logits"])
    model.graph.input[0].name = "memory"
    for node in model.graph.node:
        node.input[:] = ["memory" if name == "next_memory" else name for name in node.input]
    return model


def chunk_graph(step: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph that reads tokens (B, T) into memory (B, K, D): logits (B, T, V), next_memory (B, K, D).

    ONNX's Scan applies the step's memory update to the tokens in turn. Then the readout computes the logits of all
    memories at once. So every cell with the graph of a step has this graph, for any T ≥ 1.
    """
    from onnx import TensorProto, checker, helper
    from onnx.compose import add_prefix_graph
    from onnx.utils import Extractor

    # Prefixed, because names inside a Scan must differ from those outside.
    cell = add_prefix_graph(Extractor(step).extract_model(["memory", "token"], ["next_memory"]).graph, "cell_")
    readout = add_prefix_graph(readout_graph(step).graph, "readout_")
    memory, logits = (
        [size.dim_value or size.dim_param for size in value.type.tensor_type.shape.dim]
        for value in (step.graph.output[1], step.graph.output[0])
    )
    # A Scan's body returns its state and the values to stack. Here the memory is both.
    cell.node.append(helper.make_node("Identity", ["cell_next_memory"], ["cell_memory_after"]))
    cell.output.append(helper.make_tensor_value_info("cell_memory_after", TensorProto.FLOAT, memory))
    nodes = [
        helper.make_node(
            "Scan",
            ["memory", "tokens"],
            ["next_memory", "memories"],  # memories: (B, T, K, D)
            body=cell,
            num_scan_inputs=1,
            scan_input_axes=[1],
            scan_output_axes=[1],
        ),
        helper.make_node("Reshape", ["memories", "memory_shape"], ["readout_memory"]),
        *readout.node,
        helper.make_node("Shape", ["tokens"], ["tokens_shape"]),
        helper.make_node("Concat", ["tokens_shape", "vocab_size"], ["logits_shape"], axis=0),
        helper.make_node("Reshape", ["readout_logits", "logits_shape"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("memory_shape", TensorProto.INT64, [3], [-1, *memory[1:]]),
        helper.make_tensor("vocab_size", TensorProto.INT64, [1], logits[1:]),
    ]
    graph = helper.make_graph(
        nodes,
        "chunk",
        [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "time"]),
            helper.make_tensor_value_info("memory", TensorProto.FLOAT, memory),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "time", *logits[1:]]),
            helper.make_tensor_value_info("next_memory", TensorProto.FLOAT, memory),
        ],
        [*constants, *readout.initializer],
    )
    model = helper.make_model(graph, opset_imports=step.opset_import, ir_version=step.ir_version)
    checker.check_model(model)
    return model
