"""The kernels in plain NumPy: the specification of every other backend, and the fallback.

Notation (README.md beside this file has more): N sequences, T steps, D inputs, H hidden units, E numbers
per word vector, V words, S live tokens, U distinct inputs. ``x h c`` are input, hidden and cell state;
the gates are i f o g, in this order; dy is the gradient of the loss with respect to y; prev_y is y one
step earlier. sigma is the logistic function, * the element-wise product.

Sequences come packed: sorted by length (longest first) and laid out step after step, ``batch_sizes[t]``
rows for step t. Row s of ``h`` is therefore sequence n at step t, and the same sequence one step earlier
is the row ``batch_sizes[t-1]`` further up. Forward steps are numbered; backward cites the numbers.

Every array is C-contiguous and belongs to the caller. A kernel overwrites its outputs, never reads what
was in them, changes nothing else, and takes its large temporaries from ``work``.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]

SCORES_BYTES = 16 << 20  # the scores that vocab_loss holds at a time
CHUNK = 1 << 14  # elements that an optimiser updates at a time: they stay in the cache


class Work:
    """Scratch memory, kept from call to call so that big temporaries are not paged in anew each time."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An uninitialised array; the next request under the same name reuses its memory."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, np.uint8)
        return buffer[:size].view(dtype).reshape(shape)


def make_work() -> Work:
    """Scratch for the functions below. One thread at a time may use it."""
    return Work()


def pack(
    W: Array,  # (K,columns)
    gates: int,  # 4 for the LSTM's Wh, else 1
    work: Any,
) -> Array:
    """W in the form that rnn_step, lstm_step and affine_forward like best, to be passed in its place."""
    return W


# ---------------------------------------------------------------------------------------------------
# Recurrent layers


def rnn_forward(
    x: Array,  # (U,D) the distinct inputs
    rows: Array,  # (S,) packed row s reads x[rows[s]]
    batch_sizes: Array,  # (T,) sequences alive at each step, not increasing
    h0: Array,  # (N,H)
    Wx: Array,  # (D,H)
    Wh: Array,  # (H,H)
    b: Array,  # (H,)
    h: Array,  # out (S,H)
    work: Work,
) -> None:
    """Vanilla recurrent layer.

    a = x Wx + prev_h Wh + b
    h = tanh(a)
    """
    ax = _project(x, Wx, b, work)  # (U,H)                                                       1
    prev_h = h0
    for step, n in _steps(batch_sizes):
        a = h[step]  # (n,H)
        np.matmul(prev_h[:n], Wh, out=a)
        a += ax[rows[step]]  #                                                                   2
        np.tanh(a, out=a)  #                                                                     3
        prev_h = h[step]


def rnn_backward(
    dh: Array,  # (S,H)
    x: Array,  # (U,D)
    rows: Array,  # (S,)
    batch_sizes: Array,  # (T,)
    h0: Array,  # (N,H)
    h: Array,  # (S,H)
    Wx: Array,  # (D,H)
    Wh: Array,  # (H,H)
    dx: Array | None,  # out (U,D); None here and below: not wanted
    dh0: Array | None,  # out (N,H)
    dWx: Array | None,  # out (D,H)
    dWh: Array | None,  # out (H,H)
    db: Array | None,  # out (H,)
    work: Work,
) -> None:
    """Gradients of :func:`rnn_forward`.

    da      = (dh + dprev_h of the next step) * (1 - h^2)
    dprev_h = da Wh^T
    """
    da = work.array("da", h.shape, h.dtype)  # (S,H)
    flowing = dh0 if dh0 is not None else work.array("dh0", h0.shape, h0.dtype)
    flowing.fill(0)  # (N,H) the gradient that flows back from later steps
    for step, n in reversed(_steps(batch_sizes)):
        # 3: h = tanh(a)
        np.add(dh[step], flowing[:n], out=da[step])
        da[step] *= 1 - h[step] ** 2
        # 2: a = ax[rows] + prev_h Wh
        np.matmul(da[step], Wh.T, out=flowing[:n])
    _weight_gradients(da, x, rows, batch_sizes, h0, h, Wx, dx, dWx, dWh, db, work)


