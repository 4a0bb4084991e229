"""The machine's roof: a product of 2048-cubes by NumPy's BLAS, float32."""

import numpy as np

from bench.peers import timed

SIDE = 2048


def start(task):
    """Compete in any task; the answer is never compared."""
    a, b = np.random.default_rng(0).standard_normal((2, SIDE, SIDE), np.float32)
    out = np.empty_like(a)
    return None, timed(lambda: np.matmul(a, b, out=out))
