"""Plain NumPy, the way the exercises are usually solved: a boolean mask in the sigmoid, products step by step
over whole batches, ``hstack`` of the gates, ``np.add.at``, and Adam with temporaries."""

import numpy as np

from fastrnn.bench import workload
from fastrnn.bench.peers import timed, training


def start(task):
    """Compete in all but the layer alone."""
    return {
        "train": _train,
        "forward": _forward,
        "epoch": _train,
        "decode": _decode,
        "product": _product,
    }[task.kind](task)


def sigmoid(x):
    positive, negative = x >= 0, x < 0
    z = np.zeros_like(x)
    z[positive] = np.exp(-x[positive])
    z[negative] = np.exp(x[negative])
    top = np.ones_like(x)
    top[negative] = z[negative]
    return top / (1 + z)


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    H = prev_h.shape[1]
    a = x.dot(Wx) + prev_h.dot(Wh) + b
    i, f, o = sigmoid(a[:, :H]), sigmoid(a[:, H : 2 * H]), sigmoid(a[:, 2 * H : 3 * H])
    g = np.tanh(a[:, 3 * H :])
    c = f * prev_c + i * g
    tanh_c = np.tanh(c)
    return o * tanh_c, c, (x, prev_h, prev_c, Wx, Wh, i, f, o, g, tanh_c)


def lstm_step_backward(dh, dc, cache):
    x, prev_h, prev_c, Wx, Wh, i, f, o, g, tanh_c = cache
    dc = dc + dh * o * (1 - tanh_c**2)
    da = np.hstack(
        (
            dc * g * i * (1 - i),
            dc * prev_c * f * (1 - f),
            dh * tanh_c * o * (1 - o),
            dc * i * (1 - g**2),
        )
    )
    return da.dot(Wx.T), da.dot(Wh.T), dc * f, x.T.dot(da), prev_h.T.dot(da), da.sum(axis=0)


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    h = np.tanh(x.dot(Wx) + prev_h.dot(Wh) + b)
    return h, (x, prev_h, Wx, Wh, h)


def rnn_step_backward(dh, cache):
    x, prev_h, Wx, Wh, h = cache
    da = dh * (1 - h**2)
    return da.dot(Wx.T), da.dot(Wh.T), x.T.dot(da), prev_h.T.dot(da), da.sum(axis=0)


def loss(params, features, captions, cell, gradients=True):
    """Loss and gradients of the captioning model; without ``gradients`` the loss alone."""
    inputs, targets = captions[:, :-1], captions[:, 1:]
    mask = targets != 0
    N, T = inputs.shape
    Wx, Wh, b = params["Wx"], params["Wh"], params["b"]
    prev_h = features.dot(params["W_proj"]) + params["b_proj"]
    prev_c = np.zeros_like(prev_h)
    x = params["W_embed"][inputs]
    h, caches = np.zeros((N, T, prev_h.shape[1]), prev_h.dtype), []
    for t in range(T):
        if cell == "lstm":
            prev_h, prev_c, cache = lstm_step_forward(x[:, t], prev_h, prev_c, Wx, Wh, b)
        else:
            prev_h, cache = rnn_step_forward(x[:, t], prev_h, Wx, Wh, b)
        h[:, t] = prev_h
        caches.append(cache)
    flat_h = h.reshape(N * T, -1)
    scores = flat_h.dot(params["W_vocab"]) + params["b_vocab"]
    y, weight = targets.reshape(-1), mask.reshape(-1)
    p = np.exp(scores - np.max(scores, axis=1, keepdims=True))
    p /= np.sum(p, axis=1, keepdims=True)
    every = np.arange(N * T)
    total = -np.sum(weight * np.log(p[every, y])) / N
    if not gradients:
        return total
    dscores = p.copy()
    dscores[every, y] -= 1
    dscores /= N
    dscores *= weight[:, None]
    grads = {"W_vocab": flat_h.T.dot(dscores), "b_vocab": dscores.sum(axis=0)}
    dh = dscores.dot(params["W_vocab"].T).reshape(h.shape)
    dx, dWx, dWh, db = np.zeros_like(x), np.zeros_like(Wx), np.zeros_like(Wh), np.zeros_like(b)
    dprev_h, dprev_c = np.zeros_like(prev_h), np.zeros_like(prev_h)
    for t in reversed(range(T)):
        if cell == "lstm":
            dx[:, t], dprev_h, dprev_c, dWx_t, dWh_t, db_t = lstm_step_backward(
                dh[:, t] + dprev_h, dprev_c, caches[t]
            )
        else:
            dx[:, t], dprev_h, dWx_t, dWh_t, db_t = rnn_step_backward(dh[:, t] + dprev_h, caches[t])
        dWx += dWx_t
        dWh += dWh_t
        db += db_t
    grads |= {"Wx": dWx, "Wh": dWh, "b": db}
    grads["W_embed"] = np.zeros_like(params["W_embed"])
    np.add.at(grads["W_embed"], inputs, dx)
    grads["W_proj"], grads["b_proj"] = features.T.dot(dprev_h), dprev_h.sum(axis=0)
    return total, grads


def adam(w, dw, config):
    config["t"] += 1
    config["m"] = 0.9 * config["m"] + 0.1 * dw
    config["v"] = 0.999 * config["v"] + 0.001 * (dw * dw)
    m = config["m"] / (1 - 0.9 ** config["t"])
    v = config["v"] / (1 - 0.999 ** config["t"])
    return w - 1e-3 * m / (np.sqrt(v) + 1e-8)


def _train(task):
    params = dict(workload.model(task).params)
    configs = {name: {"t": 0, "m": np.zeros_like(w), "v": np.zeros_like(w)} for name, w in params.items()}
    batch = workload.batches(task)[0]

    def step(features, captions):
        value, grads = loss(params, features, captions, task.cell)
        for name, w in params.items():
            params[name] = adam(w, grads[name], configs[name])
        return float(value)

    return [step(*batch), float(loss(params, *batch, task.cell, gradients=False))], training(task, step)


def _forward(task):
    params, batch = workload.model(task).params, workload.batches(task)[0]

    def once():
        return float(loss(params, *batch, task.cell, gradients=False))

    return once(), timed(once)


def _decode(task):
    params = workload.model(task).params
    features, _ = workload.batches(task)[0]

    def once():
        captions = np.zeros((task.N, workload.DECODED), np.int32)
        h = features.dot(params["W_proj"]) + params["b_proj"]
        c, words = np.zeros_like(h), np.full(task.N, 1)
        for t in range(workload.DECODED):
            x = params["W_embed"][words]
            if task.cell == "lstm":
                h, c, _ = lstm_step_forward(x, h, c, params["Wx"], params["Wh"], params["b"])
            else:
                h, _ = rnn_step_forward(x, h, params["Wx"], params["Wh"], params["b"])
            words = np.argmax(h.dot(params["W_vocab"]) + params["b_vocab"], axis=1)
            captions[:, t] = words
        return captions

    return once()[:, :5].tolist(), timed(once)


def _product(task):
    h, Wh = workload.recurrent_product(task)

    def once():
        return h.dot(Wh)

    return float(np.abs(once()).sum()), timed(once)