def lstm_forward(
    x: Array,  # (U,D) the distinct inputs
    rows: Array,  # (S,) packed row s reads x[rows[s]]
    batch_sizes: Array,  # (T,) sequences alive at each step, not increasing
    h0: Array,  # (N,H)
    c0: Array,  # (N,H)
    Wx: Array,  # (D,4H)
    Wh: Array,  # (H,4H)
    b: Array,  # (4H,)
    h: Array,  # out (S,H)
    c: Array,  # out (S,H)
    gates: Array | None,  # out (S,4H) i f o g after their activation; None: no backward will follow
    work: Work,
) -> None:
    """Long short-term memory (Hochreiter and Schmidhuber 1997, with forget gates).

    a = x Wx + prev_h Wh + b                    four blocks of H columns, one per gate
    i, f, o = sigma(a_i), sigma(a_f), sigma(a_o)
    g = tanh(a_g)
    c = f * prev_c + i * g
    h = o * tanh(c)
    """
    ax = _project(x, Wx, b, work)  # (U,4H)                                                      1
    prev_h, prev_c = h0, c0
    for step, n in _steps(batch_sizes):
        a = gates[step] if gates is not None else work.array("a", (n, b.size), b.dtype)  # (n,4H)
        np.matmul(prev_h[:n], Wh, out=a)
        a += ax[rows[step]]  #                                                                   2
        _cell(a, prev_c[:n], h[step], c[step])  #                                            3 4 5
        prev_h, prev_c = h[step], c[step]


def lstm_backward(
    dh: Array,  # (S,H)
    dcT: Array,  # (N,H) gradient of each sequence's last cell state
    x: Array,  # (U,D)
    rows: Array,  # (S,)
    batch_sizes: Array,  # (T,)
    h0: Array,  # (N,H)
    c0: Array,  # (N,H)
    h: Array,  # (S,H)
    c: Array,  # (S,H)
    gates: Array,  # (S,4H)
    Wx: Array,  # (D,4H)
    Wh: Array,  # (H,4H)
    dx: Array | None,  # out (U,D); None here and below: not wanted
    dh0: Array | None,  # out (N,H)
    dc0: Array | None,  # out (N,H)
    dWx: Array | None,  # out (D,4H)
    dWh: Array | None,  # out (H,4H)
    db: Array | None,  # out (4H,)
    work: Work,
) -> None:
    """Gradients of :func:`lstm_forward`.

    dc   = dc of the next step + dh * o * (1 - tanh(c)^2)
    da_i = dc * g * i * (1 - i)                 sigma' = sigma (1 - sigma)
    da_f = dc * prev_c * f * (1 - f)
    da_o = dh * tanh(c) * o * (1 - o)
    da_g = dc * i * (1 - g^2)                   tanh' = 1 - tanh^2
    dprev_c = dc * f
    dprev_h = da Wh^T
    """
    H = h0.shape[1]
    da = work.array("da", gates.shape, gates.dtype)  # (S,4H)
    # Both hold the gradient that flows back from later steps; rows of sequences that ended earlier wait.
    flowing = dh0 if dh0 is not None else work.array("dh0", h0.shape, h0.dtype)  # (N,H)
    dc = dc0 if dc0 is not None else work.array("dc0", c0.shape, c0.dtype)  # (N,H)
    flowing.fill(0)
    np.copyto(dc, dcT)
    steps = _steps(batch_sizes)
    for t in reversed(range(len(steps))):
        step, n = steps[t]
        i, f, o, g = _blocks(gates[step], H)
        da_i, da_f, da_o, da_g = _blocks(da[step], H)
        prev_c = c[steps[t - 1][0]][:n] if t > 0 else c0[:n]
        dh_t = dh[step] + flowing[:n]
        # 5: h = o * tanh(c)
        tanh_c = np.tanh(c[step])
        np.multiply(dh_t * tanh_c, o * (1 - o), out=da_o)
        dc[:n] += dh_t * o * (1 - tanh_c**2)
        # 4: c = f * prev_c + i * g
        np.multiply(dc[:n] * g, i * (1 - i), out=da_i)
        np.multiply(dc[:n] * prev_c, f * (1 - f), out=da_f)
        np.multiply(dc[:n] * i, 1 - g**2, out=da_g)
        dc[:n] *= f
        # 2: a = ax[rows] + prev_h Wh
        np.matmul(da[step], Wh.T, out=flowing[:n])
    _weight_gradients(da, x, rows, batch_sizes, h0, h, Wx, dx, dWx, dWh, db, work)


