/* The inner loops of the Cython kernels, written once.

isa.h includes this file for each instruction set and real type, after defining what is undefined again at its end:

    real, integer       float and int32_t, or double and int64_t
    LANES               reals in a vector register
    ROWS                rows of a tile
    FN(name)            the name of a function in this variant
    INVERSE(x)          1 / x of a vector of normal numbers

A *panel* is PANEL = 2 LANES columns side by side, all rows of them contiguous: weights and activations are kept as
panels, [panel][row][PANEL], because then a product streams through memory. A *tile* is a block of a product's
result, at most ROWS rows of one panel: 2 ROWS registers, each used once for every two loads from the panel.

Loops over vectors end in a tail: `width` is how many of the lanes exist; the others are zero and not stored. */

typedef real FN(vec) __attribute__((vector_size(LANES * sizeof(real)), aligned(sizeof(real)), may_alias));
typedef integer FN(ivec) __attribute__((vector_size(LANES * sizeof(real)), aligned(sizeof(real)), may_alias));
_Static_assert(ROWS <= 13 && 2 * LANES * sizeof(real) <= 2 * LINE, "the sizes of struct lines and of TILE_BYTES");
#define vec FN(vec)
#define ivec FN(ivec)
#define PANEL (2 * LANES)

/* ---- Loading and storing ---- */

INLINE vec FN(load)(const real *x, long width) {
    if (width >= LANES) return *(const vec *)x;
    vec v = {0};
    for (long j = 0; j < width; j++) v[j] = x[j];
    return v;
}

INLINE void FN(store)(real *x, vec v, long width) {
    if (width >= LANES) *(vec *)x = v;
    else for (long j = 0; j < width; j++) x[j] = v[j];
}

INLINE vec FN(select)(ivec condition, vec yes, vec no) {
    return (vec)(((ivec)yes & condition) | ((ivec)no & ~condition));
}

/* Of a NaN in a it stays a NaN. */
INLINE vec FN(vmax)(vec a, vec b) { return FN(select)((ivec)(b > a), b, a); }
INLINE vec FN(vmin)(vec a, vec b) { return FN(select)((ivec)(b < a), b, a); }

/* ---- Elementary functions, without branches ----

exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2. Adding and subtracting MAGIC rounds to a whole number,
which then stands in the low bits of the sum. The polynomial is Taylor's; it ends where the next term is below the
precision. Arguments beyond the range of normal numbers stop at its ends. */

#define IS_FLOAT (sizeof(real) == 4)
#define MAGIC ((real)(IS_FLOAT ? 12582912.0 : 6755399441055744.0)) /* 1.5 * 2^23 or 52 */
#define LN2_HIGH ((real)(IS_FLOAT ? 0.693145751953125 : 0.693147180369123816490))
#define LN2_LOW ((real)(IS_FLOAT ? 1.42860682030941723212e-6 : 1.90821492927058770002e-10))
#define EXP_LOWEST ((real)(IS_FLOAT ? -87.33 : -708.39)) /* 2^-126 and 2^-1022 are the smallest normal numbers */
#define EXP_HIGHEST ((real)(IS_FLOAT ? 88.0 : 709.0))

/* exp(r) - 1 = r + r^2 q(r), exact to the last digits for small r too; *scale = 2^n */
INLINE vec FN(exp_parts)(vec x, vec *scale) {
    vec n = x * (real)1.44269504088896340736 + MAGIC;
    ivec power = (ivec)n << (IS_FLOAT ? 23 : 52);
    *scale = (vec)(power + ((ivec)((vec){0} + (real)1)));
    n -= MAGIC;
    vec r = (x - n * LN2_HIGH) - n * LN2_LOW, q;
    if (IS_FLOAT) {
        q = r * (real)(1.0 / 5040) + (real)(1.0 / 720);
    } else {
        q = r * (real)(1.0 / 6227020800) + (real)(1.0 / 479001600);
        q = q * r + (real)(1.0 / 39916800);
        q = q * r + (real)(1.0 / 3628800);
        q = q * r + (real)(1.0 / 362880);
        q = q * r + (real)(1.0 / 40320);
        q = q * r + (real)(1.0 / 5040);
        q = q * r + (real)(1.0 / 720);
    }
    q = q * r + (real)(1.0 / 120);
    q = q * r + (real)(1.0 / 24);
    q = q * r + (real)(1.0 / 6);
    q = q * r + (real)0.5;
    return r + r * r * q;
}

