# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""The kernels in Numba: the same functions as ``numpy_kernels.py``, in the same order.

How a kernel here is built:

- What others call (``lstm_forward``) takes scratch from ``work`` and calls what is compiled
  (``_lstm_forward``).
- Products are BLAS's (``np.dot``), each on one thread. ``prange`` deals out blocks of hidden units or of
  rows. Blocks are the same for any number of threads and no two add to one place, so results are too.
- exp, tanh and sigma are polynomials without branches: LLVM makes vector instructions of loops over them.

Nothing is compiled before it is called. Every function exists for float32 and float64, with threads and
without; what was compiled is kept on disk, where ``use_cache`` allows it.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit, prange, types
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.extending import overload, register_jitable

from . import process
from .numpy_kernels import SCORES_BYTES, Array, make_work

__all__ = ["make_work"]

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and uncompiled these kernels would not end: unset it")

UNITS = 128  # hidden units of a block: wide enough for BLAS, and there are some for every thread
ROWS = 96  # rows of a block, about
DEPTH = 1024  # rows that a transposed product sums at a time: with thousands BLAS takes half as long again

# ---------------------------------------------------------------------------------------------------
# What computes: threads, compilation and its cache

_threads = 1
_operations = 2e6  # that are worth a thread
_cache_directory: Path | None = None
_announced = False


def set_num_threads(n: int, operations: float = 2e6) -> None:
    """Let the kernels run on up to n threads where there are so many operations for each."""
    global _threads, _operations
    _threads = min(n, numba.config.NUMBA_NUM_THREADS)
    _operations = operations


def get_num_threads() -> int:
    """How many threads the kernels run on at most."""
    return _threads if _threads > 1 and _may_thread() else 1


def _may_thread() -> bool:
    """Numba's threads do not survive a fork, and its layer "workqueue" ends the process when two call."""
    if process.is_fork_of_threads:
        return False
    try:
        numba.set_num_threads(_threads)  # of those that this thread starts
    except ValueError:  # no layer at all
        return False
    process.had_threads = True
    return bool(numba.threading_layer() != "workqueue")


def use_cache(directory: Path | None) -> None:
    """Keep what is compiled from here on in a directory; None: nowhere."""
    global _cache_directory
    _cache_directory = directory


class _Cache(NullCache):  # type: ignore[misc]
    """What Numba has compiled of a function, a file for every signature.

    Numba's own cache raises where its files are broken or the disk is full, writes beside the source where
    its directory is read-only, and lets processes that save at once mix up their files. What cannot be read
    here is compiled, and what cannot be written is not kept.
    """

    def __init__(self, name: str, threaded: bool) -> None:
        self.name, self.threaded = name, threaded
        self.notice = threading.Timer(0, _announce)

    def file(self, sig: Any, codegen: Any) -> Path | None:
        """Where it would be: the name depends on all that the machine code depends on."""
        if _cache_directory is None:
            return None
        key = (numba.__version__, _source(), self.name, self.threaded, str(sig), codegen.magic_tuple())
        return _cache_directory / f"{self.name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.nbc"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The machine code for a signature; None: Numba has to compile it, which is said if it takes long."""
        target_context.refresh()
        try:
            file = self.file(sig, target_context.codegen())
            if file is not None:
                return CompileResult._rebuild(target_context, *pickle.loads(file.read_bytes()))
        except Exception:  # not there, or whatever a broken file makes of it
            pass
        self.notice = threading.Timer(1.0, _announce)
        self.notice.daemon = True
        self.notice.start()
        return None

    def save_overload(self, sig: Any, compiled: Any) -> None:
        """Keep what was compiled; the file appears whole or not at all."""
        self.notice.cancel()
        file = self.file(sig, compiled.codegen)
        if file is None or compiled.lifted or compiled.library.has_dynamic_globals:
            return
        part = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(dumps(compiled._reduce()))
            part.replace(file)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()


@functools.cache
def _source() -> str:
    """What this file says, all functions of it."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


