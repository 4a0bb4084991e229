"""The layer functions of the image-captioning exercises, with the published names and signatures.

Each function checks and converts what it is given, calls one kernel and builds the cache that its backward
function takes. Arrays may be of any real type, byte order and memory layout; they are never changed, and
results are float32 where all inputs are float32 or narrower, else float64. A cache is opaque, may be used
any number of times, and refers to the arrays that forward was given.

Shapes: N sequences, T steps, D inputs, H hidden units, V words. Gates of the LSTM are in the order i f o g.

Every function raises ``TypeError`` for arrays that are not of real numbers and ``ValueError`` for shapes
that do not fit; functions of tokens raise ``IndexError`` for an id outside the vocabulary.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastrnn import backend, recurrence
from fastrnn.arrays import Array, integers, real, real_type, reals, tokens

__all__ = [
    "affine_backward",
    "affine_forward",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "sigmoid",
    "temporal_affine_backward",
    "temporal_affine_forward",
    "temporal_softmax_loss",
    "word_embedding_backward",
    "word_embedding_forward",
]


class _SequenceCache(NamedTuple):
    run: recurrence.Run
    packed: recurrence.Packed
    T: int


# ---------------------------------------------------------------------------------------------------
# Recurrent layers: one step is a sequence of length one


def rnn_step_forward(
    x: ArrayLike, prev_h: ArrayLike, Wx: ArrayLike, Wh: ArrayLike, b: ArrayLike
) -> tuple[Array, Any]:
    """One step of a vanilla RNN: next_h = tanh(x Wx + prev_h Wh + b).

    Takes x (N,D), prev_h (N,H), Wx (D,H), Wh (H,H), b (H,). Returns next_h (N,H) and a cache.
    """
    (x, prev_h, Wx, Wh, b), _ = reals("x(N,D) prev_h(N,H) Wx(D,H) Wh(H,H) b(H)", x, prev_h, Wx, Wh, b)
    return _step_forward(x, prev_h, None, Wx, Wh, b)


def rnn_step_backward(dnext_h: ArrayLike, cache: Any) -> tuple[Array, Array, Array, Array, Array]:
    """Gradients of :func:`rnn_step_forward` from dnext_h (N,H).

    Returns dx (N,D), dprev_h (N,H), dWx (D,H), dWh (H,H), db (H,).
    """
    d = recurrence.backward(_gradient("dnext_h", dnext_h, cache.h.shape, cache.h.dtype), None, cache)
    return d.dx, d.dh0, d.dWx, d.dWh, d.db


def lstm_step_forward(
    x: ArrayLike, prev_h: ArrayLike, prev_c: ArrayLike, Wx: ArrayLike, Wh: ArrayLike, b: ArrayLike
) -> tuple[Array, Array, Any]:
    """One step of an LSTM.

    a = x Wx + prev_h Wh + b;  i, f, o = sigmoid of the first three quarters of a, g = tanh of the last;
    next_c = f * prev_c + i * g;  next_h = o * tanh(next_c).

    Takes x (N,D), prev_h (N,H), prev_c (N,H), Wx (D,4H), Wh (H,4H), b (4H,).
    Returns next_h (N,H), next_c (N,H) and a cache.
    """
    (x, prev_h, prev_c, Wx, Wh, b), _ = reals(
        "x(N,D) prev_h(N,H) prev_c(N,H) Wx(D,4H) Wh(H,4H) b(4H)", x, prev_h, prev_c, Wx, Wh, b
    )
    next_h, run = _step_forward(x, prev_h, prev_c, Wx, Wh, b)
    return next_h, run.c.copy(), run


def lstm_step_backward(
    dnext_h: ArrayLike, dnext_c: ArrayLike, cache: Any
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Gradients of :func:`lstm_step_forward` from dnext_h (N,H) and dnext_c (N,H).

    Returns dx (N,D), dprev_h (N,H), dprev_c (N,H), dWx (D,4H), dWh (H,4H), db (4H,).
    """
    shape, dtype = cache.h.shape, cache.h.dtype
    d = recurrence.backward(
        _gradient("dnext_h", dnext_h, shape, dtype), _gradient("dnext_c", dnext_c, shape, dtype), cache
    )
    assert d.dc0 is not None
    return d.dx, d.dh0, d.dc0, d.dWx, d.dWh, d.db