def rnn_step(
    a: Array,  # (U,H) inputs already projected: x Wx + b
    rows: Array,  # (N,) sequence n reads a[rows[n]]
    prev_h: Array,  # (N,H)
    Wh: Array,  # (H,H)
    h: Array,  # out (N,H)
    work: Work,
) -> None:
    """One step of :func:`rnn_forward` for decoding: h = tanh(a[rows] + prev_h Wh)."""
    np.matmul(prev_h, Wh, out=h)
    h += a[rows]
    np.tanh(h, out=h)


def lstm_step(
    a: Array,  # (U,4H) inputs already projected: x Wx + b
    rows: Array,  # (N,) sequence n reads a[rows[n]]
    prev_h: Array,  # (N,H)
    prev_c: Array,  # (N,H)
    Wh: Array,  # (H,4H)
    h: Array,  # out (N,H)
    c: Array,  # out (N,H)
    work: Work,
) -> None:
    """One step of :func:`lstm_forward` for decoding."""
    gates = work.array("a", (len(rows), a.shape[1]), a.dtype)
    np.matmul(prev_h, Wh, out=gates)
    gates += a[rows]
    _cell(gates, prev_c, h, c)


def _cell(a: Array, prev_c: Array, h: Array, c: Array) -> None:
    """The LSTM's cell update; a (n,4H) holds pre-activations before and gates after."""
    i, f, o, g = _blocks(a, h.shape[1])
    _sigmoid(a[:, : 3 * h.shape[1]])
    np.tanh(g, out=g)  #                                                                         3
    np.multiply(f, prev_c, out=c)
    c += i * g  #                                                                                4
    np.tanh(c, out=h)
    h *= o  #                                                                                    5


def _sigmoid(x: Array) -> None:
    """In place, 1 / (1 + exp(-x)).

    The exponent stops where the result is the smallest normal number, so nothing overflows.
    """
    np.negative(x, out=x)
    np.minimum(x, -np.log(np.finfo(x.dtype).tiny), out=x)
    np.exp(x, out=x)
    x += 1
    np.reciprocal(x, out=x)


def _blocks(gates: Array, H: int) -> tuple[Array, Array, Array, Array]:
    """Views (n,H) of the gates i f o g side by side in (n,4H)."""
    return gates[:, :H], gates[:, H : 2 * H], gates[:, 2 * H : 3 * H], gates[:, 3 * H :]


def _steps(batch_sizes: Array) -> list[tuple[slice, int]]:
    """For each time step, its packed rows and how many they are."""
    stops = np.cumsum(batch_sizes).tolist()
    return [(slice(stop - n, stop), n) for stop, n in zip(stops, batch_sizes.tolist(), strict=True)]


def _project(x: Array, Wx: Array, b: Array, work: Work) -> Array:
    """x Wx + b, once per distinct input and outside the time loop."""
    ax = work.array("ax", (len(x), b.size), b.dtype)
    affine_forward(x, Wx, b, ax, work)
    return ax


def _weight_gradients(
    da: Array,  # (S,G) gradient of the pre-activations, G = H or 4H
    x: Array,
    rows: Array,
    batch_sizes: Array,
    h0: Array,
    h: Array,
    Wx: Array,
    dx: Array | None,
    dWx: Array | None,
    dWh: Array | None,
    db: Array | None,
    work: Work,
) -> None:
    """What is left of backward once the time loop has made da: one product over all steps for each.

    da_x = sum of da over the rows that read the same x
    dx = da_x Wx^T,   dWx = x^T da_x,   db = sum of da,   dWh = prev_h^T da
    """
    if dWh is not None:
        # 2: a = ax[rows] + prev_h Wh
        all_prev_h = work.array("prev_h", h.shape, h.dtype)
        prev_h = h0
        for step, n in _steps(batch_sizes):
            all_prev_h[step] = prev_h[:n]
            prev_h = h[step]
        np.matmul(all_prev_h.T, da, out=dWh)
    # 1: ax = x Wx + b
    da_x = work.array("da_x", (len(x), da.shape[1]), da.dtype)
    embedding_backward(rows, da, da_x, work)
    affine_backward(da_x, x, Wx, dx, dWx, db, work)


