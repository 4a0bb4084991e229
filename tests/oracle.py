"""What every kernel should compute, one scalar at a time, written from the equations alone.

It shares no code with the kernels. Gradients are not derived by hand: each input is nudged along the
imaginary axis and the forward loops run again, for f(x + ih) = f(x) + ih f'(x) to the last digit when h is
tiny (complex-step differentiation; Squire and Trapp, SIAM Review 40, 1998).

Functions take the inputs of a kernel by name and return its outputs by name, as nested lists or arrays.
"""

import cmath
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Scalar = float | complex
Row = list[Scalar]
Matrix = list[Row]

STEP = 1e-40


def _tanh(a: Scalar) -> Scalar:
    return cmath.tanh(a) if isinstance(a, complex) else math.tanh(a)


def _sigmoid(a: Scalar) -> Scalar:
    return 1 / (1 + (cmath.exp(-a) if isinstance(a, complex) else math.exp(-a)))


def _layer(
    cell: str, x: Matrix, rows: list[int], batch_sizes: list[int], h0: Matrix, c0: Matrix | None,
    Wx: Matrix, Wh: Matrix, b: Row,
) -> tuple[Matrix, Matrix, Matrix, Matrix]:  # fmt: skip
    """Packed h, c and gates, and the last cell state of every sequence."""
    H = len(Wh)
    last_h = [list(row) for row in h0]
    last_c = [list(row) for row in (c0 or h0)]
    all_h, all_c, all_gates = [], [], []
    s = 0
    for alive in batch_sizes:
        for n in range(alive):
            a = []
            for k in range(len(b)):
                total = b[k]
                for d, value in enumerate(x[rows[s]]):
                    total += value * Wx[d][k]
                for j, value in enumerate(last_h[n]):
                    total += value * Wh[j][k]
                a.append(total)
            if cell == "rnn":
                last_h[n] = [_tanh(a_k) for a_k in a]
            else:
                i = [_sigmoid(a[k]) for k in range(H)]
                f = [_sigmoid(a[H + k]) for k in range(H)]
                o = [_sigmoid(a[2 * H + k]) for k in range(H)]
                g = [_tanh(a[3 * H + k]) for k in range(H)]
                last_c[n] = [f[k] * last_c[n][k] + i[k] * g[k] for k in range(H)]
                last_h[n] = [o[k] * _tanh(last_c[n][k]) for k in range(H)]
                all_gates.append(i + f + o + g)
            all_h.append(last_h[n])
            all_c.append(last_c[n])
            s += 1
    return all_h, all_c, all_gates, last_c


def _dot(a: Matrix, b: Matrix) -> Scalar:
    return sum((u * v for p, q in zip(a, b, strict=True) for u, v in zip(p, q, strict=True)), 0.0)