def rnn_forward(
    x: ArrayLike,
    h0: ArrayLike,
    Wx: ArrayLike,
    Wh: ArrayLike,
    b: ArrayLike,
    lengths: ArrayLike | None = None,
) -> tuple[Array, Any]:
    """A vanilla RNN over whole sequences.

    Takes x (N,T,D), h0 (N,H), Wx (D,H), Wh (H,H), b (H,) and, beyond the published function, ``lengths``
    (N,) of integers in 0..T: sequence n ends after lengths[n] steps, and is 0 from there on.
    Returns h (N,T,H) and a cache. Raises ``ValueError`` for lengths outside 0..T.
    """
    (x, h0, Wx, Wh, b), sizes = reals("x(N,T,D) h0(N,H) Wx(D,H) Wh(H,H) b(H)", x, h0, Wx, Wh, b)
    return _sequence_forward(x, h0, None, Wx, Wh, b, lengths, sizes)


def rnn_backward(dh: ArrayLike, cache: Any) -> tuple[Array, Array, Array, Array, Array]:
    """Gradients of :func:`rnn_forward` from dh (N,T,H); what dh holds past a sequence's length is ignored.

    Returns dx (N,T,D), dh0 (N,H), dWx (D,H), dWh (H,H), db (H,).
    """
    dx, dh0, _, dWx, dWh, db = _sequence_backward(dh, cache)
    return dx, dh0, dWx, dWh, db


def lstm_forward(
    x: ArrayLike,
    h0: ArrayLike,
    Wx: ArrayLike,
    Wh: ArrayLike,
    b: ArrayLike,
    c0: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
) -> tuple[Array, Any]:
    """An LSTM over whole sequences; the equations are in :func:`lstm_step_forward`.

    Takes x (N,T,D), h0 (N,H), Wx (D,4H), Wh (H,4H), b (4H,) and, beyond the published function, the initial
    cell state ``c0`` (N,H), zero by default, and ``lengths`` (N,) of integers in 0..T: sequence n ends after
    lengths[n] steps, and is 0 from there on. Returns h (N,T,H) and a cache.
    Raises ``ValueError`` for lengths outside 0..T.
    """
    if c0 is None:
        c0 = np.zeros(np.shape(h0), np.float32)
    (x, h0, c0, Wx, Wh, b), sizes = reals(
        "x(N,T,D) h0(N,H) c0(N,H) Wx(D,4H) Wh(H,4H) b(4H)", x, h0, c0, Wx, Wh, b
    )
    return _sequence_forward(x, h0, c0, Wx, Wh, b, lengths, sizes)


def lstm_backward(dh: ArrayLike, cache: Any, return_dc0: bool = False) -> tuple[Array, ...]:
    """Gradients of :func:`lstm_forward` from dh (N,T,H); what dh holds past a sequence's length is ignored.

    Returns dx (N,T,D), dh0 (N,H), dWx (D,4H), dWh (H,4H), db (4H,), and dc0 (N,H) last if ``return_dc0``.
    """
    dx, dh0, dc0, dWx, dWh, db = _sequence_backward(dh, cache)
    if return_dc0:
        assert dc0 is not None
        return dx, dh0, dWx, dWh, db, dc0
    return dx, dh0, dWx, dWh, db


def _step_forward(
    x: Array, prev_h: Array, prev_c: Array | None, Wx: Array, Wh: Array, b: Array
) -> tuple[Array, Any]:
    run = recurrence.forward(x, np.arange(len(x)), np.array([len(x)]), prev_h, prev_c, Wx, Wh, b)
    return run.h.copy(), run  # a copy: what the caller does to it must not reach the cache


def _sequence_forward(
    x: Array,
    h0: Array,
    c0: Array | None,
    Wx: Array,
    Wh: Array,
    b: Array,
    lengths: ArrayLike | None,
    sizes: dict[str, int],
) -> tuple[Array, Any]:
    N, T, D, H = (sizes[letter] for letter in "NTDH")
    packed = recurrence.pack(_lengths(lengths, N, T), T)
    if c0 is not None:
        c0 = c0[packed.order]
    run = recurrence.forward(
        x.reshape(N * T, D), packed.positions, packed.batch_sizes, h0[packed.order], c0, Wx, Wh, b
    )
    h = np.zeros((N * T, H), x.dtype)
    h[packed.positions] = run.h
    return h.reshape(N, T, H), _SequenceCache(run, packed, T)


