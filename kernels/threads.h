/* Threads of the Cython kernels: OpenMP where the compiler has it, else one. */

#ifndef FASTRNN_THREADS_H
#define FASTRNN_THREADS_H

#ifdef _OPENMP
#include <omp.h>
#define HAS_THREADS 1
static inline int team_size(void) { return omp_get_num_threads(); }
static inline void wait_for_team(void) {
#pragma omp barrier
}
#else
#define HAS_THREADS 0
static inline int team_size(void) { return 1; }
static inline void wait_for_team(void) {}
#endif

/* Numbers below the smallest normal one become 0 in this thread, from flush to restore: arithmetic on them is up to a
   hundred times slower. */
#if defined(__x86_64__)
static inline unsigned flush_denormals(void) {
    unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040);
    return before;
}
static inline void restore_denormals(unsigned before) { __builtin_ia32_ldmxcsr(before); }
#else
static inline unsigned flush_denormals(void) { return 0; }
static inline void restore_denormals(unsigned before) { (void)before; }
#endif

#endif
