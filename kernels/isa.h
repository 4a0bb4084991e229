/* lanes.h for every instruction set of this architecture, and the choice between them at run time. */

#ifndef FASTRNN_ISA_H
#define FASTRNN_ISA_H

#include <stdint.h>
#include <string.h>

#define LINE 64 /* bytes that memory comes in */
#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* What the sums of a tile begin with: row r with row rows[r] of a panel, or every row with its first one where rows is
   NULL; with zeros where panel is NULL. */
struct origin {
    const void *panel;
    const int64_t *rows;
};

/* Where a tile goes: rows ld apart, width0 columns at x and width1 columns `second` after it, added to what is there
   if asked to. */
struct place {
    void *x;
    long ld, second, width0, width1;
    int add;
};

/* Lines of memory that are needed after a tile. It fetches them one by one on its way: all at once they would keep
   its own operands waiting. The longest list is lstm_backward's: dh, prev_c and four gates, two lines each, 13 rows. */
struct lines {
    long next, count;
    const char *at[6 * 2 * 13];
};

/* m rows of so many bytes, `stride` apart, are needed soon. */
static inline void expect_rows(struct lines *soon, long m, const void *x, long stride, long bytes) {
    const char *row = x;
    for (long r = 0; r < m; r++, row += stride)
        for (long at = 0; at < bytes; at += LINE) soon->at[soon->count++] = row + at;
}

/* What lanes.h offers for one instruction set and type; pointers are to reals of that type. */
struct lanes {
    const char *isa;
    long count; /* reals in a vector register; a panel is twice as wide */
    long rows;  /* of a tile */
    void (*tile)(long m, long K, const void *a, long lda, const void *b, long ldb, long second,
                 const struct origin *origin, const struct place *place, struct lines *soon);
    void (*tile_of_panels)(long m, long panels, const void *a, long a_step, const void *b,
                           const struct origin *origin, const struct place *place, struct lines *soon);
    void (*tile_of_columns)(long m, long K, const void *a, const void *b, const struct origin *origin,
                            const struct place *place);
    void (*pack_panel)(long K, const void *w, long ldw, long second, long width0, long width1, void *panel);
    void (*pack_transposed)(long K, const void *w, long ldw, long columns, void *panel);
    void (*pack_columns)(long K, const void *a, long lda, long m, void *packed);
    void (*scatter_add_rows)(long n, const void *panel, const int64_t *rows, void *out);
    void (*sum_rows)(long n, const void *panel, void *sum);
    void (*put_rows)(long m, const void *acc, void *x, long ldx, long second, long width0, long width1, int add);
    void (*lstm_cell)(long m, long width, const void *a_if, void *a_og, const void *prev_c, void *h, void *c,
                      void *gates, long ld);
    void (*lstm_cell_backward)(long m, long width, const void *dh, const void *flowing, long flowing_ld,
                               const void *prev_c, const void *c, const void *gates, void *dc, void *da_if,
                               void *da_og, long ld);
    void (*rnn_cell)(long m, long width0, long width1, const void *a, void *h, long ld);
    void (*rnn_cell_backward)(long m, long width0, long width1, const void *dh, const void *flowing, const void *h,
                              void *da, long ld);
    double (*softmax_row)(long V, long piece, long step, void *scores, int64_t target, double weight);
    void (*sgd)(long n, void *w, const void *dw, double rate);
    void (*sgd_momentum)(long n, void *w, const void *dw, void *velocity, double rate, double momentum);
    void (*rmsprop)(long n, void *w, const void *dw, void *cache, double rate, double decay, double eps);
    void (*adam)(long n, void *w, const void *dw, void *m, void *v, double rate, double beta1, double beta2,
                 double eps, double correction1, double correction2);
};

#if defined(__clang__)
#define BEGIN_TARGET(features) ATTRIBUTE(push(__attribute__((target(features))), apply_to = function))
#define DO_PRAGMA(x) _Pragma(#x)
#define ATTRIBUTE(x) DO_PRAGMA(clang attribute x)
#define END_TARGET _Pragma("clang attribute pop")
#else
#define DO_PRAGMA(x) _Pragma(#x)
#define BEGIN_TARGET(features) DO_PRAGMA(GCC push_options) DO_PRAGMA(GCC target(features))
#define END_TARGET DO_PRAGMA(GCC pop_options)
#endif

/* Vectors of 128 bits, by whatever instructions the compiler takes for granted. */
#define NAME "generic"
#define ROWS 6
#define real float
#define integer int32_t
#define LANES 4
#define FN(name) name##_f32_generic
#define INVERSE(x) ((real)1 / (x))
#include "lanes.h"
#define real double
#define integer int64_t
#define LANES 2
#define FN(name) name##_f64_generic
#define INVERSE(x) ((real)1 / (x))
#include "lanes.h"
#undef NAME

#if defined(__x86_64__)

BEGIN_TARGET("sse3,ssse3,sse4.1,sse4.2,popcnt")
#define NAME "x86-64-v2"
#define real float
#define integer int32_t
#define LANES 4
#define FN(name) name##_f32_v2
#define INVERSE(x) ((real)1 / (x))
#include "lanes.h"
#define real double
#define integer int64_t
#define LANES 2
#define FN(name) name##_f64_v2
#define INVERSE(x) ((real)1 / (x))
#include "lanes.h"
#undef NAME
END_TARGET

BEGIN_TARGET("sse3,ssse3,sse4.1,sse4.2,popcnt,avx,avx2,fma,bmi,bmi2")
#define NAME "x86-64-v3"
#define real float
#define integer int32_t
#define LANES 8
#define FN(name) name##_f32_v3
#define INVERSE(x) ((real)1 / (x))
#include "lanes.h"
#define real double
#define integer int64_t
#define LANES 4
#define FN(name) name##_f64_v3
#define INVERSE(x) ((real)1 / (x))
#include "lanes.h"
#undef NAME
#undef ROWS
END_TARGET

BEGIN_TARGET("sse3,ssse3,sse4.1,sse4.2,popcnt,avx,avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")
/* An estimate to 14 bits and a step of Newton's, which is twice as fast as a division. */
typedef float __v16sf_v4 __attribute__((vector_size(64)));
typedef float floats_v4 __attribute__((vector_size(64), aligned(4), may_alias));
INLINE floats_v4 inverse_v4(floats_v4 x) {
    floats_v4 estimate = (floats_v4)__builtin_ia32_rcp14ps512_mask((__v16sf_v4)x, (__v16sf_v4){0}, (unsigned short)-1);
    return estimate * (2.0f - x * estimate);
}
#define NAME "x86-64-v4"
#define ROWS 13
#define real float
#define integer int32_t
#define LANES 16
#define FN(name) name##_f32_v4
#define INVERSE(x) inverse_v4(x)
#include "lanes.h"
#define real double
#define integer int64_t
#define LANES 8
#define FN(name) name##_f64_v4
#define INVERSE(x) ((real)1 / (x))
#include "lanes.h"
#undef NAME
END_TARGET

#endif /* x86-64 */
#undef ROWS

/* The variants that this CPU can run, the best last; NULL at the end. */
static const struct lanes **usable_lanes(int reals_are_float) {
    static const struct lanes *usable[2][5];
    int n = 0;
    if (usable[0][0]) return usable[!reals_are_float];
#define ADD(isa) usable[0][n] = &lanes_f32_##isa, usable[1][n] = &lanes_f64_##isa, n++
    ADD(generic);
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt")) ADD(v2);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) ADD(v3);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        ADD(v4);
#endif
#undef ADD
    return usable[!reals_are_float];
}

#endif
