# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The kernels in Cython: the same functions as ``numpy_kernels.py``, in the same order.

How a kernel here is built:

- Products run on *panels* (``lanes.h``): the columns of a matrix, a few side by side, all their rows contiguous.
  Weights are packed into panels once per call, activations are written as panels where a product follows.
- A kernel is a function that every thread of a team calls (``_name``). Each thread owns a share of the
  *panels*, never of a sum, so results do not depend on the number of threads; ``wait_for_team`` is the only meeting.
- The gates of a hidden unit stand together: for LANES units, panel 2u holds i and f, panel 2u+1 holds o and g. So the
  cell is updated while their pre-activations are in the cache, and they never travel to memory.
"""

import numpy as np

from . import process

from cython.parallel cimport parallel, threadid
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

cimport numpy as cnp

cnp.import_array()

cdef extern from "isa.h" nogil:
    struct origin:
        const void *panel
        const int64_t *rows
    struct place:
        void *x
        long ld, second, width0, width1
        int add
    struct lines:
        long next, count
    struct lanes:
        const char *isa
        long count
        long rows
        void (*tile)(long m, long K, const void *a, long lda, const void *b, long ldb, long second,
                     const origin *begin, const place *to, lines *soon) noexcept nogil
        void (*tile_of_panels)(long m, long panels, const void *a, long a_step, const void *b,
                               const origin *begin, const place *to, lines *soon) noexcept nogil
        void (*tile_of_columns)(long m, long K, const void *a, const void *b, const origin *begin,
                                const place *to) noexcept nogil
        void (*pack_panel)(long K, const void *w, long ldw, long second, long width0, long width1,
                           void *panel) noexcept nogil
        void (*pack_transposed)(long K, const void *w, long ldw, long columns, void *panel) noexcept nogil
        void (*pack_columns)(long K, const void *a, long lda, long m, void *packed) noexcept nogil
        void (*scatter_add_rows)(long n, const void *panel, const int64_t *rows, void *out) noexcept nogil
        void (*sum_rows)(long n, const void *panel, void *sum) noexcept nogil
        void (*put_rows)(long m, const void *acc, void *x, long ldx, long second, long width0, long width1,
                         int add) noexcept nogil
        void (*lstm_cell)(long m, long width, const void *a_if, void *a_og, const void *prev_c, void *h, void *c,
                       void *gates, long ld) noexcept nogil
        void (*lstm_cell_backward)(long m, long width, const void *dh, const void *flowing, long flowing_ld,
                                const void *prev_c, const void *c, const void *gates, void *dc, void *da_if,
                                void *da_og, long ld) noexcept nogil
        void (*rnn_cell)(long m, long width0, long width1, const void *a, void *h, long ld) noexcept nogil
        void (*rnn_cell_backward)(long m, long width0, long width1, const void *dh, const void *flowing,
                               const void *h, void *da, long ld) noexcept nogil
        double (*softmax_row)(long V, long piece, long step, void *scores, int64_t target, double weight) noexcept nogil
        void (*sgd)(long n, void *w, const void *dw, double rate) noexcept nogil
        void (*sgd_momentum)(long n, void *w, const void *dw, void *velocity, double rate,
                             double momentum) noexcept nogil
        void (*rmsprop)(long n, void *w, const void *dw, void *cache, double rate, double decay,
                        double eps) noexcept nogil
        void (*adam)(long n, void *w, const void *dw, void *m, void *v, double rate, double beta1, double beta2,
                  double eps, double correction1, double correction2) noexcept nogil
    const lanes **usable_lanes(int reals_are_float)
    void expect_rows(lines *soon, long m, const void *x, long stride, long bytes)

cdef extern from "threads.h" nogil:
    int HAS_THREADS
    int team_size()
    void wait_for_team()
    unsigned flush_denormals()
    void restore_denormals(unsigned before)

ctypedef fused real:
    float
    double

cdef enum:
    TILE_BYTES = 13 * 128  # the largest tile of any instruction set


# ---------------------------------------------------------------------------------------------------
# What computes: instruction set, threads, scratch

cdef int _threads = 1
cdef double _operations = 2e6  # that are worth a thread
cdef int _isa = -1  # index in usable_lanes


def instruction_sets():
    """The instruction sets that this build has and this CPU can run, the best last."""
    cdef const lanes **usable = usable_lanes(1)
    names = []
    while usable[len(names)] != NULL:
        names.append(usable[len(names)].isa.decode())
    return tuple(names)


def set_instruction_set(name):
    """Compute with one of :func:`instruction_sets`; tests force each in turn."""
    global _isa
    _isa = instruction_sets().index(name)


def get_instruction_set():
    """The name of the instruction set in use."""
    return instruction_sets()[_isa]


def set_num_threads(int n, double operations=2e6):
    """Let the kernels run on up to n threads, one for so many operations. Without OpenMP it is always one."""
    global _threads, _operations
    _threads = n if HAS_THREADS else 1
    _operations = operations


def get_num_threads():
    """How many threads the kernels run on at most."""
    return 1 if process.is_fork_of_threads else _threads


_isa = len(instruction_sets()) - 1


cdef enum:
    READING = 16  # operations that take the time of reading a number from memory


cdef int team_for(double operations):
    """How many threads so many floating-point operations are worth."""
    cdef double worth = operations / _operations
    if worth < 2 or _threads == 1 or process.is_fork_of_threads:
        return 1
    process.had_threads = True
    return _threads if worth > _threads else <int>worth


cdef class Work:
    """Scratch memory, kept from call to call so that it is not paged in anew each time."""

    cdef object memory

    cdef void *reserve(self, size_t nbytes):
        """So many bytes at a multiple of 64."""
        cdef size_t start
        if self.memory is None or len(self.memory) < nbytes + 64:
            self.memory = None
            self.memory = np.empty(nbytes + nbytes // 16 + 64, np.uint8)  # batches vary
        start = <size_t>cnp.PyArray_DATA(<cnp.ndarray>self.memory)
        return <void *>((start + 63) // 64 * 64)


def make_work():
    """Scratch for the functions below. One thread at a time may use it."""
    return Work()


cdef inline const lanes *lanes_for(cnp.ndarray a):
    return usable_lanes(cnp.PyArray_ITEMSIZE(a) == 4)[_isa]


cdef inline void *data(cnp.ndarray a):
    """Where the elements are; NULL for None."""
    return NULL if a is None else cnp.PyArray_DATA(a)


cdef inline long dim(cnp.ndarray a, int axis):
    return cnp.PyArray_DIM(a, axis)


# ---------------------------------------------------------------------------------------------------
# Panels and products

cdef struct Columns:
    # Where the two halves of a panel stand in a matrix
    long start
    long second  # from the first half to the second
    long width0
    long width1


cdef inline long panels_of(const lanes *on, long H, long gates) noexcept nogil:
    """How many panels H hidden units with so many gates make; a plain matrix has H columns and 1 gate."""
    if gates == 4:
        return 2 * ((H + on.count - 1) // on.count)
    return (H + 2 * on.count - 1) // (2 * on.count)


cdef inline Columns columns_of(const lanes *on, long H, long gates, long p) noexcept nogil:
    """The columns of panel p in a matrix with blocks of H columns, one for each gate."""
    cdef Columns c
    cdef long unit
    if gates == 4:
        unit = p // 2 * on.count
        c.start = p % 2 * 2 * H + unit
        c.second = H
        c.width0 = c.width1 = min(on.count, H - unit)
    else:
        c.start = p * 2 * on.count
        c.second = on.count
        c.width0 = min(on.count, H - c.start)
        c.width1 = min(on.count, H - c.start - on.count)
    return c


cdef inline place place_of(void *x, long ld, Columns c, bint add) noexcept nogil:
    """The first of some rows of a matrix, the columns of a panel."""
    cdef place to
    to.x, to.ld, to.second, to.width0, to.width1, to.add = x, ld, c.second, c.width0, c.width1, add
    return to


cdef inline place place_in_panel(const lanes *on, void *x) noexcept nogil:
    """The first of some rows of a panel."""
    cdef place to
    to.x, to.ld, to.second, to.width0, to.width1, to.add = x, 2 * on.count, on.count, on.count, on.count, False
    return to


cdef inline origin start_with(void *panel, int64_t *rows) noexcept nogil:
    cdef origin begin
    begin.panel, begin.rows = panel, rows
    return begin


cdef inline long first_of(long n, int member, int team) noexcept nogil:
    """Where the share of a team's member begins; that of the next member is where it ends."""
    return n * member // team