INLINE vec FN(vexp)(vec x) {
    vec scale, p;
    x = FN(vmax)(FN(vmin)(x, (vec){0} + EXP_HIGHEST), (vec){0} + EXP_LOWEST);
    p = FN(exp_parts)(x, &scale);
    return scale * p + scale;
}

/* 1 / (1 + exp(-x)) */
INLINE vec FN(sigmoid)(vec x) {
    vec scale, p;
    x = FN(vmax)(FN(vmin)(-x, (vec){0} - EXP_LOWEST), (vec){0} + EXP_LOWEST);
    p = FN(exp_parts)(x, &scale);
    return INVERSE(scale * p + scale + (real)1);
}

/* e / (e + 2) with e = exp(2x) - 1, which keeps all digits of small x */
INLINE vec FN(vtanh)(vec x) {
    vec scale, p;
    x = FN(vmax)(FN(vmin)(x + x, (vec){0} + (real)40), (vec){0} - (real)40);
    p = FN(exp_parts)(x, &scale);
    vec e = scale * p + (scale - (real)1);
    return e * INVERSE(e + (real)2);
}

/* ---- Products ---- */

/* Rows (m,PANEL) to a matrix whose rows are ldx apart, the two halves `second` apart there; added if asked to. */
static void FN(put_rows)(long m, const void *acc_, void *x_, long ldx, long second, long width0, long width1,
                         int add) {
    const real *acc = acc_;
    real *x = x_;
    for (long r = 0; r < m; r++, acc += PANEL, x += ldx) {
        vec a0 = *(const vec *)acc, a1 = *(const vec *)(acc + LANES);
        if (add) {
            a0 += FN(load)(x, width0);
            a1 += FN(load)(x + second, width1);
        }
        FN(store)(x, a0, width0);
        FN(store)(x + second, a1, width1);
    }
}

/* A tile of A B: A (m,K), B (K,PANEL). What its sums begin with and where they go, isa.h tells. B's rows are ldb apart,
   its second half `second` after its first. A's element (r,k) is a[r * lda + k * step]; its columns come in `blocks`
   of K, which are a_step apart. m, and lda and step where they are constants, are known where this is inlined, so
   that the sums stay in registers and addresses cost nothing.

   Memory: B is fetched AHEAD rows before it is needed, because from one page of memory to the next the processor does
   not expect it; the tile's own place at the start; and every FETCH_EVERY rows a line of `soon`. Rows of A are reached
   from three pointers: with one, the compiler keeps a dozen distances, more than there are registers. HIDE keeps it
   from seeing that. bench/race.py: these four make an iteration at N=100 a tenth shorter. */
#define AHEAD 32
#define FETCH_EVERY 8
#define HIDE(pointer) __asm__("" : "+r"(pointer))
INLINE void FN(tile_of)(const int m, long blocks, long K, const real *a, long lda, long step, long a_step,
                        const real *b, long ldb, long second, const struct origin *origin, const struct place *place,
                        struct lines *soon) {
    vec sum[ROWS][2];
    const real *from = origin->panel;
    if (!from)
        UNROLL for (int r = 0; r < m; r++) sum[r][0] = sum[r][1] = (vec){0};
    else
        UNROLL for (int r = 0; r < m; r++) {
            const real *row = from + (origin->rows ? origin->rows[r] * PANEL : 0);
            sum[r][0] = *(const vec *)row;
            sum[r][1] = *(const vec *)(row + LANES);
        }
    real *x = place->x, *y = x + place->second;
    const long ld = place->ld, width0 = place->width0, width1 = place->width1;
    UNROLL for (int r = 0; r < m; r++) {
        __builtin_prefetch(x + r * ld, 1);
        __builtin_prefetch(y + r * ld, 1);
    }
    for (long block = 0; block < blocks; block++, a += a_step) {
        const real *at = a, *at5 = a + 5 * lda, *at10 = a + 10 * lda;
        if (a_step) /* too far away for the processor to expect it */
            UNROLL for (int r = 0; r < m; r++) {
                __builtin_prefetch(a + a_step + r * lda);
                __builtin_prefetch(a + a_step + r * lda + LANES);
            }
        for (long k = 0; k < K;) {
            if (soon && soon->next < soon->count) __builtin_prefetch(soon->at[soon->next++], 1);
            for (long end = K - k > FETCH_EVERY ? k + FETCH_EVERY : K; k < end; k++, b += ldb) {
                vec b0 = *(const vec *)b, b1 = *(const vec *)(b + second);
                __builtin_prefetch(b + AHEAD * ldb);
                __builtin_prefetch(b + AHEAD * ldb + second);
                HIDE(at);
                if (m > 5) HIDE(at5);
                if (m > 10) HIDE(at10);
                UNROLL for (int r = 0; r < m; r++) {
                    const real *row = r < 5 ? at + r * lda : r < 10 ? at5 + (r - 5) * lda : at10 + (r - 10) * lda;
                    sum[r][0] += *row * b0;
                    sum[r][1] += *row * b1;
                }
                at += step, at5 += step, at10 += step;
            }
        }
    }
    if (place->add)
        UNROLL for (int r = 0; r < m; r++) {
            sum[r][0] += FN(load)(x + r * ld, width0);
            sum[r][1] += FN(load)(y + r * ld, width1);
        }
    if (width1 >= LANES)
        UNROLL for (int r = 0; r < m; r++) {
            *(vec *)(x + r * ld) = sum[r][0];
            *(vec *)(y + r * ld) = sum[r][1];
        }
    else {
        real rows[ROWS * PANEL];
        UNROLL for (int r = 0; r < m; r++) {
            *(vec *)(rows + r * PANEL) = sum[r][0];
            *(vec *)(rows + r * PANEL + LANES) = sum[r][1];
        }
        FN(put_rows)(m, rows, x, ld, place->second, width0, width1, 0);
    }
}

