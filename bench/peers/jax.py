"""JAX: one jitted function per task, ``lax.scan`` over padded steps, the input product before it."""

import jax
import jax.numpy as jnp
import numpy as np

from fastrnn.bench import workload
from fastrnn.bench.peers import timed, training


def start(task):
    """Compete in training, the loss alone and decoding."""
    return {"train": _train, "forward": _forward, "epoch": _train, "decode": _decode}[task.kind](task)


def step(cell, state, a):
    """h and c after a step with pre-activations a (N,mH)."""
    if cell == "rnn":
        return jnp.tanh(a), state[1]
    i, f, o, g = jnp.split(a, 4, axis=1)
    c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def initial_state(params, features):
    h = features @ params["W_proj"] + params["b_proj"]
    return h, jnp.zeros_like(h)


def loss(params, features, captions, cell):
    """The loss as published: summed over the targets that are no NULL, divided by N."""
    inputs, targets = captions[:, :-1].T, captions[:, 1:].T
    a_x = params["W_embed"][inputs] @ params["Wx"] + params["b"]

    def scanned(state, a_t):
        state = step(cell, state, a_t + state[0] @ params["Wh"])
        return state, state[0]

    _, h = jax.lax.scan(scanned, initial_state(params, features), a_x)
    log_p = jax.nn.log_softmax(h @ params["W_vocab"] + params["b_vocab"])
    nll = -jnp.take_along_axis(log_p, targets[:, :, None], axis=2)[:, :, 0]
    return jnp.sum(nll * (targets != 0)) / len(features)


def adam(w, dw, m, v, t):
    m = 0.9 * m + 0.1 * dw
    v = 0.999 * v + 0.001 * dw * dw
    return w - 1e-3 * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v


def _params(task):
    return {name: jnp.asarray(w) for name, w in workload.model(task).params.items()}


def _train(task):
    def updated(params, m, v, t, features, captions):
        value, grads = jax.value_and_grad(loss)(params, features, captions, task.cell)
        new = {name: adam(w, grads[name], m[name], v[name], t) for name, w in params.items()}
        return value, *({name: of[k] for name, of in new.items()} for k in range(3))

    update = jax.jit(updated, donate_argnums=(0, 1, 2))
    params, t = _params(task), 0
    batch = workload.batches(task)[0]
    m, v = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))

    def once(features, captions):
        nonlocal params, m, v, t
        t += 1
        value, params, m, v = update(params, m, v, np.float32(t), features, captions)
        return float(value)

    before = once(*batch)
    return [before, float(jax.jit(loss, static_argnums=3)(params, *batch, task.cell))], training(task, once)


def _forward(task):
    params, batch = _params(task), workload.batches(task)[0]
    compiled = jax.jit(loss, static_argnums=3)

    def once():
        return float(compiled(params, *batch, task.cell))

    return once(), timed(once)


def _decode(task):
    features, _ = workload.batches(task)[0]
    params = _params(task)

    @jax.jit
    def decoded(params, features):
        def scanned(carry, _):
            state, words = carry
            a = params["W_embed"][words] @ params["Wx"] + state[0] @ params["Wh"] + params["b"]
            state = step(task.cell, state, a)
            words = jnp.argmax(state[0] @ params["W_vocab"] + params["b_vocab"], axis=1)
            return (state, words), words

        first = initial_state(params, features), jnp.ones(len(features), int)
        return jax.lax.scan(scanned, first, length=workload.DECODED)[1].T

    def once():
        return np.asarray(decoded(params, features))

    return once()[:, :5].tolist(), timed(once)