# ---------------------------------------------------------------------------------------------------
# Affine layer and word embedding


def affine_forward(
    x: Array,  # (M,D)
    W: Array,  # (D,K)
    b: Array,  # (K,)
    out: Array,  # out (M,K)
    work: Work,
) -> None:
    """out = x W + b"""
    np.matmul(x, W, out=out)
    out += b


def affine_backward(
    dout: Array,  # (M,K)
    x: Array,  # (M,D)
    W: Array,  # (D,K)
    dx: Array | None,  # out (M,D)
    dW: Array | None,  # out (D,K)
    db: Array | None,  # out (K,)
    work: Work,
) -> None:
    """dx = dout W^T,   dW = x^T dout,   db = sum of dout over its rows"""
    if dx is not None:
        np.matmul(dout, W.T, out=dx)
    if dW is not None:
        np.matmul(x.T, dout, out=dW)
    if db is not None:
        np.sum(dout, axis=0, out=db)


def embedding_forward(
    tokens: Array,  # (S,)
    W: Array,  # (V,E)
    out: Array,  # out (S,E)
) -> None:
    """out[s] = W[tokens[s]]"""
    np.take(W, tokens, axis=0, out=out, mode="clip")  # any other mode makes NumPy copy through a buffer


def embedding_backward(
    tokens: Array,  # (S,)
    dout: Array,  # (S,E)
    dW: Array,  # out (V,E)
    work: Work,
) -> None:
    """dW[v] = sum of dout[s] over the rows s with tokens[s] = v, in the order of the rows.

    Sorting brings equal tokens together; a run of them is summed at once (docs/decisions.md has the times of
    other ways).
    """
    order = np.argsort(tokens, kind="stable")
    distinct, starts, counts = np.unique(tokens[order], return_index=True, return_counts=True)
    dW.fill(0)
    once = counts == 1
    dW[distinct[once]] = dout[order[starts[once]]]
    for token, start, count in zip(
        distinct[~once].tolist(), starts[~once].tolist(), counts[~once].tolist(), strict=True
    ):
        dW[token] = np.cumsum(dout[order[start : start + count]], axis=0)[-1]  # np.sum may add in pairs


# ---------------------------------------------------------------------------------------------------
# Losses


def softmax_loss(
    scores: Array,  # (S,V)
    targets: Array,  # (S,)
    mask: Array,  # (S,) weight of each row, 0..1; targets of rows with weight 0 are not looked at
    scale: float,
    dscores: Array | None,  # out (S,V)
    work: Work,
) -> float:
    """Masked softmax cross-entropy: scale * sum of mask * nll over the rows.

    p = exp(scores) / sum of exp(scores)
    nll = -log p[target]
    dscores = scale * mask * (p - onehot(target))
    """
    nll = np.zeros(len(targets))
    if dscores is not None:
        dscores.fill(0)
    for kept in _kept_rows(mask, scores.shape[1] * scores.itemsize):
        p = scores[kept]  # a copy
        nll[kept] = _softmax_nll(p, targets[kept], mask[kept], scale)
        if dscores is not None:
            dscores[kept] = p
    return _masked_sum(nll, mask, scale)


def vocab_loss(
    h: Array,  # (S,H)
    W: Array,  # (H,V)
    b: Array,  # (V,)
    targets: Array,  # (S,)
    mask: Array,  # (S,) weight of each row, 0..1; targets of rows with weight 0 are not looked at
    scale: float,
    dh: Array | None,  # out (S,H)
    dW: Array | None,  # out (H,V)
    db: Array | None,  # out (V,)
    work: Work,
) -> float:
    """Vocabulary projection and :func:`softmax_loss` in one: scores = h W + b.

    dh = dscores W^T,   dW = h^T dscores,   db = sum of dscores

    Works through blocks of rows, so the scores never exist as a whole; rows with weight 0 cost nothing.
    """
    nll = np.zeros(len(targets))
    for gradient in (dh, dW, db):
        if gradient is not None:
            gradient.fill(0)
    for kept in _kept_rows(mask, W.shape[1] * W.itemsize):
        h_kept = h[kept]
        scores = work.array("scores", (len(kept), W.shape[1]), W.dtype)
        affine_forward(h_kept, W, b, scores, work)
        nll[kept] = _softmax_nll(scores, targets[kept], mask[kept], scale)  # scores are now dscores
        if dh is not None:
            dh[kept] = scores @ W.T
        if dW is not None:
            product = work.array("dW", W.shape, W.dtype)
            dW += np.matmul(h_kept.T, scores, out=product)
        if db is not None:
            db += scores.sum(axis=0)
    return _masked_sum(nll, mask, scale)