#if ROWS > 6
#define FOR_EACH_HEIGHT(TILE) \
    TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13)
#else
#define FOR_EACH_HEIGHT(TILE) TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#endif

/* A is a matrix whose rows are lda apart. */
static void FN(tile)(long m, long K, const void *a_, long lda, const void *b_, long ldb, long second,
                     const struct origin *origin, const struct place *place, struct lines *soon) {
    const real *a = a_, *b = b_;
#define TILE(m) case m: FN(tile_of)(m, 1, K, a, lda, 1, 0, b, ldb, second, origin, place, soon); break;
    switch (m) { FOR_EACH_HEIGHT(TILE) }
#undef TILE
}

/* A is some rows of panels that are a_step apart. */
static void FN(tile_of_panels)(long m, long panels, const void *a_, long a_step, const void *b_,
                               const struct origin *origin, const struct place *place, struct lines *soon) {
    const real *a = a_, *b = b_;
#define TILE(m) case m: FN(tile_of)(m, panels, PANEL, a, PANEL, 1, a_step, b, PANEL, LANES, origin, place, soon); break;
    switch (m) { FOR_EACH_HEIGHT(TILE) }
#undef TILE
}

/* A^T is packed by pack_columns. */
static void FN(tile_of_columns)(long m, long K, const void *a_, const void *b_, const struct origin *origin,
                                const struct place *place) {
    const real *a = a_, *b = b_;
#define TILE(m) case m: FN(tile_of)(m, 1, K, a, 1, m, 0, b, PANEL, LANES, origin, place, NULL); break;
    switch (m) { FOR_EACH_HEIGHT(TILE) }
#undef TILE
}

/* A panel (K,PANEL) of a matrix whose rows are ldw apart: width[0] columns at w, width[1] at w + second. */
static void FN(pack_panel)(long K, const void *w_, long ldw, long second, long width0, long width1, void *panel_) {
    const real *w = w_;
    real *panel = panel_;
    for (long k = 0; k < K; k++, w += ldw, panel += PANEL) {
        *(vec *)panel = FN(load)(w, width0);
        *(vec *)(panel + LANES) = FN(load)(w + second, width1);
    }
}

#if !defined(__clang__)
/* LANES rows become LANES columns: each of the log2(LANES) rounds interleaves the first half of the rows with the
   second. */
INLINE void FN(transpose)(vec *rows) {
    ivec low, high;
    UNROLL for (int j = 0; j < LANES; j++) low[j] = j / 2 + j % 2 * LANES, high[j] = low[j] + LANES / 2;
    UNROLL for (int round = 1; round < LANES; round *= 2) {
        vec next[LANES];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = __builtin_shuffle(rows[i], rows[i + LANES / 2], low);
            next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + LANES / 2], high);
        }
        UNROLL for (int i = 0; i < LANES; i++) rows[i] = next[i];
    }
}
#else
INLINE void FN(transpose)(vec *rows) {
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < i; j++) {
            real swapped = rows[i][j];
            rows[i][j] = rows[j][i];
            rows[j][i] = swapped;
        }
}
#endif