cdef inline long tiles_of(const lanes *on, long n) noexcept nogil:
    return (n + on.rows - 1) // on.rows


cdef void pack_panels(
    const lanes *on, real *W, long K, long H, long gates, long first, long last, real *panels
) noexcept nogil:
    """Panels first to last of a matrix W (K, gates H)."""
    cdef long p, size = K * 2 * on.count
    cdef Columns c
    for p in range(first, last):
        c = columns_of(on, H, gates, p)
        on.pack_panel(K, W + c.start, gates * H, c.second, c.width0, c.width1, panels + p * size)


cdef void pack_transposed(
    const lanes *on, real *W, long K, long H, long gates, long first, long last, real *panels
) noexcept nogil:
    """Panels first to last of W^T, W (K, gates H): its columns are W's rows, its rows stand as in W's panels."""
    cdef long p, q, j, n, PANEL = 2 * on.count, P = panels_of(on, H, gates)
    cdef Columns c
    cdef real *at
    for q in range(first, last):
        n = min(PANEL, K - q * PANEL)
        for p in range(P):
            c = columns_of(on, H, gates, p)
            at = panels + (q * P + p) * PANEL * PANEL
            on.pack_transposed(max(c.width0, 0), W + q * PANEL * gates * H + c.start, gates * H, n, at)
            on.pack_transposed(
                max(c.width1, 0), W + q * PANEL * gates * H + c.start + c.second, gates * H, n, at + on.count * PANEL
            )


cdef void pack_left(const lanes *on, real *a, long K, long M, long first, long last, real *packed) noexcept nogil:
    """Tiles first to last of a (K,M) as the left operand of a^T B."""
    cdef long i, r, m, tiles = tiles_of(on, M)
    for i in range(first, last):
        r = first_of(M, i, tiles)
        m = first_of(M, i + 1, tiles) - r
        on.pack_columns(K, a + r, M, m, packed + r * K)


cdef enum:
    GROUP_BYTES = 1 << 19  # of panels that are multiplied with the same rows while these are in the cache
    GROUP = 16  # such panels at most
    DEPTH = 2048  # rows of panels that are summed at a time


