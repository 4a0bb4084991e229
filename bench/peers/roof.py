"""The machine's roofs: products of 2048-cubes by NumPy's BLAS, and the triad of STREAM, float32."""

import numpy as np

from fastrnn.bench import workload
from fastrnn.bench.peers import timed


def start(task, roof="cube"):
    """Compete in any task; nobody compares the answer. ``roof`` is cube, or the bytes that a triad moves."""
    if roof == "cube":
        side = round((workload.CUBE_FLOPS / 2) ** (1 / 3))
        a, b = np.random.default_rng(0).standard_normal((2, side, side), np.float32)
        out = np.empty_like(a)
        return None, timed(lambda: np.matmul(a, b, out=out))
    import numba

    numba.set_num_threads(min(task.threads, numba.config.NUMBA_NUM_THREADS))
    a, b, c = np.ones((3, int(roof) // 12), np.float32)

    @numba.njit(parallel=True)
    def triad(a, b, c):
        """a = b + 3 c (J. D. McCalpin's STREAM): reads two arrays, writes one."""
        for i in numba.prange(len(a)):
            a[i] = b[i] + np.float32(3) * c[i]

    return None, timed(lambda: triad(a, b, c))