/* A panel (LANES,PANEL) of a transposed matrix: panel[k][j] = w[j * ldw + k] for k < K and j < columns, else 0. */
static void FN(pack_transposed)(long K, const void *w_, long ldw, long columns, void *panel_) {
    const real *w = w_;
    real *panel = panel_;
    for (long half = 0; half < PANEL; half += LANES) {
        vec rows[LANES];
        UNROLL for (int j = 0; j < LANES; j++)
            rows[j] = half + j < columns ? FN(load)(w + (half + j) * ldw, K) : (vec){0};
        FN(transpose)(rows);
        UNROLL for (int k = 0; k < LANES; k++) *(vec *)(panel + k * PANEL + half) = rows[k];
    }
}

/* m columns of K rows (lda apart) as the packed left operand of a product. */
static void FN(pack_columns)(long K, const void *a_, long lda, long m, void *packed_) {
    const real *a = a_;
    real *packed = packed_;
    if (m == ROWS)
        for (long k = 0; k < K; k++, a += lda, packed += ROWS) __builtin_memcpy(packed, a, ROWS * sizeof(real));
    else
        for (long k = 0; k < K; k++, a += lda, packed += m)
            for (long r = 0; r < m; r++) packed[r] = a[r];
}

/* ---- Rows of panels ---- */

/* out (.,PANEL): row rows[s] += row s of a panel (n,PANEL), in the order of s. */
static void FN(scatter_add_rows)(long n, const void *panel_, const int64_t *rows, void *out_) {
    const real *panel = panel_;
    for (long s = 0; s < n; s++, panel += PANEL) {
        real *out = (real *)out_ + rows[s] * PANEL;
        *(vec *)out += *(const vec *)panel;
        *(vec *)(out + LANES) += *(const vec *)(panel + LANES);
    }
}

/* out = the sum of the rows of a panel (n,PANEL), added to what is in sum (PANEL). */
static void FN(sum_rows)(long n, const void *panel_, void *sum_) {
    const real *panel = panel_;
    real *sum = sum_;
    vec first = *(vec *)sum, second = *(vec *)(sum + LANES);
    for (long s = 0; s < n; s++, panel += PANEL) {
        first += *(const vec *)panel;
        second += *(const vec *)(panel + LANES);
    }
    *(vec *)sum = first;
    *(vec *)(sum + LANES) = second;
}

/* ---- Recurrent cells: LANES hidden units of m sequences ---- */

/* a_if (m,PANEL): pre-activations of the gates i f; a_og: of o g, overwritten by o and c. The other arrays (m,.) have
   rows ld apart, and gates rows 4 ld apart, blocks of ld. gates may be NULL. Steps 3 4 5 of lstm_forward in
   numpy_kernels.py. */
static void FN(lstm_cell)(long m, long width, const void *a_if_, void *a_og_, const void *prev_c_, void *h_,
                          void *c_, void *gates_, long ld) {
    const real *a_if = a_if_, *prev_c = prev_c_;
    real *a_og = a_og_, *h = h_, *c = c_, *gates = gates_;
    for (long r = 0; r < m; r++) {
        vec i = FN(sigmoid)(*(const vec *)(a_if + r * PANEL));
        vec f = FN(sigmoid)(*(const vec *)(a_if + r * PANEL + LANES));
        vec o = FN(sigmoid)(*(const vec *)(a_og + r * PANEL));
        vec g = FN(vtanh)(*(const vec *)(a_og + r * PANEL + LANES));
        vec c_new = f * FN(load)(prev_c + r * ld, width) + i * g;
        FN(store)(c + r * ld, c_new, width);
        *(vec *)(a_og + r * PANEL) = o;
        *(vec *)(a_og + r * PANEL + LANES) = c_new;
        if (gates) {
            real *row = gates + r * 4 * ld;
            FN(store)(row, i, width);
            FN(store)(row + ld, f, width);
            FN(store)(row + 2 * ld, o, width);
            FN(store)(row + 3 * ld, g, width);
        }
    }
    for (long r = 0; r < m; r++) { /* apart, so that rows do not wait for each other's tanh */
        vec o = *(vec *)(a_og + r * PANEL), c_new = *(vec *)(a_og + r * PANEL + LANES);
        FN(store)(h + r * ld, o * FN(vtanh)(c_new), width);
    }
}

