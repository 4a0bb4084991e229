"""Packing sequences, and running the recurrent kernels over them: shared by the layers and the model."""

from typing import NamedTuple

import numpy as np

from fastrnn import backend
from fastrnn.arrays import Array, Memory, fresh_memory, in_one_piece


class Packed(NamedTuple):
    """Sequences sorted by length (longest first) and laid out step after step."""

    order: Array  # (N,) int64, the sequences from longest to shortest
    batch_sizes: Array  # (longest length,) int64, how many are alive at each step
    positions: Array  # (S,) int64, where packed row s stands in an array (N,T) that was flattened


def pack(lengths: Array, T: int) -> Packed:
    """Pack sequences of the given lengths (N,) out of arrays that are (N,T,...)."""
    order = np.argsort(-lengths, kind="stable")
    alive = np.arange(lengths.max(initial=0))[:, np.newaxis] < lengths[order]  # (longest,N)
    t, n = np.nonzero(alive)
    return Packed(order, alive.sum(axis=1), order[n] * T + t)


class Run(NamedTuple):
    """A recurrent layer's forward pass: all that backward needs. ``c0 c gates`` are None for an RNN.

    The rows of ``h0`` and ``c0`` are in sorted order; ``h c gates`` are packed.
    """

    x: Array  # (U,D)
    rows: Array  # (S,)
    batch_sizes: Array  # (T,)
    h0: Array  # (N,H)
    c0: Array | None  # (N,H)
    Wx: Array  # (D,mH), m = 1 for an RNN, 4 for an LSTM
    Wh: Array  # (H,mH)
    h: Array  # (S,H)
    c: Array | None  # (S,H)
    gates: Array | None  # (S,4H)


class Gradients(NamedTuple):
    """Gradients of a :class:`Run`; ``dc0`` is None for an RNN."""

    dx: Array  # (U,D)
    dh0: Array  # (N,H)
    dc0: Array | None  # (N,H)
    dWx: Array  # (D,mH)
    dWh: Array  # (H,mH)
    db: Array  # (mH,)


def forward(
    x: Array,
    rows: Array,
    batch_sizes: Array,
    h0: Array,
    c0: Array | None,
    Wx: Array,
    Wh: Array,
    b: Array,
    *,
    backward_follows: bool = True,
    memory: Memory = fresh_memory,
) -> Run:
    """Run an LSTM, or an RNN where ``c0`` is None, over packed sequences. What it makes is in ``memory``."""
    S, H = len(rows), h0.shape[1]
    kernels, work = backend.kernels_and_work()
    if c0 is None:
        (h,) = in_one_piece(memory, x.dtype, (S, H))
        kernels.rnn_forward(x, rows, batch_sizes, h0, Wx, Wh, b, h, work)
        return Run(x, rows, batch_sizes, h0, None, Wx, Wh, h, None, None)
    h, c, *more = in_one_piece(memory, x.dtype, (S, H), (S, H), *[(S, 4 * H)] * backward_follows)
    gates = more[0] if more else None
    kernels.lstm_forward(x, rows, batch_sizes, h0, c0, Wx, Wh, b, h, c, gates, work)
    return Run(x, rows, batch_sizes, h0, c0, Wx, Wh, h, c, gates)


def backward(
    dh: Array, dcT: Array | None, run: Run, weights: tuple[Array, Array, Array] | None = None
) -> Gradients:
    """Gradients from ``dh`` (S,H) and, for an LSTM, that of each last cell state ``dcT`` (N,H) or None.

    ``weights`` are the arrays for dWx, dWh and db; without them they are new.
    """
    dx, dh0 = np.empty_like(run.x), np.empty_like(run.h0)
    dWx, dWh, db = weights or (
        np.empty_like(run.Wx), np.empty_like(run.Wh), np.empty(run.Wx.shape[1], run.Wx.dtype)
    )  # fmt: skip
    kernels, work = backend.kernels_and_work()
    if run.c0 is None:
        kernels.rnn_backward(
            dh, run.x, run.rows, run.batch_sizes, run.h0, run.h, run.Wx, run.Wh, dx, dh0, dWx, dWh, db, work
        )
        return Gradients(dx, dh0, None, dWx, dWh, db)
    assert run.c is not None and run.gates is not None  # noqa: PT018
    dc0 = np.empty_like(run.c0)
    if dcT is None:
        dcT = np.zeros_like(run.c0)
    kernels.lstm_backward(
        dh, dcT, run.x, run.rows, run.batch_sizes, run.h0, run.c0, run.h, run.c, run.gates, run.Wx, run.Wh,
        dx, dh0, dc0, dWx, dWh, db, work,
    )  # fmt: skip
    return Gradients(dx, dh0, dc0, dWx, dWh, db)