cdef inline long group_of(const lanes *on, long rows, long size) noexcept nogil:
    """How many panels, of so many rows of reals of that size, are a group."""
    return max(min(GROUP_BYTES // (max(rows, 1) * 2 * on.count * size), GROUP), 1)


cdef void project(
    const lanes *on, real *x, long M, long D, real *W, real *b, long H, long gates, long first, long last, real *out
) noexcept nogil:
    """Panels first to last of x (M,D) W + b; W and out are panels, b (gates H) is not."""
    cdef long g, group, p, i, r, m, PANEL = 2 * on.count, tiles = tiles_of(on, M)
    cdef long each = group_of(on, D, sizeof(real))
    cdef char bias[GROUP * 128]
    cdef Columns c
    cdef origin begin
    cdef place to
    for g in range((last - first + each - 1) // each):
        group = first + g * each
        for p in range(group, min(group + each, last)):
            c = columns_of(on, H, gates, p)
            on.pack_panel(1, b + c.start, 0, c.second, c.width0, c.width1, <real *>bias + (p - group) * PANEL)
        for i in range(tiles):
            r = first_of(M, i, tiles)
            m = first_of(M, i + 1, tiles) - r
            for p in range(group, min(group + each, last)):
                begin = start_with(<real *>bias + (p - group) * PANEL, NULL)
                to = place_in_panel(on, out + (p * M + r) * PANEL)
                on.tile(m, D, x + r * D, D, W + p * D * PANEL, PANEL, on.count, &begin, &to, NULL)


cdef void times_transposed(
    const lanes *on, real *a, long M, long P, real *WT, long K, long first, long last, real *out, int64_t *at
) noexcept nogil:
    """Columns of panels first to last of a W^T: a (M,.) is P panels, WT is packed by pack_transposed, out (.,K) is not.

    Row r of the product becomes row at[r] of out, row r where at is NULL.
    """
    cdef long g, group, q, i, r, j, m, PANEL = 2 * on.count, tiles = tiles_of(on, M)
    cdef long each = group_of(on, P * PANEL, sizeof(real))
    cdef char rows[TILE_BYTES]
    cdef Columns c
    cdef origin begin = start_with(NULL, NULL)
    cdef place to
    for g in range((last - first + each - 1) // each):
        group = first + g * each
        for i in range(tiles):
            r = first_of(M, i, tiles)
            m = first_of(M, i + 1, tiles) - r
            for q in range(group, min(group + each, last)):
                c = columns_of(on, K, 1, q)
                to = place_of(out + r * K + c.start, K, c, False) if at == NULL else place_in_panel(on, rows)
                on.tile_of_panels(m, P, a + r * PANEL, M * PANEL, WT + q * P * PANEL * PANEL, &begin, &to, NULL)
                if at != NULL:
                    for j in range(m):
                        on.put_rows(
                            1, <real *>rows + j * PANEL, out + at[r + j] * K + c.start, K, c.second, c.width0,
                            c.width1, 0,
                        )


cdef void transposed_times(
    const lanes *on, real *left, long M, long K, real *b, long H, long gates, long first, long last, real *out, bint add
) noexcept nogil:
    """Columns of panels first to last of a^T B: left is a (K,M) packed by pack_left, B is panels, out (M, gates H) not.

    In parts of at most DEPTH rows of B, so that those of a group of panels stay in the cache.
    """
    cdef long g, group, part, p, i, r, m, k, depth, PANEL = 2 * on.count, tiles = tiles_of(on, M)
    cdef long parts = max((K + DEPTH - 1) // DEPTH, 1), each = group_of(on, K // parts, sizeof(real))
    cdef Columns c
    cdef origin begin = start_with(NULL, NULL)
    cdef place to
    for g in range((last - first + each - 1) // each):
        group = first + g * each
        for part in range(parts):
            k = first_of(K, part, parts)
            depth = first_of(K, part + 1, parts) - k
            for i in range(tiles):
                r = first_of(M, i, tiles)
                m = first_of(M, i + 1, tiles) - r
                for p in range(group, min(group + each, last)):
                    c = columns_of(on, H, gates, p)
                    to = place_of(out + r * gates * H + c.start, gates * H, c, add or part > 0)
                    on.tile_of_columns(
                        m, depth, left + r * K + k * m, b + (p * K + k) * PANEL, &begin, &to
                    )


# ---------------------------------------------------------------------------------------------------
# Recurrent layers

cdef struct Layer:
    # The arguments of a recurrent kernel
    const lanes *on
    long size  # of a real, in bytes
    long gates  # 4 for an LSTM, 1 for an RNN
    long U, D, N, T, S, H
    int64_t *rows
    int64_t *batch_sizes
    void *x
    void *h0
    void *c0
    void *Wx
    void *Wh
    void *b
    void *h
    void *c
    void *activations  # the LSTM's gates
    void *dh
    void *dcT
    void *dx
    void *dh0
    void *dc0
    void *dWx
    void *dWh
    void *db


cdef Layer layer_of(
    cnp.ndarray x, cnp.ndarray rows, cnp.ndarray batch_sizes, cnp.ndarray h0, cnp.ndarray c0, cnp.ndarray Wx,
    cnp.ndarray Wh
):
    cdef Layer layer
    memset(&layer, 0, sizeof(Layer))
    layer.on, layer.size = lanes_for(x), cnp.PyArray_ITEMSIZE(x)
    layer.gates = dim(Wh, 1) // dim(Wh, 0)
    layer.U, layer.D, layer.N, layer.H = dim(x, 0), dim(x, 1), dim(h0, 0), dim(h0, 1)
    layer.T, layer.S = dim(batch_sizes, 0), dim(rows, 0)
    layer.rows, layer.batch_sizes = <int64_t *>data(rows), <int64_t *>data(batch_sizes)
    layer.x, layer.h0, layer.c0, layer.Wx, layer.Wh = data(x), data(h0), data(c0), data(Wx), data(Wh)
    return layer


def rnn_forward(
    cnp.ndarray x, cnp.ndarray rows, cnp.ndarray batch_sizes, cnp.ndarray h0, cnp.ndarray Wx, cnp.ndarray Wh,
    cnp.ndarray b, cnp.ndarray h, Work work
):
    """a = x Wx + prev_h Wh + b,   h = tanh(a)"""
    cdef Layer layer = layer_of(x, rows, batch_sizes, h0, None, Wx, Wh)
    layer.b, layer.h = data(b), data(h)
    _run_forward(&layer, work)


def lstm_forward(
    cnp.ndarray x, cnp.ndarray rows, cnp.ndarray batch_sizes, cnp.ndarray h0, cnp.ndarray c0, cnp.ndarray Wx,
    cnp.ndarray Wh, cnp.ndarray b, cnp.ndarray h, cnp.ndarray c, cnp.ndarray gates, Work work
):
    """Long short-term memory.

    a = x Wx + prev_h Wh + b                    four blocks of H columns, one per gate
    i, f, o = sigma(a_i), sigma(a_f), sigma(a_o)
    g = tanh(a_g)
    c = f * prev_c + i * g
    h = o * tanh(c)
    """
    cdef Layer layer = layer_of(x, rows, batch_sizes, h0, c0, Wx, Wh)
    layer.b, layer.h, layer.c, layer.activations = data(b), data(h), data(c), data(gates)
    _run_forward(&layer, work)


cdef void _run_forward(Layer *layer, Work work):
    cdef long columns = panels_of(layer.on, layer.H, layer.gates) * 2 * layer.on.count
    cdef void *scratch = work.reserve(columns * (layer.D + layer.H + layer.U) * layer.size)
    cdef int threads = team_for(2.0 * columns * (layer.U * layer.D + layer.S * layer.H))
    cdef unsigned before
    with nogil, parallel(num_threads=threads):
        before = flush_denormals()
        if layer.size == 4:
            _forward(layer, <float *>scratch, threadid(), team_size())
        else:
            _forward(layer, <double *>scratch, threadid(), team_size())
        restore_denormals(before)


cdef void _forward(Layer *layer, real *scratch, int me, int team) noexcept nogil:
    """Share of a recurrent layer's forward pass: every step of some hidden units.

    LSTM and RNN differ in the gates of a unit and in the cell; rnn_forward and lstm_forward of numpy_kernels.py have
    the equations.
    """
    cdef const lanes *on = layer.on
    cdef long gates = layer.gates, U = layer.U, D = layer.D, H = layer.H, LANES = on.count, PANEL = 2 * LANES
    cdef long P = panels_of(on, H, gates), pair = 2 if gates == 4 else 1
    cdef long first = first_of(P // pair, me, team) * pair, last = first_of(P // pair, me + 1, team) * pair
    cdef real *Wx = scratch
    cdef real *Wh = Wx + P * D * PANEL
    cdef real *ax = Wh + P * H * PANEL
    cdef real *prev_h = <real *>layer.h0
    cdef real *prev_c = <real *>layer.c0
    cdef real *h = <real *>layer.h
    cdef real *c = <real *>layer.c
    cdef real *activations = <real *>layer.activations
    cdef int64_t *rows = layer.rows
    cdef char acc[2 * TILE_BYTES]
    cdef real *a = <real *>acc
    cdef origin begin
    cdef place to
    cdef lines soon
    cdef long t, k, q, p, i, r, m, n, half, tiles, unit
    cdef long row = H * layer.size, width = PANEL // pair * layer.size
    pack_panels(on, <real *>layer.Wx, D, H, gates, first, last, Wx)
    pack_panels(on, <real *>layer.Wh, H, H, gates, first, last, Wh)
    project(on, <real *>layer.x, U, D, Wx, <real *>layer.b, H, gates, first, last, ax)  # 1
    for t in range(layer.T):
        n = layer.batch_sizes[t]
        tiles = tiles_of(on, n)
        for k in range((last - first) // pair):
            q = last // pair - 1 - k if t % 2 else first // pair + k  # to and fro: the last panels are in the cache
            p = q * pair
            unit = q * (PANEL if gates == 1 else LANES)
            for i in range(tiles):
                r = first_of(n, i, tiles)
                m = first_of(n, i + 1, tiles) - r
                soon.next = soon.count = 0
                expect_rows(&soon, m, h + r * H + unit, row, width)
                if gates == 4:
                    expect_rows(&soon, m, c + r * H + unit, row, width)
                    if activations != NULL:
                        expect_rows(&soon, 4 * m, activations + r * 4 * H + unit, row, width)
                for half in range(pair):  # 2
                    begin = start_with(ax + (p + half) * U * PANEL, rows + r)
                    to = place_in_panel(on, a + half * m * PANEL)
                    on.tile(m, H, prev_h + r * H, H, Wh + (p + half) * H * PANEL, PANEL, LANES, &begin, &to, &soon)
                if gates == 4:  # 3 4 5
                    on.lstm_cell(
                        m, min(LANES, H - unit), a, a + m * PANEL, prev_c + r * H + unit, h + r * H + unit,
                        c + r * H + unit, NULL if activations == NULL else activations + r * 4 * H + unit, H,
                    )
                else:  # 3
                    on.rnn_cell(m, min(LANES, H - unit), min(LANES, H - unit - LANES), a, h + r * H + unit, H)
        prev_h = h
        prev_c = c
        h = h + n * H
        rows = rows + n
        if gates == 4:
            c = c + n * H
            if activations != NULL:
                activations = activations + n * 4 * H
        wait_for_team()


def rnn_backward(
    cnp.ndarray dh, cnp.ndarray x, cnp.ndarray rows, cnp.ndarray batch_sizes, cnp.ndarray h0, cnp.ndarray h,
    cnp.ndarray Wx, cnp.ndarray Wh, cnp.ndarray dx, cnp.ndarray dh0, cnp.ndarray dWx, cnp.ndarray dWh, cnp.ndarray db,
    Work work
):
    """da = (dh + dprev_h of the next step) * (1 - h^2),   dprev_h = da Wh^T"""
    cdef Layer layer = layer_of(x, rows, batch_sizes, h0, None, Wx, Wh)
    layer.h, layer.dh = data(h), data(dh)
    layer.dx, layer.dh0, layer.dWx, layer.dWh, layer.db = data(dx), data(dh0), data(dWx), data(dWh), data(db)
    _run_backward(&layer, work)


def lstm_backward(
    cnp.ndarray dh, cnp.ndarray dcT, cnp.ndarray x, cnp.ndarray rows, cnp.ndarray batch_sizes, cnp.ndarray h0,
    cnp.ndarray c0, cnp.ndarray h, cnp.ndarray c, cnp.ndarray gates, cnp.ndarray Wx, cnp.ndarray Wh, cnp.ndarray dx,
    cnp.ndarray dh0, cnp.ndarray dc0, cnp.ndarray dWx, cnp.ndarray dWh, cnp.ndarray db, Work work
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
    cdef Layer layer = layer_of(x, rows, batch_sizes, h0, c0, Wx, Wh)
    layer.h, layer.c, layer.activations, layer.dh, layer.dcT = data(h), data(c), data(gates), data(dh), data(dcT)
    layer.dx, layer.dh0, layer.dWx, layer.dWh, layer.db = data(dx), data(dh0), data(dWx), data(dWh), data(db)
    layer.dc0 = data(dc0)
    _run_backward(&layer, work)


cdef void _run_backward(Layer *layer, Work work):
    cdef long PANEL = 2 * layer.on.count
    cdef long columns = panels_of(layer.on, layer.H, layer.gates) * PANEL
    cdef long panels = panels_of(layer.on, layer.H, 1) + panels_of(layer.on, layer.D, 1)
    cdef void *scratch = work.reserve(
        (
            columns * (panels * PANEL + layer.S + layer.U)
            + layer.S * layer.H + layer.U * layer.D + layer.N * layer.H
        ) * layer.size
    )
    cdef int threads = team_for(4.0 * columns * (layer.U * layer.D + layer.S * layer.H))
    cdef unsigned before
    with nogil, parallel(num_threads=threads):
        before = flush_denormals()
        if layer.size == 4:
            _backward(layer, <float *>scratch, threadid(), team_size())
        else:
            _backward(layer, <double *>scratch, threadid(), team_size())
        restore_denormals(before)


cdef void _backward(Layer *layer, real *scratch, int me, int team) noexcept nogil:
    """Share of a recurrent layer's backward pass; the equations are in numpy_kernels.py.

    Back through time a member owns hidden units: it makes their part of da, which all need for the product with
    Wh^T, so there is one meeting a step. The gradients of weights and inputs are products over all steps, after it.
    """
    cdef const lanes *on = layer.on
    cdef long gates = layer.gates, U = layer.U, D = layer.D, H = layer.H, S = layer.S
    cdef long LANES = on.count, PANEL = 2 * LANES
    cdef long P = panels_of(on, H, gates), Q = panels_of(on, H, 1), QD = panels_of(on, D, 1)
    cdef long first = first_of(Q, me, team), last = first_of(Q, me + 1, team)
    cdef real *WhT = scratch  # (Q,P PANEL,PANEL)
    cdef real *WxT = WhT + Q * P * PANEL * PANEL  # (QD,P PANEL,PANEL)
    cdef real *da = WxT + QD * P * PANEL * PANEL  # (P,S,PANEL)
    cdef real *da_x = da + P * S * PANEL  # (P,U,PANEL)
    cdef real *left_h = da_x + P * U * PANEL  # (S,H)
    cdef real *left_x = left_h + S * H  # (U,D)
    cdef real *dc = <real *>layer.dc0
    cdef real *dh0 = <real *>layer.dh0
    cdef real *dcT = <real *>layer.dcT
    cdef real *h = <real *>layer.h
    cdef real *prev_h
    cdef real *prev_c
    cdef char acc[TILE_BYTES]
    cdef real *flowing = <real *>acc
    cdef long t, g, group, q, p, i, r, m, n, s, at, alive, tiles, start
    cdef long row = H * layer.size, width = PANEL * layer.size
    cdef long each = group_of(on, P * PANEL, sizeof(real)), groups = (last - first + each - 1) // each
    cdef Columns columns
    cdef origin begin = start_with(NULL, NULL)
    cdef place to = place_in_panel(on, flowing)
    cdef lines soon
    if dc == NULL:
        dc = left_x + U * D  # (N,H)
    pack_transposed(on, <real *>layer.Wh, H, H, gates, first, last, WhT)
    if gates == 4:
        start = min(first * PANEL, H)
        for r in range(layer.N):
            memcpy(dc + r * H + start, dcT + r * H + start, (min(last * PANEL, H) - start) * sizeof(real))
    s = S
    alive = 0  # sequences that go on to step t + 1
    for t in range(layer.T - 1, -2, -1):
        # da of step t, from the product of da of step t + 1 with Wh^T; step -1 is h0
        n = layer.batch_sizes[t] if t >= 0 else layer.N
        s = s - n if t >= 0 else 0
        if t < 0 and dh0 == NULL:
            break
        for g in range(groups):
            group = first + (groups - 1 - g if t % 2 else g) * each
            tiles = tiles_of(on, alive)
            for i in range(tiles):
                r = first_of(alive, i, tiles)
                m = first_of(alive, i + 1, tiles) - r
                for q in range(group, min(group + each, last)):
                    soon.next = soon.count = 0
                    if t >= 0:
                        at = (s + r) * H + q * PANEL
                        expect_rows(&soon, m, <real *>layer.dh + at, row, width)
                        if gates == 4:
                            prev_c = _prev_c(layer, t, s, <real *>layer.c0)
                            expect_rows(&soon, m, prev_c + r * H + q * PANEL, row, width)
                            expect_rows(
                                &soon, 4 * m, <real *>layer.activations + (s + r) * 4 * H + q * PANEL, row, width
                            )
                        else:
                            expect_rows(&soon, m, <real *>layer.h + at, row, width)
                    on.tile_of_panels(
                        m, P, da + (s + n + r if t >= 0 else r) * PANEL, S * PANEL, WhT + q * P * PANEL * PANEL,
                        &begin, &to, &soon,
                    )
                    _step_backward(layer, t, s, r, m, q, flowing, dc, da)
            tiles = tiles_of(on, n - alive)
            for i in range(tiles):
                r = alive + first_of(n - alive, i, tiles)
                m = alive + first_of(n - alive, i + 1, tiles) - r
                for q in range(group, min(group + each, last)):
                    _step_backward(layer, t, s, r, m, q, <real *>NULL, dc, da)
        alive = n
        wait_for_team()
    # what follows owns panels of all gates
    first = first_of(P, me, team)
    last = first_of(P, me + 1, team)
    if layer.dWh != NULL:
        tiles = tiles_of(on, H)
        for i in range(first_of(tiles, me, team), first_of(tiles, me + 1, team)):
            r = first_of(H, i, tiles)
            m = first_of(H, i + 1, tiles) - r
            prev_h = <real *>layer.h0
            s = 0
            for t in range(layer.T):
                n = layer.batch_sizes[t]
                on.pack_columns(n, prev_h + r, H, m, left_h + r * S + s * m)
                prev_h = h + s * H
                s = s + n
    if layer.dWx != NULL:
        tiles = tiles_of(on, D)
        pack_left(on, <real *>layer.x, U, D, first_of(tiles, me, team), first_of(tiles, me + 1, team), left_x)
    if layer.dx != NULL:
        pack_transposed(
            on, <real *>layer.Wx, D, H, gates, first_of(QD, me, team), first_of(QD, me + 1, team), WxT
        )
    memset(da_x + first * U * PANEL, 0, (last - first) * U * PANEL * sizeof(real))
    for p in range(first, last):
        on.scatter_add_rows(S, da + p * S * PANEL, layer.rows, da_x + p * U * PANEL)
        if layer.db != NULL:
            columns = columns_of(on, H, gates, p)
            memset(acc, 0, TILE_BYTES)
            on.sum_rows(U, da_x + p * U * PANEL, acc)
            on.put_rows(
                1, acc, <real *>layer.db + columns.start, 0, columns.second, columns.width0, columns.width1, 0
            )
    wait_for_team()
    if layer.dWh != NULL:
        transposed_times(on, left_h, H, S, da, H, gates, first, last, <real *>layer.dWh, 0)
    if layer.dWx != NULL:
        transposed_times(on, left_x, D, U, da_x, H, gates, first, last, <real *>layer.dWx, 0)
    if layer.dx != NULL:
        times_transposed(
            on, da_x, U, P, WxT, D, first_of(QD, me, team), first_of(QD, me + 1, team), <real *>layer.dx, NULL
        )


cdef inline real *_prev_c(Layer *layer, long t, long s, real *c0) noexcept nogil:
    """The cell states before step t, whose packed rows begin at s."""
    return c0 if t == 0 else <real *>layer.c + (s - layer.batch_sizes[t - 1]) * layer.H


cdef void _step_backward(
    Layer *layer, long t, long s, long r, long m, long q, real *flowing, real *dc, real *da
) noexcept nogil:
    """m sequences from r on, PANEL hidden units from panel q, step t, whose packed rows begin at s.

    What flows back from step t + 1 becomes da of step t; before the first step it is dh0.
    """
    cdef const lanes *on = layer.on
    cdef long H = layer.H, S = layer.S, LANES = on.count, PANEL = 2 * LANES
    cdef long half, unit, width
    cdef real *prev_c
    cdef Columns columns = columns_of(on, H, 1, q)
    cdef char zero[TILE_BYTES]
    if t < 0:
        if flowing == NULL:
            memset(zero, 0, TILE_BYTES)
            flowing = <real *>zero
        on.put_rows(
            m, flowing, <real *>layer.dh0 + r * H + columns.start, H, columns.second, columns.width0,
            columns.width1, 0,
        )
    elif layer.gates == 1:
        on.rnn_cell_backward(
            m, columns.width0, columns.width1, <real *>layer.dh + (s + r) * H + columns.start, flowing,
            <real *>layer.h + (s + r) * H + columns.start, da + (q * S + s + r) * PANEL, H,
        )
    else:
        prev_c = _prev_c(layer, t, s, <real *>layer.c0)
        for half in range(2):
            unit = q * PANEL + half * LANES
            width = min(LANES, H - unit)
            if width > 0:
                on.lstm_cell_backward(
                    m, width, <real *>layer.dh + (s + r) * H + unit,
                    NULL if flowing == NULL else flowing + half * LANES, PANEL, prev_c + r * H + unit,
                    <real *>layer.c + (s + r) * H + unit, <real *>layer.activations + (s + r) * 4 * H + unit,
                    dc + r * H + unit, da + ((4 * q + 2 * half) * S + s + r) * PANEL,
                    da + ((4 * q + 2 * half + 1) * S + s + r) * PANEL, H,
                )


cdef enum:
    PACK_FROM = 8  # rows for which it pays to pack the right operand of a product first


cdef void _product_of_panel(
    const lanes *on, real *x, long m, long D, real *W, long ldw, Columns c, int packed, origin begin, place to
) noexcept nogil:
    """x (m,D) times a panel of W, which is packed at W or else stands in a matrix with rows ldw apart."""
    if packed:
        on.tile(m, D, x, D, W, 2 * on.count, on.count, &begin, &to, NULL)
    else:
        on.tile(m, D, x, D, W + c.start, ldw, c.second, &begin, &to, NULL)


cdef class Packed:
    """Weights as panels, kept for many products."""

    cdef object memory  # that they are in
    cdef void *panels
    cdef bint backwards  # the order in which the next product goes through the panels


def pack(cnp.ndarray W, long gates, Work work):
    """Weights for the steps and for affine_forward, packed once: gates is 4 for the LSTM's Wh, else 1."""
    cdef Packed packed = Packed()
    cdef const lanes *on = lanes_for(W)
    cdef long size = cnp.PyArray_ITEMSIZE(W), K = dim(W, 0), H = dim(W, 1) // gates, first, last
    cdef long P = panels_of(on, H, gates)
    packed.panels = work.reserve(P * K * 2 * on.count * size)
    packed.memory = work.memory
    cdef void *W_ = data(W)
    cdef void *panels = packed.panels
    cdef int threads = team_for(READING * K * dim(W, 1))
    with nogil, parallel(num_threads=threads):
        first = first_of(P, threadid(), team_size())
        last = first_of(P, threadid() + 1, team_size())
        if size == 4:
            pack_panels(on, <float *>W_, K, H, gates, first, last, <float *>panels)
        else:
            pack_panels(on, <double *>W_, K, H, gates, first, last, <double *>panels)
    return packed


cdef inline bint turn(Packed packed):
    """Whether to go through the panels from the last to the first: what was used last is still in the cache."""
    packed.backwards = not packed.backwards
    return packed.backwards


cdef struct Step:
    const lanes *on
    long gates, N, H
    bint backwards  # from the last panel to the first
    int64_t *rows
    void *a
    void *prev_h
    void *prev_c
    void *Wh  # NULL where its panels are packed already
    void *h
    void *c


def rnn_step(cnp.ndarray a, cnp.ndarray rows, cnp.ndarray prev_h, Wh, cnp.ndarray h, Work work):
    """h = tanh(a[rows] + prev_h Wh)"""
    _run_step(a, rows, prev_h, None, Wh, h, None, work)


def lstm_step(
    cnp.ndarray a, cnp.ndarray rows, cnp.ndarray prev_h, cnp.ndarray prev_c, Wh, cnp.ndarray h, cnp.ndarray c,
    Work work
):
    """One step of lstm_forward for decoding, its inputs a already projected."""
    _run_step(a, rows, prev_h, prev_c, Wh, h, c, work)


cdef void _run_step(
    cnp.ndarray a, cnp.ndarray rows, cnp.ndarray prev_h, cnp.ndarray prev_c, Wh, cnp.ndarray h, cnp.ndarray c,
    Work work
):
    cdef Step step
    cdef bint packed = isinstance(Wh, Packed)
    step.backwards = turn(<Packed>Wh) if packed else False
    step.on = lanes_for(a)
    step.N, step.H = dim(prev_h, 0), dim(prev_h, 1)
    step.gates = dim(a, 1) // step.H
    step.rows = <int64_t *>data(rows)
    step.a, step.prev_h, step.prev_c = data(a), data(prev_h), data(prev_c)
    step.Wh = NULL if packed else data(Wh)
    step.h, step.c = data(h), data(c)
    cdef long size = cnp.PyArray_ITEMSIZE(a)
    cdef void *panels
    if packed:
        panels = (<Packed>Wh).panels
    else:
        panels = work.reserve(panels_of(step.on, step.H, step.gates) * 2 * step.on.count * step.H * size)
    cdef int threads = team_for((2.0 * step.N + READING) * step.H * step.gates * step.H)
    cdef unsigned before
    with nogil, parallel(num_threads=threads):
        before = flush_denormals()
        if size == 4:
            _step(&step, <float *>panels, threadid(), team_size())
        else:
            _step(&step, <double *>panels, threadid(), team_size())
        restore_denormals(before)


cdef void _step(Step *step, real *panels, int me, int team) noexcept nogil:
    """Share of a step for decoding: some hidden units."""
    cdef const lanes *on = step.on
    cdef long gates = step.gates, N = step.N, H = step.H, LANES = on.count, PANEL = 2 * LANES
    cdef long P = panels_of(on, H, gates), pair = 2 if gates == 4 else 1, tiles = tiles_of(on, N)
    cdef real *a = <real *>step.a
    cdef real *Wh = <real *>step.Wh
    cdef real *right
    cdef real *at
    cdef char acc[2 * TILE_BYTES]
    cdef int64_t order[13]
    cdef long k, q, p, half, i, j, r, m, unit
    cdef int packed
    cdef Columns c
    cdef long first = first_of(P // pair, me, team), last = first_of(P // pair, me + 1, team)
    for j in range(13):
        order[j] = j
    for k in range(last - first):
        q = last - 1 - k if step.backwards else first + k
        p = q * pair
        unit = q * (PANEL if gates == 1 else LANES)
        c = columns_of(on, H, gates, p)
        packed = Wh == NULL or N >= PACK_FROM or c.width0 < LANES or c.width1 < LANES
        if packed and Wh != NULL:
            pack_panels(on, Wh, H, H, gates, p, p + pair, panels)
        for i in range(tiles):
            r = first_of(N, i, tiles)
            m = first_of(N, i + 1, tiles) - r
            for half in range(pair):
                c = columns_of(on, H, gates, p + half)
                at = <real *>acc + half * m * PANEL
                for j in range(m):
                    on.pack_panel(
                        1, a + step.rows[r + j] * gates * H + c.start, 0, c.second, c.width0, c.width1,
                        at + j * PANEL,
                    )
                right = panels + (p + half) * H * PANEL if packed else Wh
                _product_of_panel(
                    on, <real *>step.prev_h + r * H, m, H, right, gates * H, c, packed, start_with(at, order),
                    place_in_panel(on, at),
                )
            if gates == 4:
                on.lstm_cell(
                    m, min(LANES, H - unit), acc, <real *>acc + m * PANEL, <real *>step.prev_c + r * H + unit,
                    <real *>step.h + r * H + unit, <real *>step.c + r * H + unit, NULL, H,
                )
            else:
                on.rnn_cell(
                    m, min(LANES, H - unit), min(LANES, H - unit - LANES), acc, <real *>step.h + r * H + unit, H
                )


# ---------------------------------------------------------------------------------------------------
# Affine layer and word embedding


def affine_forward(cnp.ndarray x, W, cnp.ndarray b, cnp.ndarray out, Work work):
    """out = x W + b"""
    cdef long M = dim(x, 0), D = dim(x, 1), K = dim(b, 0), size = cnp.PyArray_ITEMSIZE(x)
    cdef const lanes *on = lanes_for(x)
    cdef bint packed = isinstance(W, Packed), backwards = packed and turn(<Packed>W)
    cdef void *scratch
    if packed:
        scratch = (<Packed>W).panels
    else:
        scratch = work.reserve(panels_of(on, K, 1) * 2 * on.count * D * size)
    cdef void *x_ = data(x)
    cdef void *W_ = NULL if packed else data(W)
    cdef void *b_ = data(b)
    cdef void *out_ = data(out)
    cdef int threads = team_for((2.0 * M + READING) * D * K)
    cdef unsigned before
    with nogil, parallel(num_threads=threads):
        before = flush_denormals()
        if size == 4:
            _affine_forward(
                on, <float *>x_, M, D, <float *>W_, <float *>b_, K, <float *>out_, <float *>scratch, backwards,
                threadid(), team_size(),
            )
        else:
            _affine_forward(
                on, <double *>x_, M, D, <double *>W_, <double *>b_, K, <double *>out_, <double *>scratch,
                backwards, threadid(), team_size(),
            )
        restore_denormals(before)


cdef void _affine_forward(
    const lanes *on, real *x, long M, long D, real *W, real *b, long K, real *out, real *panels, bint backwards,
    int me, int team
) noexcept nogil:
    """W is NULL where its panels are packed already."""
    cdef long P = panels_of(on, K, 1), PANEL = 2 * on.count, tiles = tiles_of(on, M)
    cdef long p, i, r, m
    cdef int packed
    cdef Columns c
    cdef char bias[128]
    cdef long first = first_of(P, me, team), last = first_of(P, me + 1, team), k
    for k in range(last - first):
        p = last - 1 - k if backwards else first + k
        c = columns_of(on, K, 1, p)
        packed = W == NULL or M >= PACK_FROM or c.width1 < on.count
        if packed and W != NULL:
            pack_panels(on, W, D, K, 1, p, p + 1, panels)
        on.pack_panel(1, b + c.start, 0, c.second, c.width0, c.width1, bias)
        for i in range(tiles):
            r = first_of(M, i, tiles)
            m = first_of(M, i + 1, tiles) - r
            _product_of_panel(
                on, x + r * D, m, D, panels + p * D * PANEL if packed else W, K, c, packed, start_with(bias, NULL),
                place_of(out + r * K + c.start, K, c, False),
            )


def affine_backward(
    cnp.ndarray dout, cnp.ndarray x, cnp.ndarray W, cnp.ndarray dx, cnp.ndarray dW, cnp.ndarray db, Work work
):
    """dx = dout W^T,   dW = x^T dout,   db = sum of dout over its rows"""
    cdef long M = dim(x, 0), D = dim(x, 1), K = dim(W, 1), size = cnp.PyArray_ITEMSIZE(x)
    cdef const lanes *on = lanes_for(x)
    cdef long columns = panels_of(on, K, 1) * 2 * on.count
    cdef void *scratch = work.reserve(
        (columns * (panels_of(on, D, 1) * 2 * on.count + M) + M * D) * size
    )
    cdef void *dout_ = data(dout)
    cdef void *x_ = data(x)
    cdef void *W_ = data(W)
    cdef void *dx_ = data(dx)
    cdef void *dW_ = data(dW)
    cdef void *db_ = data(db)
    cdef int threads = team_for(4.0 * M * D * K)
    cdef unsigned before
    with nogil, parallel(num_threads=threads):
        before = flush_denormals()
        if size == 4:
            _affine_backward(
                on, <float *>dout_, <float *>x_, <float *>W_, M, D, K, <float *>dx_, <float *>dW_, <float *>db_,
                <float *>scratch, threadid(), team_size(),
            )
        else:
            _affine_backward(
                on, <double *>dout_, <double *>x_, <double *>W_, M, D, K, <double *>dx_, <double *>dW_,
                <double *>db_, <double *>scratch, threadid(), team_size(),
            )
        restore_denormals(before)


cdef void _affine_backward(
    const lanes *on, real *dout, real *x, real *W, long M, long D, long K, real *dx, real *dW, real *db,
    real *scratch, int me, int team
) noexcept nogil:
    cdef long P = panels_of(on, K, 1), Q = panels_of(on, D, 1), PANEL = 2 * on.count, tiles = tiles_of(on, D)
    cdef long first = first_of(P, me, team), last = first_of(P, me + 1, team)
    cdef real *WT = scratch  # (Q,P PANEL,PANEL)
    cdef real *panels = WT + Q * P * PANEL * PANEL  # of dout, (P,M,PANEL)
    cdef real *left = panels + P * M * PANEL  # (M,D)
    cdef long p
    cdef Columns c
    cdef char acc[TILE_BYTES]
    pack_panels(on, dout, M, K, 1, first, last, panels)
    if db != NULL:
        for p in range(first, last):
            c = columns_of(on, K, 1, p)
            memset(acc, 0, TILE_BYTES)
            on.sum_rows(M, panels + p * M * PANEL, acc)
            on.put_rows(1, acc, db + c.start, 0, c.second, c.width0, c.width1, 0)
    if dW != NULL:
        pack_left(on, x, M, D, first_of(tiles, me, team), first_of(tiles, me + 1, team), left)
    if dx != NULL:
        pack_transposed(on, W, D, K, 1, first_of(Q, me, team), first_of(Q, me + 1, team), WT)
    wait_for_team()
    if dW != NULL:
        transposed_times(on, left, D, M, panels, K, 1, first, last, dW, 0)
    if dx != NULL:
        times_transposed(
            on, panels, M, P, WT, D, first_of(Q, me, team), first_of(Q, me + 1, team), dx, NULL
        )


def embedding_forward(cnp.ndarray tokens, cnp.ndarray W, cnp.ndarray out):
    """out[s] = W[tokens[s]]"""
    cdef long S = dim(tokens, 0), row = dim(W, 1) * cnp.PyArray_ITEMSIZE(W), s
    cdef int64_t *tokens_ = <int64_t *>data(tokens)
    cdef char *W_ = <char *>data(W)
    cdef char *out_ = <char *>data(out)
    with nogil:
        for s in range(S):
            memcpy(out_ + s * row, W_ + tokens_[s] * row, row)


def embedding_backward(cnp.ndarray tokens, cnp.ndarray dout, cnp.ndarray dW, Work work):
    """dW[v] = sum of dout[s] over the rows s with tokens[s] = v, in the order of the rows."""
    cdef long S = dim(tokens, 0), V = dim(dW, 0), E = dim(dW, 1), size = cnp.PyArray_ITEMSIZE(dW)
    cdef int64_t *tokens_ = <int64_t *>data(tokens)
    cdef void *dout_ = data(dout)
    cdef void *dW_ = data(dW)
    cdef int threads = team_for(4.0 * (S + V) * E)
    with nogil, parallel(num_threads=threads):
        if size == 4:
            _embedding_backward(tokens_, <float *>dout_, S, V, E, <float *>dW_, threadid(), team_size())
        else:
            _embedding_backward(tokens_, <double *>dout_, S, V, E, <double *>dW_, threadid(), team_size())


cdef void _embedding_backward(
    int64_t *tokens, real *dout, long S, long V, long E, real *dW, int me, int team
) noexcept nogil:
    """A member owns columns, so that no two add to the same place."""
    cdef long first = first_of(E, me, team), last = first_of(E, me + 1, team), s, v, j
    cdef real *row
    for v in range(V):
        memset(dW + v * E + first, 0, (last - first) * sizeof(real))
    for s in range(S):
        row = dW + tokens[s] * E
        for j in range(first, last):
            row[j] = row[j] + dout[s * E + j]


# ---------------------------------------------------------------------------------------------------
# Losses


def softmax_loss(
    cnp.ndarray scores, cnp.ndarray targets, cnp.ndarray mask, double scale, cnp.ndarray dscores, Work work
):
    """Masked softmax cross-entropy: scale * sum of mask * nll over the rows.

    p = exp(scores) / sum of exp(scores),   nll = -log p[target],   dscores = scale * mask * (p - onehot(target))
    """
    cdef long S = dim(scores, 0), V = dim(scores, 1), size = cnp.PyArray_ITEMSIZE(scores)
    cdef const lanes *on = lanes_for(scores)
    cdef int threads = team_for(30.0 * S * V)
    cdef char *scratch = <char *>work.reserve(S * sizeof(double) + threads * V * size)
    cdef double *nll = <double *>scratch
    cdef void *scores_ = data(scores)
    cdef int64_t *targets_ = <int64_t *>data(targets)
    cdef void *mask_ = data(mask)
    cdef void *dscores_ = data(dscores)
    cdef void *rows = scratch + S * sizeof(double)
    cdef unsigned before
    with nogil, parallel(num_threads=threads):
        before = flush_denormals()
        if size == 4:
            _softmax_loss(
                on, <float *>scores_, targets_, <float *>mask_, scale, S, V, <float *>dscores_, nll, <float *>rows,
                threadid(), team_size(),
            )
        else:
            _softmax_loss(
                on, <double *>scores_, targets_, <double *>mask_, scale, S, V, <double *>dscores_, nll,
                <double *>rows, threadid(), team_size(),
            )
        restore_denormals(before)
    return _masked_sum(nll, S, scale)


cdef void _softmax_loss(
    const lanes *on, real *scores, int64_t *targets, real *mask, double scale, long S, long V, real *dscores,
    double *nll, real *rows, int me, int team
) noexcept nogil:
    cdef long s
    cdef real *row
    for s in range(first_of(S, me, team), first_of(S, me + 1, team)):
        row = rows + me * V if dscores == NULL else dscores + s * V
        nll[s] = 0
        if mask[s] != 0:
            memcpy(row, scores + s * V, V * sizeof(real))
            nll[s] = mask[s] * on.softmax_row(V, V, 0, row, targets[s], scale * mask[s])
        elif dscores != NULL:
            memset(row, 0, V * sizeof(real))


cdef double _masked_sum(double *nll, long S, double scale):
    """scale times the sum of weighted nll, one row after the other."""
    cdef double total = 0
    cdef long s
    for s in range(S):
        total += nll[s]
    return scale * total


cdef enum:
    SCORES_BYTES = 1 << 24  # the scores that vocab_loss holds at a time


cdef struct Vocabulary:
    const lanes *on
    long S, H, V, R  # rows, hidden units, words, rows of a block
    long K  # rows that have a weight
    int64_t *kept  # (K) which these are
    int64_t *targets
    void *mask
    double scale
    double *nll  # (K)
    void *h
    void *W
    void *b
    void *dh
    void *dW
    void *db


def vocab_loss(
    cnp.ndarray h, cnp.ndarray W, cnp.ndarray b, cnp.ndarray targets, cnp.ndarray mask, double scale,
    cnp.ndarray dh, cnp.ndarray dW, cnp.ndarray db, Work work
):
    """Vocabulary projection and softmax_loss in one: scores = h W + b.

    dh = dscores W^T,   dW = h^T dscores,   db = sum of dscores
    """
    cdef Vocabulary v
    v.on = lanes_for(h)
    v.S, v.H, v.V = dim(h, 0), dim(h, 1), dim(W, 1)
    v.targets, v.mask, v.scale = <int64_t *>data(targets), data(mask), scale
    v.h, v.W, v.b, v.dh, v.dW, v.db = data(h), data(W), data(b), data(dh), data(dW), data(db)
    kept = np.flatnonzero(mask)
    v.kept, v.K = <int64_t *>data(kept), len(kept)
    cdef long size = cnp.PyArray_ITEMSIZE(h), PANEL = 2 * v.on.count
    cdef long columns = panels_of(v.on, v.V, 1) * PANEL
    v.R = min(max(SCORES_BYTES // (columns * size), 1), max(v.K, 1))
    cdef long reals = columns * (v.H + panels_of(v.on, v.H, 1) * PANEL + v.R) + 2 * v.R * v.H
    cdef char *scratch = <char *>work.reserve(v.K * sizeof(double) + reals * size)
    v.nll = <double *>scratch
    cdef void *rest = scratch + v.K * sizeof(double)
    cdef int threads = team_for(6.0 * v.K * v.H * v.V)
    cdef unsigned before
    with nogil, parallel(num_threads=threads):
        before = flush_denormals()
        if size == 4:
            _vocab_loss(&v, <float *>rest, threadid(), team_size())
        else:
            _vocab_loss(&v, <double *>rest, threadid(), team_size())
        restore_denormals(before)
    return _masked_sum(v.nll, v.K, scale)


cdef void _vocab_loss(Vocabulary *v, real *scratch, int me, int team) noexcept nogil:
    """Share of the loss: words where scores and dW are made, rows for the softmax, hidden units for dh."""
    cdef const lanes *on = v.on
    cdef long H = v.H, V = v.V, PANEL = 2 * on.count, P = panels_of(on, V, 1), Q = panels_of(on, H, 1)
    cdef long first = first_of(P, me, team), last = first_of(P, me + 1, team)
    cdef long block, start, n, s, p, tiles = tiles_of(on, H)
    cdef real *W = scratch  # (P,H,PANEL)
    cdef real *WT = W + P * H * PANEL  # (Q,P PANEL,PANEL)
    cdef real *scores = WT + Q * P * PANEL * PANEL  # (P,n,PANEL)
    cdef real *rows = scores + P * v.R * PANEL  # (n,H) the rows that have a weight
    cdef real *left = rows + v.R * H
    cdef real *dh = <real *>v.dh
    cdef real *h
    cdef int64_t *kept
    cdef bint holes  # between the rows of a block
    cdef Columns c
    cdef char acc[TILE_BYTES]
    pack_panels(on, <real *>v.W, H, V, 1, first, last, W)
    if dh != NULL:
        pack_transposed(on, <real *>v.W, H, V, 1, first_of(Q, me, team), first_of(Q, me + 1, team), WT)
        if v.K < v.S:
            for s in range(first_of(v.S, me, team), first_of(v.S, me + 1, team)):
                if (<real *>v.mask)[s] == 0:
                    memset(dh + s * H, 0, H * sizeof(real))
    if v.K == 0:
        if v.dW != NULL and me == 0:
            memset(v.dW, 0, H * V * sizeof(real))
        if v.db != NULL and me == 0:
            memset(v.db, 0, V * sizeof(real))
    for block in range((v.K + v.R - 1) // v.R):
        start = block * v.R
        n = min(v.R, v.K - start)
        kept = v.kept + start
        h = <real *>v.h + kept[0] * H
        holes = kept[n - 1] - kept[0] + 1 > n
        if holes:
            for s in range(first_of(n, me, team), first_of(n, me + 1, team)):
                memcpy(rows + s * H, <real *>v.h + kept[s] * H, H * sizeof(real))
            h = rows
            wait_for_team()
        project(on, h, n, H, W, <real *>v.b, V, 1, first, last, scores)
        if v.dW != NULL:
            pack_left(on, h, n, H, first_of(tiles, me, team), first_of(tiles, me + 1, team), left)
        wait_for_team()
        for s in range(first_of(n, me, team), first_of(n, me + 1, team)):
            v.nll[start + s] = (<real *>v.mask)[kept[s]] * on.softmax_row(
                V, PANEL, n * PANEL, scores + s * PANEL, v.targets[kept[s]], v.scale * (<real *>v.mask)[kept[s]]
            )
        wait_for_team()
        if dh != NULL:
            times_transposed(
                on, scores, n, P, WT, H, first_of(Q, me, team), first_of(Q, me + 1, team),
                dh if holes else dh + kept[0] * H, kept if holes else NULL,
            )
        if v.dW != NULL:
            transposed_times(on, left, H, n, scores, V, 1, first, last, <real *>v.dW, start > 0)
        if v.db != NULL:
            for p in range(first, last):
                c = columns_of(on, V, 1, p)
                memset(acc, 0, TILE_BYTES)
                on.sum_rows(n, scores + p * n * PANEL, acc)
                on.put_rows(1, acc, <real *>v.db + c.start, 0, c.second, c.width0, c.width1, start > 0)
        wait_for_team()


# ---------------------------------------------------------------------------------------------------
# Optimisers: parameters and their state are updated in place, in one pass


cdef inline long _elements(long n, int member, int team) noexcept nogil:
    """The first element of a member's share: at a cache line, so that no two write to one."""
    return min(first_of((n + 63) // 64, member, team) * 64, n)


def sgd(cnp.ndarray w, cnp.ndarray dw, double learning_rate):
    """w -= learning_rate * dw"""
    cdef const lanes *on = lanes_for(w)
    cdef long n = cnp.PyArray_SIZE(w), size = cnp.PyArray_ITEMSIZE(w), first, count
    cdef char *w_ = <char *>data(w)
    cdef char *dw_ = <char *>data(dw)
    cdef int threads = team_for(20.0 * n)
    cdef unsigned before
    with nogil, parallel(num_threads=threads):
        before = flush_denormals()
        first = _elements(n, threadid(), team_size())
        count = _elements(n, threadid() + 1, team_size()) - first
        on.sgd(count, w_ + first * size, dw_ + first * size, learning_rate)
        restore_denormals(before)


def sgd_momentum(cnp.ndarray w, cnp.ndarray dw, cnp.ndarray velocity, double learning_rate, double momentum):
    """velocity = momentum * velocity - learning_rate * dw,   w += velocity"""
    cdef const lanes *on = lanes_for(w)
    cdef long n = cnp.PyArray_SIZE(w), size = cnp.PyArray_ITEMSIZE(w), first, count
    cdef char *w_ = <char *>data(w)
    cdef char *dw_ = <char *>data(dw)
    cdef char *velocity_ = <char *>data(velocity)
    cdef int threads = team_for(20.0 * n)
    cdef unsigned before
    with nogil, parallel(num_threads=threads):
        before = flush_denormals()
        first = _elements(n, threadid(), team_size())
        count = _elements(n, threadid() + 1, team_size()) - first
        on.sgd_momentum(
            count, w_ + first * size, dw_ + first * size, velocity_ + first * size, learning_rate, momentum
        )
        restore_denormals(before)


def rmsprop(
    cnp.ndarray w, cnp.ndarray dw, cnp.ndarray cache, double learning_rate, double decay_rate, double epsilon
):
    """RMSProp (Tieleman and Hinton 2012).

    cache = decay_rate * cache + (1 - decay_rate) * dw^2
    w -= learning_rate * dw / (sqrt(cache) + epsilon)
    """
    cdef const lanes *on = lanes_for(w)
    cdef long n = cnp.PyArray_SIZE(w), size = cnp.PyArray_ITEMSIZE(w), first, count
    cdef char *w_ = <char *>data(w)
    cdef char *dw_ = <char *>data(dw)
    cdef char *cache_ = <char *>data(cache)
    cdef int threads = team_for(20.0 * n)
    cdef unsigned before
    with nogil, parallel(num_threads=threads):
        before = flush_denormals()
        first = _elements(n, threadid(), team_size())
        count = _elements(n, threadid() + 1, team_size()) - first
        on.rmsprop(
            count, w_ + first * size, dw_ + first * size, cache_ + first * size, learning_rate, decay_rate, epsilon
        )
        restore_denormals(before)


def adam(
    cnp.ndarray w, cnp.ndarray dw, cnp.ndarray m, cnp.ndarray v, t, double learning_rate, double beta1,
    double beta2, double epsilon
):
    """Adam (Kingma and Ba, ICLR 2015).

    m = beta1 * m + (1 - beta1) * dw
    v = beta2 * v + (1 - beta2) * dw^2
    w -= learning_rate * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)
    """
    cdef const lanes *on = lanes_for(w)
    cdef long n = cnp.PyArray_SIZE(w), size = cnp.PyArray_ITEMSIZE(w), first, count
    cdef char *w_ = <char *>data(w)
    cdef char *dw_ = <char *>data(dw)
    cdef char *m_ = <char *>data(m)
    cdef char *v_ = <char *>data(v)
    cdef double correction1 = 1 - beta1 ** t, correction2 = 1 - beta2 ** t
    cdef int threads = team_for(20.0 * n)
    cdef unsigned before
    with nogil, parallel(num_threads=threads):
        before = flush_denormals()
        first = _elements(n, threadid(), team_size())
        count = _elements(n, threadid() + 1, team_size()) - first
        on.adam(
            count, w_ + first * size, dw_ + first * size, m_ + first * size, v_ + first * size, learning_rate,
            beta1, beta2, epsilon, correction1, correction2,
        )
        restore_denormals(before)