/* da_if, da_og (m,PANEL) from dh, flowing (rows flowing_ld apart; NULL: zero), the states and gates; dc is updated.
   lstm_backward in numpy_kernels.py has the equations. */
static void FN(lstm_cell_backward)(long m, long width, const void *dh_, const void *flowing_, long flowing_ld,
                                   const void *prev_c_, const void *c_, const void *gates_, void *dc_, void *da_if_,
                                   void *da_og_, long ld) {
    const real *dh = dh_, *flowing = flowing_, *prev_c = prev_c_, *c = c_, *gates = gates_;
    real *dc = dc_, *da_if = da_if_, *da_og = da_og_;
    for (long r = 0; r < m; r++) {
        const real *row = gates + r * 4 * ld;
        vec i = FN(load)(row, width), f = FN(load)(row + ld, width);
        vec o = FN(load)(row + 2 * ld, width), g = FN(load)(row + 3 * ld, width);
        vec tanh_c = FN(vtanh)(FN(load)(c + r * ld, width));
        vec dh_r = FN(load)(dh + r * ld, width);
        if (flowing) dh_r += FN(load)(flowing + r * flowing_ld, width);
        vec dc_r = FN(load)(dc + r * ld, width) + dh_r * o * ((real)1 - tanh_c * tanh_c);
        *(vec *)(da_if + r * PANEL) = dc_r * g * i * ((real)1 - i);
        *(vec *)(da_if + r * PANEL + LANES) = dc_r * FN(load)(prev_c + r * ld, width) * f * ((real)1 - f);
        *(vec *)(da_og + r * PANEL) = dh_r * tanh_c * o * ((real)1 - o);
        *(vec *)(da_og + r * PANEL + LANES) = dc_r * i * ((real)1 - g * g);
        FN(store)(dc + r * ld, dc_r * f, width);
    }
}

/* h = tanh(a), a (m,PANEL) */
static void FN(rnn_cell)(long m, long width0, long width1, const void *a_, void *h_, long ld) {
    const real *a = a_;
    real *h = h_;
    for (long r = 0; r < m; r++, a += PANEL, h += ld) {
        FN(store)(h, FN(vtanh)(*(const vec *)a), width0);
        FN(store)(h + LANES, FN(vtanh)(*(const vec *)(a + LANES)), width1);
    }
}

/* da (m,PANEL) = (dh + flowing) * (1 - h^2); flowing (m,PANEL) may be NULL and may be da */
static void FN(rnn_cell_backward)(long m, long width0, long width1, const void *dh_, const void *flowing_,
                                  const void *h_, void *da_, long ld) {
    const real *dh = dh_, *flowing = flowing_, *h = h_;
    real *da = da_;
    for (long r = 0; r < m; r++)
        for (long half = 0; half < 2; half++) {
            long width = half ? width1 : width0, at = r * ld + half * LANES;
            vec d = FN(load)(dh + at, width), h_r = FN(load)(h + at, width);
            if (flowing) d += *(const vec *)(flowing + r * PANEL + half * LANES);
            *(vec *)(da + r * PANEL + half * LANES) = d * ((real)1 - h_r * h_r);
        }
}

/* ---- Softmax ---- */

INLINE real FN(largest_of)(vec v) {
    real largest = v[0];
    for (int j = 1; j < LANES; j++) largest = v[j] > largest ? v[j] : largest;
    return largest;
}

INLINE real FN(sum_of)(vec v) {
    real sum = 0;
    for (int j = 0; j < LANES; j++) sum += v[j];
    return sum;
}

/* A row of V scores that stand in pieces of `piece` reals, `step` apart, becomes weight * (p - onehot(target)).
   Returns nll. What is beyond V in the last piece is not touched. */
static double FN(softmax_row)(long V, long piece, long step, void *scores_, int64_t target, double weight) {
    real *scores = scores_;
    vec highest = (vec){0} - (real)(IS_FLOAT ? 3.4e38 : 1.7e308);
    for (long v = 0; v < V; v += LANES) {
        real *at = scores + v / piece * step + v % piece;
        vec x = FN(load)(at, V - v);
        if (V - v < LANES)
            for (long j = V - v; j < LANES; j++) x[j] = x[0];
        highest = FN(vmax)(highest, x);
    }
    real largest = FN(largest_of)(highest);
    real target_score = scores[target / piece * step + target % piece] - largest;
    vec sums = {0};
    for (long v = 0; v < V; v += LANES) {
        real *at = scores + v / piece * step + v % piece;
        vec e = FN(vexp)(FN(load)(at, V - v) - largest);
        if (V - v < LANES)
            for (long j = V - v; j < LANES; j++) e[j] = 0;
        FN(store)(at, e, V - v);
        sums += e;
    }
    real sum = FN(sum_of)(sums), factor = (real)weight / sum;
    for (long v = 0; v < V; v += LANES) {
        real *at = scores + v / piece * step + v % piece;
        FN(store)(at, FN(load)(at, V - v) * factor, V - v);
    }
    scores[target / piece * step + target % piece] -= (real)weight;
    return __builtin_log((double)sum) - target_score;
}