def _lengths(lengths: ArrayLike | None, N: int, T: int) -> Array:
    if lengths is None:
        return np.full(N, T)
    given = integers("lengths", lengths)
    if given.shape != (N,):
        raise ValueError(f"lengths: expected shape (N) with N={N}, got {given.shape}")
    if given.size and (given.min() < 0 or given.max() > T):
        raise ValueError(f"lengths: expected numbers in 0..{T}, got {given.min()}..{given.max()}")
    return given


def _sequence_backward(
    dh: ArrayLike, cache: _SequenceCache
) -> tuple[Array, Array, Array | None, Array, Array, Array]:
    run, packed, T = cache
    N, H = run.h0.shape
    dh = _gradient("dh", dh, (N, T, H), run.h.dtype)
    d = recurrence.backward(dh.reshape(N * T, H)[packed.positions], None, run)
    unsorted = np.argsort(packed.order)
    dc0 = None if d.dc0 is None else d.dc0[unsorted]
    return d.dx.reshape(N, T, run.x.shape[1]), d.dh0[unsorted], dc0, d.dWx, d.dWh, d.db


def _gradient(name: str, gradient: ArrayLike, shape: tuple[int, ...], dtype: Any) -> Array:
    """A gradient from above, checked against the output it belongs to, in its type and C-contiguous."""
    given = real(name, gradient)
    if given.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {given.shape}")
    return np.asarray(given, dtype, order="C")


# ---------------------------------------------------------------------------------------------------
# Everything else


def sigmoid(x: ArrayLike) -> Array:
    """The logistic function 1 / (1 + exp(-x)) of an array of any shape; no x overflows."""
    given = real("x", x)
    given = given.astype(real_type(given), copy=False)
    exponential = np.exp(-np.abs(given))
    return np.asarray(np.where(given < 0, exponential, 1) / (1 + exponential))


def word_embedding_forward(x: ArrayLike, W: ArrayLike) -> tuple[Array, Any]:
    """Look up word vectors: out[n,t] = W[x[n,t]].

    Takes tokens x (N,T), integers or whole floats in 0..V-1, and W (V,D). Returns out (N,T,D) and a cache.
    """
    (W,), sizes = reals("W(V,D)", W)
    x = tokens("x", x, sizes["V"])
    out = np.empty((x.size, sizes["D"]), W.dtype)
    backend.kernels().embedding_forward(x.reshape(-1), W, out)
    return out.reshape(*x.shape, sizes["D"]), _EmbeddingCache(x, W.shape, W.dtype)


def word_embedding_backward(dout: ArrayLike, cache: Any) -> Array:
    """Gradient of :func:`word_embedding_forward` from dout (N,T,D): dW (V,D), repeated tokens summed."""
    x, (V, D), dtype = cache
    dout = _gradient("dout", dout, (*x.shape, D), dtype)
    dW = np.empty((V, D), dtype)
    kernels, work = backend.kernels_and_work()
    kernels.embedding_backward(x.reshape(-1), dout.reshape(x.size, D), dW, work)
    return dW


class _EmbeddingCache(NamedTuple):
    x: Array  # the tokens
    W_shape: tuple[int, ...]
    dtype: np.dtype[Any]


def affine_forward(x: ArrayLike, w: ArrayLike, b: ArrayLike) -> tuple[Array, Any]:
    """A fully connected layer: out = x w + b, where each x[n] is flattened to D numbers.

    Takes x (N, d_1, ..., d_k) with D = d_1 * ... * d_k, w (D,M), b (M,). Returns out (N,M) and a cache.
    """
    given = real("x", x)
    if given.ndim == 0:
        raise ValueError("x: expected shape (N, d_1, ..., d_k), got ()")
    return _affine_forward(given, 1, w, b)