class _Kernel:
    """A function, compiled when it is first called with a real type, with threads or without."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.dispatchers = {threaded: self.dispatcher(threaded) for threaded in (False, True)}

    def __call__(self, operations: float, *arguments: Any) -> Any:
        threaded = operations >= 2 * _operations and _threads > 1 and _may_thread()
        return self.dispatchers[threaded](*(_as_compiled(a) for a in arguments))

    def dispatcher(self, threaded: bool) -> Any:
        compiled = njit(nogil=True, parallel=threaded, **_OPTIONS)(self.function)
        compiled._cache = _Cache(self.function.__name__, threaded)
        return compiled


def _as_compiled(a: Any) -> Any:
    """The same, but no array is read-only and every number is float64: for others Numba compiles anew."""
    if not isinstance(a, np.ndarray):
        return a if isinstance(a, bool) else float(a)
    if a.flags.writeable:
        return a
    return np.asarray(
        _Interface({**a.__array_interface__, "data": (a.__array_interface__["data"][0], False)}, a)
    )


class _Interface:
    def __init__(self, interface: dict[str, Any], owner: Array) -> None:
        self.__array_interface__, self.owner = interface, owner


def _announce() -> None:
    """Say, once, why nothing seems to happen."""
    global _announced
    if not _announced:
        _announced = True
        print(
            "fastrnn: Numba compiles kernels when they are first used; this takes some seconds",
            file=sys.stderr,
        )


_OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy"}
_inlined = register_jitable(**_OPTIONS)

# ---------------------------------------------------------------------------------------------------
# Elementary functions, without branches
#
# exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2. Adding and subtracting 1.5 * 2^23 (or 2^52)
# rounds to a whole number, which then stands in the low bits of the sum. The polynomial is Taylor's; it ends
# where the next term is below the precision. Arguments beyond the range of normal numbers stop at its ends; a
# NaN stays a NaN.


def _as(x, value):
    """value as a number of x's type: Numba would compute with float64 where float32 meets a constant."""


@overload(_as, jit_options=_OPTIONS)
def _overload_as(x, value):
    return (
        (lambda x, value: np.float32(value)) if x == types.float32 else (lambda x, value: np.float64(value))
    )


def _exp_parts(x):
    """scale = 2^n and exp(r) - 1, exact to the last digits for small r too."""


@overload(_exp_parts, jit_options=_OPTIONS)
def _overload_exp_parts(x):
    return _exp_parts_float32 if x == types.float32 else _exp_parts_float64


def _exp_parts_float32(x):
    n = x * np.float32(1.44269504088896340736) + np.float32(12582912.0)
    scale = np.int32((np.float32(n).view(np.int32) << 23) + 0x3F800000).view(np.float32)
    n -= np.float32(12582912.0)
    r = (x - n * np.float32(0.693145751953125)) - n * np.float32(1.42860682030941723212e-6)
    q = r * np.float32(1 / 5040) + np.float32(1 / 720)
    q = q * r + np.float32(1 / 120)
    q = q * r + np.float32(1 / 24)
    q = q * r + np.float32(1 / 6)
    q = q * r + np.float32(0.5)
    return scale, r + r * r * q


def _exp_parts_float64(x):
    n = x * 1.44269504088896340736 + 6755399441055744.0
    scale = np.int64((np.float64(n).view(np.int64) << 52) + 0x3FF0000000000000).view(np.float64)
    n -= 6755399441055744.0
    r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
    q = r * (1 / 6227020800) + 1 / 479001600
    q = q * r + 1 / 39916800
    q = q * r + 1 / 3628800
    q = q * r + 1 / 362880
    q = q * r + 1 / 40320
    q = q * r + 1 / 5040
    q = q * r + 1 / 720
    q = q * r + 1 / 120
    q = q * r + 1 / 24
    q = q * r + 1 / 6
    q = q * r + 0.5
    return scale, r + r * r * q


def _lowest(x):
    """Where exp has its smallest normal number."""


@overload(_lowest, jit_options=_OPTIONS)
def _overload_lowest(x):
    return (lambda x: np.float32(-87.33)) if x == types.float32 else (lambda x: -708.39)


@_inlined
def _between(x, low, high):
    x = low if x < low else x
    return high if x > high else x


@_inlined
def _exp(x):
    scale, p = _exp_parts(_between(x, _lowest(x), -_lowest(x)))
    return scale * p + scale


@_inlined
def _sigmoid(x):
    """1 / (1 + exp(-x))"""
    return _as(x, 1.0) / (_exp(-x) + _as(x, 1.0))


@_inlined
def _tanh(x):
    """e / (e + 2) with e = exp(2x) - 1, which keeps all digits of small x"""
    scale, p = _exp_parts(_between(x + x, _as(x, -40.0), _as(x, 40.0)))
    e = scale * p + (scale - _as(x, 1.0))
    return e / (e + _as(x, 2.0))


# ---------------------------------------------------------------------------------------------------
# Blocks
#
# Block j of H hidden units is the units first to last; a matrix "in blocks" keeps the columns of a block
# together, so that BLAS writes and reads contiguous memory. A block of rows is some 64 to 128 of them.


@_inlined
def _units(H, j):
    """The hidden units of block j of them."""
    return j * UNITS, min((j + 1) * UNITS, H)


@_inlined
def _unit_blocks(H):
    return (H + UNITS - 1) // UNITS