def _kept_rows(mask: Array, row_bytes: int) -> Iterator[Array]:
    """The rows with a weight, in blocks of at most SCORES_BYTES of scores."""
    kept = np.flatnonzero(mask)
    rows = max(SCORES_BYTES // max(row_bytes, 1), 1)
    for start in range(0, len(kept), rows):
        yield kept[start : start + rows]


def _softmax_nll(scores: Array, targets: Array, mask: Array, scale: float) -> Array:
    """nll of each row; turns scores into dscores in place. exp(score - largest score) cannot overflow."""
    every = np.arange(len(targets))
    scores -= scores.max(axis=1, keepdims=True)
    target_scores = scores[every, targets]
    np.exp(scores, out=scores)
    sums = scores.sum(axis=1)
    weights = scale * mask
    scores *= (weights / sums)[:, np.newaxis]
    scores[every, targets] -= weights
    nll: Array = np.log(sums) - target_scores
    return nll


def _masked_sum(nll: Array, mask: Array, scale: float) -> float:
    """scale * sum of mask * nll in float64, one row after the other (np.sum would add in pairs)."""
    terms = np.cumsum(mask * nll)
    return scale * float(terms[-1]) if terms.size else 0.0


# ---------------------------------------------------------------------------------------------------
# Optimisers: parameters and their state are updated in place


def sgd(
    w: Array,  # in, out
    dw: Array,
    learning_rate: float,
) -> None:
    """w -= learning_rate * dw"""
    for w_, dw_ in _chunks(w, dw):
        w_ -= learning_rate * dw_


def sgd_momentum(
    w: Array,  # in, out
    dw: Array,
    velocity: Array,  # in, out
    learning_rate: float,
    momentum: float,
) -> None:
    """Gradient descent with momentum.

    velocity = momentum * velocity - learning_rate * dw
    w += velocity
    """
    for w_, dw_, velocity_ in _chunks(w, dw, velocity):
        velocity_ *= momentum
        velocity_ -= learning_rate * dw_
        w_ += velocity_


def rmsprop(
    w: Array,  # in, out
    dw: Array,
    cache: Array,  # in, out
    learning_rate: float,
    decay_rate: float,
    epsilon: float,
) -> None:
    """RMSProp (Tieleman and Hinton 2012).

    cache = decay_rate * cache + (1 - decay_rate) * dw^2
    w -= learning_rate * dw / (sqrt(cache) + epsilon)
    """
    for w_, dw_, cache_ in _chunks(w, dw, cache):
        cache_ *= decay_rate
        cache_ += (1 - decay_rate) * dw_**2
        w_ -= learning_rate * dw_ / (np.sqrt(cache_) + epsilon)


def adam(
    w: Array,  # in, out
    dw: Array,
    m: Array,  # in, out
    v: Array,  # in, out
    t: int,  # the number of this step, from 1
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """Adam (Kingma and Ba, ICLR 2015).

    m = beta1 * m + (1 - beta1) * dw
    v = beta2 * v + (1 - beta2) * dw^2
    w -= learning_rate * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)
    """
    for w_, dw_, m_, v_ in _chunks(w, dw, m, v):
        m_ *= beta1
        m_ += (1 - beta1) * dw_
        v_ *= beta2
        v_ += (1 - beta2) * dw_**2
        w_ -= learning_rate / (1 - beta1**t) * m_ / (np.sqrt(v_ / (1 - beta2**t)) + epsilon)


def _chunks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Flat views of the same CHUNK elements of every array."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, CHUNK):
        yield tuple(array[start : start + CHUNK] for array in flat)
