"""The machine's roofs: products of 2048-cubes by NumPy's BLAS, and the triad of STREAM, float32."""

import numba
import numpy as np

from fastrnn.bench.peers import timed

SIDE = 2048
CUBE_FLOPS = 2 * SIDE**3


def start(task, roof="cube"):
    """Compete in any task; nobody compares the answer. ``roof`` is cube, or the bytes that a triad moves."""
    if roof == "cube":
        a, b = np.random.default_rng(0).standard_normal((2, SIDE, SIDE), np.float32)
        out = np.empty_like(a)
        return None, timed(lambda: np.matmul(a, b, out=out))
    numba.set_num_threads(min(task.threads, numba.config.NUMBA_NUM_THREADS))
    a, b, c = np.ones((3, int(roof) // 12), np.float32)
    return None, timed(lambda: triad(a, b, c))


@numba.njit(parallel=True)
def triad(a, b, c):
    """a = b + 3 c (J. D. McCalpin's STREAM): reads two arrays, writes one."""
    for i in numba.prange(len(a)):
        a[i] = b[i] + np.float32(3) * c[i]