@_inlined
def _block(x, K, first, last):
    """Columns first to last of a matrix in blocks with K rows: a contiguous array (K,last - first)."""
    return x[K * first : K * last].reshape(K, last - first)


@_inlined
def _row_blocks(n):
    """How many blocks of rows n rows make: a multiple of four, so that threads get equal shares."""
    return min(n, (n + 4 * ROWS - 1) // (4 * ROWS) * 4)


@_inlined
def _rows(n, j):
    """The rows of block j of n of them."""
    return n * j // _row_blocks(n), n * (j + 1) // _row_blocks(n)


# Assignments to slices are loops in functions: among threads Numba drops some that it takes for unused.


@_inlined
def _copy(x, out):
    for u in range(len(out)):
        out[u] = x[u]


@_inlined
def _clear(out):
    for u in range(len(out)):
        out[u] = 0


@_inlined
def _add(x, y):
    for u in range(len(x)):
        x[u] += y[u]


@_inlined
def _copy_columns(x, first, last, out, start):
    """out[:, start:] = x[:, first:last], as far as that goes."""
    for r in range(len(x)):
        _copy(x[r, first:last], out[r, start : start + last - first])


@_inlined
def _times(x, W, out):
    """out = x W"""
    if len(x) == 1:  # BLAS does not have to pack W then
        np.dot(x[0], W, out[0])
    else:
        np.dot(x, W, out)


@_inlined
def _transposed_times(x, y, out, part, add):
    """out = x^T y, or out += x^T y; part is scratch of out's shape."""
    pieces = max((len(x) + DEPTH - 1) // DEPTH, 1)
    for piece in range(pieces):
        first, last = len(x) * piece // pieces, len(x) * (piece + 1) // pieces
        if add or piece > 0:
            np.dot(x[first:last].T, y[first:last], part)
            for r in range(len(out)):
                _add(out[r], part[r])
        else:
            np.dot(x[first:last].T, y[first:last], out)


def pack(W, gates, work):
    """W in blocks, the gates of a block side by side: a flat array to be passed in place of W."""
    blocks = work.array("packed", (W.size,), W.dtype)
    _pack(8.0 * W.size, W, gates, blocks)
    return blocks


@_Kernel
def _pack(W, gates, blocks):
    m = int(gates)  # whole numbers come as float64
    H = W.shape[1] // m
    for j in prange(_unit_blocks(H)):
        first, last = _units(H, j)
        mine = _block(blocks, len(W), m * first, m * last)
        for gate in range(m):
            _copy_columns(W, gate * H + first, gate * H + last, mine, gate * (last - first))


# ---------------------------------------------------------------------------------------------------
# Recurrent layers


def rnn_forward(x, rows, batch_sizes, h0, Wx, Wh, b, h, work):
    """a = x Wx + prev_h Wh + b,   h = tanh(a)"""
    U, (N, H) = len(x), h0.shape
    _rnn_forward(
        2.0 * (U * x.shape[1] + len(h) * H) * H, x, rows, batch_sizes, h0, Wx, pack(Wh, 1, work), b, h,
        work.array("ax", (U, H), h.dtype), work.array("a", (N * H,), h.dtype),
    )  # fmt: skip


@_Kernel
def _rnn_forward(x, rows, batch_sizes, h0, Wx, Wh, b, h, ax, a):
    H = h0.shape[1]
    for j in prange(_row_blocks(len(x))):  # 1
        first, last = _rows(len(x), j)
        _affine(x[first:last], Wx, b, ax[first:last])
    s = 0
    prev_h = h0
    for t in range(len(batch_sizes)):
        n = batch_sizes[t]
        for j in prange(_unit_blocks(H)):
            _rnn_units(j, ax, rows[s : s + n], prev_h[:n], Wh, h[s : s + n], a)
        prev_h = h[s : s + n]
        s += n


@_inlined
def _rnn_units(j, ax, rows, prev_h, Wh, h, a):
    """A step of the units of block j."""
    n, H = h.shape
    first, last = _units(H, j)
    mine = _block(a, n, first, last)
    _times(prev_h, _block(Wh, H, first, last), mine)  # 2
    for r in range(n):
        _activate(mine[r], ax[rows[r], first:last], h[r, first:last])  # 3


def rnn_backward(dh, x, rows, batch_sizes, h0, h, Wx, Wh, dx, dh0, dWx, dWh, db, work):
    """da = (dh + dprev_h of the next step) * (1 - h^2),   dprev_h = da Wh^T"""
    da = work.array("da", h.shape, h.dtype)
    flowing = work.array("flowing", (h0.size,), h.dtype)
    _rnn_backward(2.0 * h.size * h0.shape[1], dh, batch_sizes, h, Wh, da, flowing)
    _initial_gradient(da, Wh, batch_sizes, dh0, work)
    _weight_gradients(da, x, rows, batch_sizes, h0, h, Wx, dx, dWx, dWh, db, work)


@_Kernel
def _rnn_backward(dh, batch_sizes, h, Wh, da, flowing):
    H = h.shape[1]
    s, alive = len(h), 0  # alive: sequences that go on to the step after
    for t in range(len(batch_sizes) - 1, -1, -1):
        n = batch_sizes[t]
        s -= n
        for j in prange(_unit_blocks(H)):
            first, last = _units(H, j)
            dprev_h = _block(flowing, alive, first, last)
            np.dot(da[s + n : s + n + alive], Wh[first:last].T, dprev_h)  # 2
            for r in range(n):
                d = dh[s + r, first:last]
                if r < alive:
                    _add(dprev_h[r], d)
                    d = dprev_h[r]
                _activate_backward(d, h[s + r, first:last], da[s + r, first:last])  # 3
        alive = n


@_inlined
def _activate(a, b, out):
    """out = tanh(a + b), of some units. A loop has to begin at 0 for LLVM to make vectors of it."""
    for u in range(len(out)):
        out[u] = _tanh(a[u] + b[u])


@_inlined
def _activate_backward(dh, h, da):
    for u in range(len(da)):
        da[u] = dh[u] * (_as(h[u], 1.0) - h[u] * h[u])


def _initial_gradient(da, Wh, batch_sizes, dh0, work):
    """dh0 = da Wh^T of the first step, 0 for a sequence of length 0."""
    if dh0 is not None:
        flowing = work.array("flowing", (dh0.size,), dh0.dtype)
        _initial_gradient_of(2.0 * dh0.size * da.shape[1], da, Wh, batch_sizes, dh0, flowing)


@_Kernel
def _initial_gradient_of(da, Wh, batch_sizes, dh0, flowing):
    N, H = dh0.shape
    n = batch_sizes[0] if len(batch_sizes) > 0 else 0
    for j in prange(_unit_blocks(H)):
        first, last = _units(H, j)
        dprev_h = _block(flowing, n, first, last)
        np.dot(da[:n], Wh[first:last].T, dprev_h)
        for r in range(N):
            if r < n:
                _copy(dprev_h[r], dh0[r, first:last])
            else:
                _clear(dh0[r, first:last])


def lstm_forward(x, rows, batch_sizes, h0, c0, Wx, Wh, b, h, c, gates, work):
    """Long short-term memory.

    a = x Wx + prev_h Wh + b                    four blocks of H columns, one per gate
    i, f, o = sigma(a_i), sigma(a_f), sigma(a_o)
    g = tanh(a_g)
    c = f * prev_c + i * g
    h = o * tanh(c)
    """
    U, (N, H) = len(x), h0.shape
    _lstm_forward(
        8.0 * (U * x.shape[1] + len(h) * H) * H, x, rows, batch_sizes, h0, c0, Wx, pack(Wh, 4, work), b, h, c,
        _wanted(gates, Wh), work.array("ax", (U, 4 * H), h.dtype), work.array("a", (4 * N * H,), h.dtype),
    )  # fmt: skip


@_Kernel
def _lstm_forward(x, rows, batch_sizes, h0, c0, Wx, Wh, b, h, c, gates, ax, a):
    H = h0.shape[1]
    for j in prange(_row_blocks(len(x))):  # 1
        first, last = _rows(len(x), j)
        _affine(x[first:last], Wx, b, ax[first:last])
    s = 0
    prev_h, prev_c = h0, c0
    for t in range(len(batch_sizes)):
        n = batch_sizes[t]
        for j in prange(_unit_blocks(H)):
            _lstm_units(
                j, ax, rows[s : s + n], prev_h[:n], prev_c[:n], Wh, h[s : s + n], c[s : s + n],
                gates[s : s + n], a,
            )  # fmt: skip
        prev_h, prev_c = h[s : s + n], c[s : s + n]
        s += n


@_inlined
def _lstm_units(j, ax, rows, prev_h, prev_c, Wh, h, c, gates, a):
    """A step of the units of block j; gates may be empty."""
    n, H = h.shape
    first, last = _units(H, j)
    units = last - first
    mine = _block(a, n, 4 * first, 4 * last)
    _times(prev_h, _block(Wh, H, 4 * first, 4 * last), mine)  # 2
    for r in range(n):
        for gate in range(4):
            _add(_gate(mine[r], gate, units, 0, units), _gate(ax[rows[r]], gate, H, first, last))
        _cell(mine[r], prev_c[r, first:last], h[r, first:last], c[r, first:last])  # 3 4 5
        if len(gates) > 0:
            for gate in range(4):
                _copy(_gate(mine[r], gate, units, 0, units), _gate(gates[r], gate, H, first, last))


@_inlined
def _gate(row, gate, H, first, last):
    """One gate of the units first to last, in a row (4H)."""
    return row[gate * H + first : gate * H + last]


@_inlined
def _cell(a, prev_c, h, c):
    """The LSTM's cell update of some units; a (4 units) holds pre-activations before and gates after."""
    units = len(h)
    i, f = a[:units], a[units : 2 * units]
    o, g = a[2 * units : 3 * units], a[3 * units : 4 * units]
    for u in range(3 * units):
        a[u] = _sigmoid(a[u])
    for u in range(units):
        g[u] = _tanh(g[u])
    for u in range(units):
        c[u] = f[u] * prev_c[u] + i[u] * g[u]
    for u in range(units):
        h[u] = o[u] * _tanh(c[u])


def lstm_backward(
    dh, dcT, x, rows, batch_sizes, h0, c0, h, c, gates, Wx, Wh, dx, dh0, dc0, dWx, dWh, db, work
):
    """Gradients of lstm_forward.

    dc   = dc of the next step + dh * o * (1 - tanh(c)^2)
    da_i = dc * g * i * (1 - i)                 sigma' = sigma (1 - sigma)
    da_f = dc * prev_c * f * (1 - f)
    da_o = dh * tanh(c) * o * (1 - o)
    da_g = dc * i * (1 - g^2)                   tanh' = 1 - tanh^2
    dprev_c = dc * f
    dprev_h = da Wh^T
    """
    da = work.array("da", gates.shape, h.dtype)
    flowing = work.array("flowing", (h0.size,), h.dtype)
    dc = work.array("dc", c0.shape, h.dtype) if dc0 is None else dc0
    np.copyto(dc, dcT)
    _lstm_backward(8.0 * h.size * h0.shape[1], dh, batch_sizes, c0, c, gates, Wh, dc, da, flowing)
    _initial_gradient(da, Wh, batch_sizes, dh0, work)
    _weight_gradients(da, x, rows, batch_sizes, h0, h, Wx, dx, dWx, dWh, db, work)


@_Kernel
def _lstm_backward(dh, batch_sizes, c0, c, gates, Wh, dc, da, flowing):
    H = c0.shape[1]
    s, alive = len(c), 0  # alive: sequences that go on to the step after
    for t in range(len(batch_sizes) - 1, -1, -1):
        n = batch_sizes[t]
        s -= n
        prev_c = c0 if t == 0 else c[s - batch_sizes[t - 1] : s]
        for j in prange(_unit_blocks(H)):
            first, last = _units(H, j)
            dprev_h = _block(flowing, alive, first, last)
            np.dot(da[s + n : s + n + alive], Wh[first:last].T, dprev_h)  # 2
            for r in range(n):
                d = dh[s + r, first:last]
                if r < alive:
                    _add(dprev_h[r], d)
                    d = dprev_h[r]
                _cell_backward(
                    d,
                    dc[r, first:last],
                    prev_c[r, first:last],
                    c[s + r, first:last],
                    gates[s + r],
                    da[s + r],
                    H,
                    first,
                )
        alive = n


@_inlined
def _cell_backward(dh, dc, prev_c, c, gates, da, H, first):
    """da (4H) and dc of some units, from the first of them on."""
    units = len(dh)
    i, f = gates[first : first + units], gates[H + first : H + first + units]
    o, g = gates[2 * H + first : 2 * H + first + units], gates[3 * H + first : 3 * H + first + units]
    da_i, da_f = da[first : first + units], da[H + first : H + first + units]
    da_o, da_g = da[2 * H + first : 2 * H + first + units], da[3 * H + first : 3 * H + first + units]
    for u in range(units):
        one = _as(c[u], 1.0)
        tanh_c = _tanh(c[u])
        da_o[u] = dh[u] * tanh_c * o[u] * (one - o[u])  # 5
        dc[u] += dh[u] * o[u] * (one - tanh_c * tanh_c)
    for u in range(units):
        one = _as(c[u], 1.0)
        da_i[u] = dc[u] * g[u] * i[u] * (one - i[u])  # 4
        da_g[u] = dc[u] * i[u] * (one - g[u] * g[u])
    for u in range(units):
        one = _as(c[u], 1.0)
        da_f[u] = dc[u] * prev_c[u] * f[u] * (one - f[u])
        dc[u] *= f[u]


def _step_operations(x, W):
    """Of a product with packed weights. Reading one from memory takes as long as eight operations."""
    return (2.0 * len(x) + 8.0) * W.size


def rnn_step(a, rows, prev_h, Wh, h, work):
    """h = tanh(a[rows] + prev_h Wh)"""
    packed = pack(Wh, 1, work) if Wh.ndim == 2 else Wh
    scratch = work.array("a", (h.size,), h.dtype)
    _rnn_step(_step_operations(h, packed), a, rows, prev_h, packed, h, scratch)


@_Kernel
def _rnn_step(ax, rows, prev_h, Wh, h, a):
    for j in prange(_unit_blocks(h.shape[1])):
        _rnn_units(j, ax, rows, prev_h, Wh, h, a)


def lstm_step(a, rows, prev_h, prev_c, Wh, h, c, work):
    """One step of lstm_forward for decoding, its inputs a already projected."""
    packed = pack(Wh, 4, work) if Wh.ndim == 2 else Wh
    scratch = work.array("a", (4 * h.size,), h.dtype)
    _lstm_step(_step_operations(h, packed), a, rows, prev_h, prev_c, packed, h, c, scratch)


@_Kernel
def _lstm_step(ax, rows, prev_h, prev_c, Wh, h, c, a):
    for j in prange(_unit_blocks(h.shape[1])):
        _lstm_units(j, ax, rows, prev_h, prev_c, Wh, h, c, h[:0], a)


def _weight_gradients(da, x, rows, batch_sizes, h0, h, Wx, dx, dWx, dWh, db, work):
    """What is left of backward once the time loop has made da: one product over all steps for each.

    da_x = sum of da over the rows that read the same x
    dx = da_x Wx^T,   dWx = x^T da_x,   db = sum of da,   dWh = prev_h^T da
    """
    if dWh is not None:
        prev_h = work.array("prev_h", (h.size,), h.dtype)
        part = work.array("part", dWh.shape, h.dtype)
        _recurrent_gradient(2.0 * h.size * da.shape[1], da, batch_sizes, h0, h, prev_h, dWh, part)
    da_x = work.array("da_x", (len(x), da.shape[1]), h.dtype)
    embedding_backward(rows, da, da_x, work)
    affine_backward(da_x, x, Wx, dx, dWx, db, work)


@_Kernel
def _recurrent_gradient(da, batch_sizes, h0, h, prev_h, dWh, part):
    S, H = h.shape
    for j in prange(_unit_blocks(H)):
        first, last = _units(H, j)
        mine = _block(prev_h, S, first, last)
        s, before = 0, h0
        for t in range(len(batch_sizes)):
            n = batch_sizes[t]
            _copy_columns(before[:n], first, last, mine[s : s + n], 0)
            before = h[s : s + n]
            s += n
        _transposed_times(mine, da, dWh[first:last], part[first:last], False)  # 2: a = ax[rows] + prev_h Wh


def _wanted(out, like):
    """An output that may be None: then an empty array takes its place."""
    return np.empty((0, *like.shape[1:]), like.dtype) if out is None else out


# ---------------------------------------------------------------------------------------------------
# Affine layer and word embedding


def affine_forward(x, W, b, out, work):
    """out = x W + b"""
    if W.ndim == 2:
        _affine_forward(2.0 * x.size * len(b), x, W, b, out)
    else:
        _affine_forward_packed(
            _step_operations(x, W), x, W, b, out, work.array("out", (out.size,), out.dtype)
        )


@_Kernel
def _affine_forward(x, W, b, out):
    for j in prange(_row_blocks(len(x))):
        first, last = _rows(len(x), j)
        _affine(x[first:last], W, b, out[first:last])


@_Kernel
def _affine_forward_packed(x, W, b, out, blocks):
    n, K = x.shape
    for j in prange(_unit_blocks(len(b))):
        first, last = _units(len(b), j)
        mine = _block(blocks, n, first, last)
        _times(x, _block(W, K, first, last), mine)
        for r in range(n):
            _add(mine[r], b[first:last])
            _copy(mine[r], out[r, first:last])


@_inlined
def _affine(x, W, b, out):
    np.dot(x, W, out)
    for r in range(len(out)):
        _add(out[r], b)


def affine_backward(dout, x, W, dx, dW, db, work):
    """dx = dout W^T,   dW = x^T dout,   db = sum of dout over its rows"""
    columns = work.array("columns", (x.size,), x.dtype)
    _affine_backward(
        4.0 * x.size * dout.shape[1], dout, x, W, _wanted(dx, x), _wanted(dW, W),
        np.empty(0, x.dtype) if db is None else db, columns, work.array("part", W.shape, x.dtype),
    )  # fmt: skip


@_Kernel
def _affine_backward(dout, x, W, dx, dW, db, columns, part):
    M, D = x.shape
    if len(dx) > 0:
        for j in prange(_row_blocks(M)):
            first, last = _rows(M, j)
            np.dot(dout[first:last], W.T, dx[first:last])
    if len(dW) > 0:
        for j in prange(_unit_blocks(D)):
            first, last = _units(D, j)
            mine = _block(columns, M, first, last)
            _copy_columns(x, first, last, mine, 0)
            _transposed_times(mine, dout, dW[first:last], part[first:last], False)
    for j in prange(_unit_blocks(len(db))):
        first, last = _units(len(db), j)
        _sum_rows(dout[:, first:last], db[first:last])


@_inlined
def _sum_rows(x, out):
    """The sum of the rows, in their order."""
    _clear(out)
    for r in range(len(x)):
        for k in range(len(out)):
            out[k] += x[r, k]


def embedding_forward(tokens, W, out):
    """out[s] = W[tokens[s]]"""
    _embedding_forward(4.0 * out.size, tokens, W, out)


@_Kernel
def _embedding_forward(tokens, W, out):
    for j in prange(_row_blocks(len(tokens))):
        first, last = _rows(len(tokens), j)
        for s in range(first, last):
            _copy(W[tokens[s]], out[s])


def embedding_backward(tokens, dout, dW, work):
    """dW[v] = sum of dout[s] over the rows s with tokens[s] = v, in the order of the rows."""
    _embedding_backward(4.0 * (dout.size + dW.size), tokens, dout, dW)


@_Kernel
def _embedding_backward(tokens, dout, dW):
    """Threads own columns, so that no two add to the same place."""
    E = dW.shape[1]
    for j in prange(_unit_blocks(E)):
        first, last = _units(E, j)
        for v in range(len(dW)):
            _clear(dW[v, first:last])
        for s in range(len(tokens)):
            _add(dW[tokens[s], first:last], dout[s, first:last])


# ---------------------------------------------------------------------------------------------------
# Losses


def softmax_loss(scores, targets, mask, scale, dscores, work):
    """Masked softmax cross-entropy: scale * sum of mask * nll over the rows.

    p = exp(scores) / sum of exp(scores)
    nll = -log p[target]
    dscores = scale * mask * (p - onehot(target))
    """
    if dscores is None:
        dscores = work.array("dscores", scores.shape, scores.dtype)
    nll = work.array("nll", (len(scores),), np.float64)
    _softmax_loss(30.0 * scores.size, scores, targets, mask, scale, dscores, nll)
    return scale * _sum_in_order(nll)


@_Kernel
def _softmax_loss(scores, targets, mask, scale, dscores, nll):
    for j in prange(_row_blocks(len(scores))):
        first, last = _rows(len(scores), j)
        for s in range(first, last):
            nll[s] = 0
            if mask[s] != 0:
                _copy(scores[s], dscores[s])
                nll[s] = mask[s] * _softmax(dscores[s], targets[s], scale * mask[s])
            else:
                _clear(dscores[s])


@_inlined
def _softmax(scores, target, weight):
    """Turn a row of scores into weight * (p - onehot(target)); returns nll."""
    largest = scores[0]
    for v in range(len(scores)):
        largest = max(largest, scores[v])
    target_score = scores[target] - largest
    for v in range(len(scores)):
        scores[v] = _exp(scores[v] - largest)
    total = _as(largest, 0.0)
    for v in range(len(scores)):
        total += scores[v]
    factor = _as(largest, weight / total)
    for v in range(len(scores)):
        scores[v] *= factor
    scores[target] -= _as(largest, weight)
    return np.log(np.float64(total)) - target_score


def _sum_in_order(nll):
    return float(np.cumsum(nll)[-1]) if nll.size else 0.0


def vocab_loss(h, W, b, targets, mask, scale, dh, dW, db, work):
    """Vocabulary projection and softmax_loss in one: scores = h W + b.

    dh = dscores W^T,   dW = h^T dscores,   db = sum of dscores

    Works through chunks of rows, so the scores never exist as a whole; rows with weight 0 cost nothing.
    """
    H, V = W.shape
    kept = np.flatnonzero(mask)
    R = max(min(SCORES_BYTES // (V * W.itemsize), len(kept)), 1)
    nll = work.array("nll", (len(kept),), np.float64)
    for name, gradient in (("dh", dh), ("dW", dW), ("db", db)):
        if gradient is not None and (name == "dh" or len(kept) == 0):
            gradient.fill(0)
    scores = work.array("scores", (R, V), W.dtype)
    columns = work.array("columns", (R * H,), W.dtype)
    part = work.array("part", W.shape, W.dtype)
    h_kept, dh_kept = (work.array(name, (R, H), W.dtype) for name in ("h", "dh"))
    for start in range(0, len(kept), R):
        these = kept[start : start + R]
        _vocab_loss(
            6.0 * len(these) * H * V, h, W, b, targets, mask, scale, _wanted(dh, h), _wanted(dW, W),
            np.empty(0, W.dtype) if db is None else db, these, start > 0, nll[start : start + R],
            scores[: len(these)], columns, part, h_kept[: len(these)], dh_kept[: len(these)],
        )  # fmt: skip
    return scale * _sum_in_order(nll)


@_Kernel
def _vocab_loss(
    h, W, b, targets, mask, scale, dh, dW, db, kept, add, nll, scores, columns, part, h_kept, dh_kept
):
    n, H = h_kept.shape
    for j in prange(_row_blocks(n)):
        first, last = _rows(n, j)
        for k in range(first, last):
            _copy(h[kept[k]], h_kept[k])
        _affine(h_kept[first:last], W, b, scores[first:last])
        for k in range(first, last):
            s = kept[k]
            nll[k] = mask[s] * _softmax(scores[k], targets[s], scale * mask[s])  # scores are now dscores
        if len(dh) > 0:
            np.dot(scores[first:last], W.T, dh_kept[first:last])
            for k in range(first, last):
                _copy(dh_kept[k], dh[kept[k]])
    if len(dW) > 0:
        for j in prange(_unit_blocks(H)):
            first, last = _units(H, j)
            mine = _block(columns, n, first, last)
            _copy_columns(h_kept, first, last, mine, 0)
            _transposed_times(mine, scores, dW[first:last], part[first:last], add)
    for j in prange(_unit_blocks(len(db))):
        first, last = _units(len(db), j)
        if not add:
            _clear(db[first:last])
        for k in range(n):
            _add(db[first:last], scores[k, first:last])


# ---------------------------------------------------------------------------------------------------
# Optimisers: parameters and their state are updated in place, in one pass


def sgd(w, dw, learning_rate):
    """w -= learning_rate * dw"""
    _sgd(20.0 * w.size, w.reshape(-1), dw.reshape(-1), learning_rate)


@_Kernel
def _sgd(w, dw, learning_rate):
    for k in prange(len(w)):
        w[k] -= _as(w[k], learning_rate) * dw[k]


def sgd_momentum(w, dw, velocity, learning_rate, momentum):
    """velocity = momentum * velocity - learning_rate * dw,   w += velocity"""
    _sgd_momentum(20.0 * w.size, w.reshape(-1), dw.reshape(-1), velocity.reshape(-1), learning_rate, momentum)


@_Kernel
def _sgd_momentum(w, dw, velocity, learning_rate, momentum):
    for k in prange(len(w)):
        v = _as(w[k], momentum) * velocity[k] - _as(w[k], learning_rate) * dw[k]
        velocity[k] = v
        w[k] += v


def rmsprop(w, dw, cache, learning_rate, decay_rate, epsilon):
    """RMSProp (Tieleman and Hinton 2012).

    cache = decay_rate * cache + (1 - decay_rate) * dw^2
    w -= learning_rate * dw / (sqrt(cache) + epsilon)
    """
    _rmsprop(
        20.0 * w.size, w.reshape(-1), dw.reshape(-1), cache.reshape(-1), learning_rate, decay_rate, epsilon
    )


@_Kernel
def _rmsprop(w, dw, cache, learning_rate, decay_rate, epsilon):
    for k in prange(len(w)):
        v = _as(w[k], decay_rate) * cache[k] + _as(w[k], 1.0 - decay_rate) * dw[k] * dw[k]
        cache[k] = v
        w[k] -= _as(v, learning_rate) * dw[k] / (np.sqrt(v) + _as(v, epsilon))


def adam(w, dw, m, v, t, learning_rate, beta1, beta2, epsilon):
    """Adam (Kingma and Ba, ICLR 2015).

    m = beta1 * m + (1 - beta1) * dw
    v = beta2 * v + (1 - beta2) * dw^2
    w -= learning_rate * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)
    """
    _adam(
        20.0 * w.size, w.reshape(-1), dw.reshape(-1), m.reshape(-1), v.reshape(-1),
        learning_rate / (1 - beta1**t), 1 / (1 - beta2**t), beta1, beta2, epsilon,
    )  # fmt: skip


@_Kernel
def _adam(w, dw, m, v, step, scale, beta1, beta2, epsilon):
    for k in prange(len(w)):
        m_k = _as(w[k], beta1) * m[k] + _as(w[k], 1.0 - beta1) * dw[k]
        v_k = _as(w[k], beta2) * v[k] + _as(w[k], 1.0 - beta2) * dw[k] * dw[k]
        m[k], v[k] = m_k, v_k
        w[k] -= _as(w[k], step) * m_k / (np.sqrt(v_k * _as(w[k], scale)) + _as(w[k], epsilon))