def affine_backward(dout: ArrayLike, cache: Any) -> tuple[Array, Array, Array]:
    """Gradients of :func:`affine_forward` from dout (N,M): dx (N, d_1, ..., d_k), dw (D,M), db (M,)."""
    return _affine_backward(dout, cache)


def temporal_affine_forward(x: ArrayLike, w: ArrayLike, b: ArrayLike) -> tuple[Array, Any]:
    """The same affine layer at every step of a sequence.

    Takes x (N,T,D), w (D,M), b (M,). Returns out (N,T,M) and a cache.
    """
    given = real("x", x)
    if given.ndim != 3:
        raise ValueError(f"x: expected shape (N,T,D), got {given.shape}")
    return _affine_forward(given, 2, w, b)


def temporal_affine_backward(dout: ArrayLike, cache: Any) -> tuple[Array, Array, Array]:
    """Gradients of :func:`temporal_affine_forward` from dout (N,T,M): dx (N,T,D), dw (D,M), db (M,)."""
    return _affine_backward(dout, cache)


class _AffineCache(NamedTuple):
    x: Array  # (rows,D)
    w: Array  # (D,M)
    x_shape: tuple[int, ...]
    out_shape: tuple[int, ...]


def _affine_forward(x: Array, leading: int, w: ArrayLike, b: ArrayLike) -> tuple[Array, _AffineCache]:
    """Affine layer over the rows that x's ``leading`` first dimensions count."""
    rows, D = (int(np.prod(part)) for part in (x.shape[:leading], x.shape[leading:]))
    (flat, w, b), sizes = reals("x(N,D) w(D,M) b(M)", x.reshape(rows, D), w, b)
    out = np.empty((rows, sizes["M"]), flat.dtype)
    kernels, work = backend.kernels_and_work()
    kernels.affine_forward(flat, w, b, out, work)
    out_shape = (*x.shape[:leading], sizes["M"])
    return out.reshape(out_shape), _AffineCache(flat, w, x.shape, out_shape)


def _affine_backward(dout: ArrayLike, cache: _AffineCache) -> tuple[Array, Array, Array]:
    x, w, x_shape, out_shape = cache
    flat = _gradient("dout", dout, out_shape, x.dtype).reshape(len(x), w.shape[1])
    dx, dw, db = np.empty_like(x), np.empty_like(w), np.empty(w.shape[1], w.dtype)
    kernels, work = backend.kernels_and_work()
    kernels.affine_backward(flat, x, w, dx, dw, db, work)
    return dx.reshape(x_shape), dw, db


def temporal_softmax_loss(
    x: ArrayLike, y: ArrayLike, mask: ArrayLike, verbose: bool = False
) -> tuple[float, Array]:
    """Softmax cross-entropy over a vocabulary at every step, summed over kept positions, divided by N.

    Takes scores x (N,T,V), targets y (N,T) in 0..V-1, and mask (N,T): booleans, or weights in 0..1. Targets
    where the mask is 0 do not matter. Returns the loss and dx (N,T,V); ``verbose`` prints dx's shape.
    Raises ``ValueError`` for N = 0 and for weights outside 0..1.
    """
    (x,), sizes = reals("x(N,T,V)", x)
    N, T, V = (sizes[letter] for letter in "NTV")
    if N == 0:
        raise ValueError("x: expected at least one sequence, got N=0")
    weights = real("mask", mask)
    targets = integers("y", y)
    for name, array in (("mask", weights), ("y", targets)):
        if array.shape != (N, T):
            raise ValueError(f"{name}: expected shape (N,T) = {(N, T)}, got {array.shape}")
    if not ((weights >= 0) & (weights <= 1)).all():
        raise ValueError(f"mask: expected booleans or weights in 0..1, got {weights.min()}..{weights.max()}")
    targets = tokens("y", np.where(weights != 0, targets, 0), V)
    weights = np.asarray(weights, x.dtype, order="C")
    dx = np.empty((N * T, V), x.dtype)
    kernels, work = backend.kernels_and_work()
    loss = kernels.softmax_loss(
        x.reshape(N * T, V), targets.reshape(-1), weights.reshape(-1), 1 / N, dx, work
    )
    if verbose:
        print("dx_flat: ", dx.shape)
    return loss, dx.reshape(N, T, V)
