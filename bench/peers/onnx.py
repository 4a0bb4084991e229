"""ONNX Runtime: its LSTM or RNN operator, forward only."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from fastrnn.bench import workload
from fastrnn.bench.peers import timed


def start(task):
    """Compete in the loss alone and in decoding."""
    return {"forward": _forward, "decode": _decode}[task.kind](task)


def _initial_state():
    """Nodes from features (N,D) to h0 (1,N,H) and c0."""
    return [
        helper.make_node("Gemm", ["features", "W_proj", "b_proj"], ["h0_flat"]),
        helper.make_node("Unsqueeze", ["h0_flat", "zero"], ["h0"]),
        helper.make_node("Sub", ["h0", "h0"], ["c0"]),
    ]


def _recurrent(task, tokens, lengths=""):
    """Nodes from tokens (T,N), h0 and c0 (1,N,H) to scores (T,N,V), h1 and c1."""
    state, kind = (["h0"], "RNN") if task.cell == "rnn" else (["h0", "c0"], "LSTM")
    return [
        helper.make_node("Gather", ["W_embed", tokens], ["x"]),
        helper.make_node(
            kind,
            ["x", "W", "R", "B", lengths, *state],
            ["h", *(f"{s[0]}1" for s in state)],
            hidden_size=task.H,
        ),
        helper.make_node("Squeeze", ["h", "one"], ["h_squeezed"]),  # (T,1,N,H), the axis of directions
        helper.make_node("MatMul", ["h_squeezed", "W_vocab"], ["products"]),
        helper.make_node("Add", ["products", "b_vocab"], ["scores"]),
    ]


def _weights(task):
    """Parameters in ONNX's layout: transposed, gates i o f c."""
    params = dict(workload.model(task).params)

    def gates(w):
        i, f, o, g = np.split(w, 4, axis=-1)
        return np.concatenate([i, o, f, g], axis=-1)

    Wx, Wh, b = (
        params.pop(name) if task.cell == "rnn" else gates(params.pop(name)) for name in ("Wx", "Wh", "b")
    )
    return params | {"W": Wx.T[None], "R": Wh.T[None], "B": np.concatenate([b, np.zeros_like(b)])[None]}


def _session(task, nodes, inputs, outputs, weights):
    constants = weights | {"zero": np.array([0]), "one": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "captioner",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(w), name) for name, w in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = task.threads, 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


def _forward(task):
    N, T = task.N, task.T
    features, captions = workload.batches(task)[0]
    nodes = [
        *_initial_state(),
        *_recurrent(task, "inputs", "lengths"),
        helper.make_node("Reshape", ["scores", "flat"], ["flat_scores"]),
        helper.make_node("LogSoftmax", ["flat_scores"], ["log_p"], axis=1),
        helper.make_node(
            "NegativeLogLikelihoodLoss", ["log_p", "targets"], ["loss"], reduction="sum", ignore_index=0
        ),
    ]
    inputs = [
        ("features", FLOAT, [N, workload.D]),
        ("inputs", INT64, [T, N]),
        ("lengths", INT32, [N]),
        ("targets", INT64, [T * N]),
    ]
    weights = _weights(task) | {"flat": np.array([T * N, task.V])}
    session = _session(task, nodes, inputs, [("loss", FLOAT, [])], weights)
    lengths = workload.lengths(task).astype(np.int32)

    def once():
        steps = captions.T.astype(np.int64)
        given = {
            "features": features,
            "inputs": steps[:-1],
            "lengths": lengths,
            "targets": steps[1:].reshape(-1),
        }
        return float(session.run(["loss"], given)[0]) / N

    return once(), timed(once)


def _decode(task):
    N, H = task.N, task.H
    features, _ = workload.batches(task)[0]
    weights = _weights(task)
    start = _session(
        task, _initial_state(), [("features", FLOAT, [N, workload.D])],
        [(name, FLOAT, [1, N, H]) for name in ("h0", "c0")], {n: weights[n] for n in ("W_proj", "b_proj")},
    )  # fmt: skip
    nodes = [*_recurrent(task, "words"), helper.make_node("ArgMax", ["scores"], ["next"], axis=2, keepdims=0)]
    state = ["h", "c"] if task.cell == "lstm" else ["h"]
    inputs = [("words", INT64, [1, N]), *((f"{s}0", FLOAT, [1, N, H]) for s in state)]
    outputs = [("next", INT64, [1, N]), *((f"{s}1", FLOAT, [1, N, H]) for s in state)]
    step = _session(task, nodes, inputs, outputs, weights)

    def once():
        current = dict(zip(("h0", "c0"), start.run(["h0", "c0"], {"features": features}), strict=True))
        words, captions = np.ones((1, N), np.int64), np.empty((N, workload.DECODED), np.int64)
        for t in range(workload.DECODED):
            given = {"words": words, **{f"{s}0": current[f"{s}0"] for s in state}}
            words, *states = step.run([name for name, _, _ in outputs], given)
            current = {f"{s}0": of for s, of in zip(state, states, strict=True)}
            captions[:, t] = words[0]
        return captions

    return once()[:, :5].tolist(), timed(once)
