"""fastrnn on one of its backends."""

import contextlib
import time

import numpy as np

import fastrnn
from bench import workload
from bench.peers import timed


def start(task, backend):
    """Compete in any task."""
    fastrnn.use_backend(backend)
    fastrnn.set_num_threads(task.threads)
    tasks = {"train": _train, "layer": _layer, "ragged": _layer, "decode": _decode, "product": _product}
    return tasks[task.kind](task)


def _train(task):
    """Iterations of CaptioningSolver.train on minibatches drawn as those of all others."""
    model = workload.model(task.cell)
    loss, _ = model.loss(*workload.batches(task.N)[0])
    np.random.seed(workload.SEED)
    moments = []
    wanted = 0

    def on_step(solver, captions):
        moments.append(time.perf_counter())
        if len(moments) > wanted:
            raise Enough

    solver = fastrnn.CaptioningSolver(
        model, workload.data(), update_rule="adam", optim_config={"learning_rate": 1e-3}, batch_size=task.N,
        verbose=False, on_step=on_step,
    )  # fmt: skip

    def run(count):
        nonlocal wanted
        wanted = count
        moments[:] = [time.perf_counter()]
        with contextlib.suppress(Enough):
            solver.train()
        return np.diff(moments).tolist()

    return loss, run


class Enough(Exception):
    """Raised after the iterations that a turn is for."""


def _layer(task):
    x, h0, params, dh = workload.layer(task.N)
    lengths = workload.lengths(task.N) if task.kind == "ragged" else None

    def once():
        h, cache = fastrnn.layers.lstm_forward(x, h0, *params, lengths=lengths)
        return h, fastrnn.layers.lstm_backward(dh, cache)[0]

    return workload.summary(once(), lengths), timed(once)


def _decode(task):
    model = workload.model(task.cell)
    features, _ = workload.batches(task.N)[0]

    def once():
        return model.sample(features, workload.DECODED)

    return once()[:, :5].tolist(), timed(once)


def _product(task):
    h, Wh = workload.recurrent_product(task.cell, task.N)
    kernels, work = fastrnn.backend.kernels_and_work()
    packed, b = kernels.pack(Wh, 1, kernels.make_work()), np.zeros(Wh.shape[1], Wh.dtype)
    out = np.empty((task.N, Wh.shape[1]), Wh.dtype)

    def once():
        kernels.affine_forward(h, packed, b, out, work)
        return out

    return float(np.abs(once()).sum()), timed(once)