def _gradients(f: Callable[..., Scalar], wrt: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The gradient of f(**wrt) with respect to every array of ``wrt``, named d + its name."""
    result = {}
    for name, array in wrt.items():
        gradient = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            nudged = array.astype(complex)
            nudged[index] += 1j * STEP
            arguments = {other: value.tolist() for other, value in wrt.items()} | {name: nudged.tolist()}
            gradient[index] = complex(f(**arguments)).imag / STEP
        result[f"d{name}"] = gradient
    return result


def rnn_forward(x, rows, batch_sizes, h0, Wx, Wh, b):
    h, _, _, _ = _layer("rnn", *_lists(x, rows, batch_sizes, h0), None, *_lists(Wx, Wh, b))
    return {"h": h}


def rnn_backward(dh, x, rows, batch_sizes, h0, h, Wx, Wh, b):
    order = _lists(rows, batch_sizes)

    def loss(x, h0, Wx, Wh, b):
        return _dot(dh.tolist(), _layer("rnn", x, *order, h0, None, Wx, Wh, b)[0])

    return _gradients(loss, {"x": x, "h0": h0, "Wx": Wx, "Wh": Wh, "b": b})


def lstm_forward(x, rows, batch_sizes, h0, c0, Wx, Wh, b):
    h, c, gates, _ = _layer("lstm", *_lists(x, rows, batch_sizes, h0, c0, Wx, Wh, b))
    return {"h": h, "c": c, "gates": gates}


def lstm_backward(dh, dcT, x, rows, batch_sizes, h0, c0, h, c, gates, Wx, Wh, b):
    order = _lists(rows, batch_sizes)

    def loss(x, h0, c0, Wx, Wh, b):
        h, _, _, last_c = _layer("lstm", x, *order, h0, c0, Wx, Wh, b)
        return _dot(dh.tolist(), h) + _dot(dcT.tolist(), last_c)

    return _gradients(loss, {"x": x, "h0": h0, "c0": c0, "Wx": Wx, "Wh": Wh, "b": b})


def rnn_step(a, rows, prev_h, Wh):
    H = len(Wh)
    eye = np.eye(H)  # a is projected already: an input layer that changes nothing
    h, _, _, _ = _layer("rnn", *_lists(a, rows, [len(rows)], prev_h), None, *_lists(eye, Wh, np.zeros(H)))
    return {"h": h}


def lstm_step(a, rows, prev_h, prev_c, Wh):
    K = Wh.shape[1]
    h, c, _, _ = _layer("lstm", *_lists(a, rows, [len(rows)], prev_h, prev_c, np.eye(K), Wh, np.zeros(K)))
    return {"h": h, "c": c}


def _affine(x: Matrix, W: Matrix, b: Row) -> Matrix:
    return [[b[k] + sum(v * W[d][k] for d, v in enumerate(row)) for k in range(len(b))] for row in x]


def affine_forward(x, W, b):
    return {"out": _affine(*_lists(x, W, b))}


def affine_backward(dout, x, W):
    def loss(x, W, b):
        return _dot(dout.tolist(), _affine(x, W, b))

    return _gradients(loss, {"x": x, "W": W, "b": np.zeros(W.shape[1])})


def embedding_forward(tokens, W):
    return {"out": [W[token].tolist() for token in tokens]}


def embedding_backward(tokens, dout, V):
    dW = [[0.0] * dout.shape[1] for _ in range(V)]
    for token, row in zip(tokens.tolist(), dout.tolist(), strict=True):
        for k, value in enumerate(row):
            dW[token][k] += value
    return {"dW": dW}


def _cross_entropy(scores: Matrix, targets: list[int], mask: Row, scale: float) -> Scalar:
    loss: Scalar = 0.0
    for row, target, weight in zip(scores, targets, mask, strict=True):
        if weight:
            largest = max(complex(v).real for v in row)
            total = sum(cmath.exp(v - largest) for v in row)
            loss += weight * (cmath.log(total) + largest - row[target])
    return scale * loss


def softmax_loss(scores, targets, mask, scale):
    def loss(scores):
        return _cross_entropy(scores, *_lists(targets, mask), scale)

    return {"loss": complex(loss(scores.tolist())).real, **_gradients(loss, {"scores": scores})}


def vocab_loss(h, W, b, targets, mask, scale):
    def loss(h, W, b):
        return _cross_entropy(_affine(h, W, b), *_lists(targets, mask), scale)

    value = complex(loss(*_lists(h, W, b))).real
    return {"loss": value, **_gradients(loss, {"h": h, "W": W, "b": b})}


def _elementwise(f: Callable[..., tuple[float, ...]], names: tuple[str, ...], *arrays: np.ndarray) -> Any:
    """Apply an update to every element; the new arrays by name."""
    new = {name: np.empty(arrays[0].shape) for name in names}
    for index in np.ndindex(arrays[0].shape):
        values = f(*(float(array[index]) for array in arrays))
        for name, value in zip(names, values, strict=True):
            new[name][index] = value
    return new


def sgd(w, dw, learning_rate):
    return _elementwise(lambda w, dw: (w - learning_rate * dw,), ("w",), w, dw)


def sgd_momentum(w, dw, velocity, learning_rate, momentum):
    def update(w, dw, velocity):
        velocity = momentum * velocity - learning_rate * dw
        return w + velocity, velocity

    return _elementwise(update, ("w", "velocity"), w, dw, velocity)


def rmsprop(w, dw, cache, learning_rate, decay_rate, epsilon):
    def update(w, dw, cache):
        cache = decay_rate * cache + (1 - decay_rate) * dw * dw
        return w - learning_rate * dw / (math.sqrt(cache) + epsilon), cache

    return _elementwise(update, ("w", "cache"), w, dw, cache)


def adam(w, dw, m, v, t, learning_rate, beta1, beta2, epsilon):
    def update(w, dw, m, v):
        m = beta1 * m + (1 - beta1) * dw
        v = beta2 * v + (1 - beta2) * dw * dw
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        return w - learning_rate * m_hat / (math.sqrt(v_hat) + epsilon), m, v

    return _elementwise(update, ("w", "m", "v"), w, dw, m, v)


def _lists(*arrays: Any) -> list[Any]:
    return [array.tolist() if isinstance(array, np.ndarray) else array for array in arrays]
