"""fastrnn on one of its backends."""

import contextlib
import time

import numpy as np

import fastrnn
from fastrnn.bench import workload
from fastrnn.bench.peers import timed


def start(task, backend):
    """Compete in any task."""
    fastrnn.use_backend(backend)
    fastrnn.set_num_threads(task.threads)
    return {
        "train": _train,
        "forward": _forward,
        "epoch": _epoch,
        "layer": _layer,
        "ragged": _layer,
        "decode": _decode,
        "product": _product,
    }[task.kind](task)


def _solver(task, data, **settings):
    batch, stepped, model = workload.batches(task)[0], workload.model(task), workload.model(task)
    loss, grads = stepped.loss(*batch)
    for name, w in stepped.params.items():
        stepped.params[name], _ = fastrnn.optim.adam(w, grads[name], {"learning_rate": 1e-3})
    return [loss, stepped.evaluate_loss(*batch)], fastrnn.CaptioningSolver(
        model,
        data,
        update_rule="adam",
        optim_config={"learning_rate": 1e-3},
        batch_size=task.N,
        verbose=False,
        **settings,
    )


class Enough(Exception):
    """Raised after the iterations that a turn is for."""


def _train(task):
    """Iterations of CaptioningSolver.train on minibatches drawn as those of all others."""
    moments = []
    wanted = 0

    def on_step(solver, captions):
        moments.append(time.perf_counter())
        if len(moments) > wanted:
            raise Enough

    losses, solver = _solver(task, workload.data(task.V, task.T), on_step=on_step)
    np.random.seed(workload.SEED)

    def run(count):
        nonlocal wanted
        wanted = count
        moments[:] = [time.perf_counter()]
        with contextlib.suppress(Enough):
            solver.train()
        return np.diff(moments).tolist()

    return losses, run


def _epoch(task):
    losses, solver = _solver(task, workload.native_data(task), num_epochs=1)
    return losses, timed(solver.train)


def _forward(task):
    model, batch = workload.model(task), workload.batches(task)[0]
    return model.evaluate_loss(*batch), timed(lambda: model.evaluate_loss(*batch))


def _layer(task):
    x, h0, params, dh = workload.layer(task)
    lengths = workload.lengths(task) if task.kind == "ragged" else None

    def once():
        h, cache = fastrnn.layers.lstm_forward(x, h0, *params, lengths=lengths)
        return h, fastrnn.layers.lstm_backward(dh, cache)[0]

    return workload.summary(once(), lengths), timed(once)


def _decode(task):
    model = workload.model(task)
    features, _ = workload.batches(task)[0]

    def once():
        return model.sample(features, workload.DECODED)

    return once()[:, :5].tolist(), timed(once)


def _product(task):
    h, Wh = workload.recurrent_product(task)
    kernels, work = fastrnn.backend.kernels_and_work()
    packed, b = kernels.pack(Wh, 1, kernels.make_work()), np.zeros(Wh.shape[1], Wh.dtype)
    out = np.empty((task.N, Wh.shape[1]), Wh.dtype)

    def once():
        kernels.affine_forward(h, packed, b, out, work)
        return out

    return float(np.abs(once()).sum()), timed(once)