/* ---- Optimisers: n elements; numpy_kernels.py has the equations ---- */

#define EACH(n) for (long j = 0, width = (n); j < (n); j += LANES, width -= LANES)

static void FN(sgd)(long n, void *w_, const void *dw_, double rate) {
    real *w = w_, learning_rate = (real)rate;
    const real *dw = dw_;
    EACH(n) FN(store)(w + j, FN(load)(w + j, width) - learning_rate * FN(load)(dw + j, width), width);
}

static void FN(sgd_momentum)(long n, void *w_, const void *dw_, void *velocity_, double rate, double momentum_) {
    real *w = w_, *velocity = velocity_, learning_rate = (real)rate, momentum = (real)momentum_;
    const real *dw = dw_;
    EACH(n) {
        vec v = momentum * FN(load)(velocity + j, width) - learning_rate * FN(load)(dw + j, width);
        FN(store)(velocity + j, v, width);
        FN(store)(w + j, FN(load)(w + j, width) + v, width);
    }
}

INLINE vec FN(root)(vec x) {
    for (int j = 0; j < LANES; j++) x[j] = IS_FLOAT ? __builtin_sqrtf(x[j]) : __builtin_sqrt(x[j]);
    return x;
}

static void FN(rmsprop)(long n, void *w_, const void *dw_, void *cache_, double rate, double decay, double eps) {
    real *w = w_, *cache = cache_, learning_rate = (real)rate, keep = (real)decay, take = (real)(1 - decay);
    real epsilon = (real)eps;
    const real *dw = dw_;
    EACH(n) {
        vec d = FN(load)(dw + j, width), v = keep * FN(load)(cache + j, width) + take * d * d;
        FN(store)(cache + j, v, width);
        FN(store)(w + j, FN(load)(w + j, width) - learning_rate * d / (FN(root)(v) + epsilon), width);
    }
}

static void FN(adam)(long n, void *w_, const void *dw_, void *m_, void *v_, double rate, double beta1, double beta2,
                     double eps, double correction1, double correction2) {
    real *w = w_, *m = m_, *v = v_;
    const real *dw = dw_;
    const real keep1 = (real)beta1, take1 = (real)(1 - beta1), keep2 = (real)beta2, take2 = (real)(1 - beta2);
    const real step = (real)(rate / correction1), scale = (real)(1 / correction2), epsilon = (real)eps;
    EACH(n) {
        vec d = FN(load)(dw + j, width);
        vec m_new = keep1 * FN(load)(m + j, width) + take1 * d;
        vec v_new = keep2 * FN(load)(v + j, width) + take2 * d * d;
        FN(store)(m + j, m_new, width);
        FN(store)(v + j, v_new, width);
        FN(store)(w + j, FN(load)(w + j, width) - step * m_new / (FN(root)(v_new * scale) + epsilon), width);
    }
}

const static struct lanes FN(lanes) = {
    NAME, LANES, ROWS, FN(tile), FN(tile_of_panels), FN(tile_of_columns), FN(pack_panel), FN(pack_transposed),
    FN(pack_columns),
    FN(scatter_add_rows), FN(sum_rows), FN(put_rows), FN(lstm_cell), FN(lstm_cell_backward),
    FN(rnn_cell), FN(rnn_cell_backward), FN(softmax_row), FN(sgd), FN(sgd_momentum), FN(rmsprop), FN(adam),
};

#undef vec
#undef ivec
#undef INVERSE
#undef PANEL
#undef FOR_EACH_HEIGHT
#undef AHEAD
#undef FETCH_EVERY
#undef HIDE
#undef EACH
#undef IS_FLOAT
#undef MAGIC
#undef LN2_HIGH
#undef LN2_LOW
#undef EXP_LOWEST
#undef EXP_HIGHEST
#undef real
#undef integer
#undef LANES
#undef FN
