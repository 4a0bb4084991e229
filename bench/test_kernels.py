"""Every kernel on every backend at the published training shape.

``pytest bench --benchmark-enable --benchmark-group-by=group`` shows the backends side by side. An answer is
compared with float64 NumPy before it is timed; without ``--benchmark-enable`` each body runs once as a test.
"""

import numpy as np
import pytest

import fastrnn
from bench.cases import CASES, Size, call, make_case
from fastrnn import backend
from fastrnn.kernels import numpy_kernels

# 100 COCO captions: 10.2 words on average, deviation 1.8, and the END token; 3.6 tokens per distinct one
LENGTHS = tuple(int(n) for n in np.clip(np.random.default_rng(0).normal(11.2, 1.8, 100).round(), 2, 16))
PUBLISHED = Size(LENGTHS, D=256, H=512, V=1004, U=round(sum(LENGTHS) / 3.6))


@pytest.mark.parametrize("name", fastrnn.available_backends())
@pytest.mark.parametrize("kernel", CASES)
def test_kernel(benchmark, kernel, name):
    with fastrnn.use_backend(name):
        kernels = backend.kernels()
    case = make_case(kernel, PUBLISHED, np.float32)
    expected = make_case(kernel, PUBLISHED, np.float64).run(numpy_kernels)
    for output, value in case.run(kernels).items():
        scale = np.abs(expected[output]).max()
        np.testing.assert_allclose(value, expected[output], rtol=1e-3, atol=1e-4 * scale, err_msg=output)
    arguments, work = case.arguments(), kernels.make_work()
    benchmark.group = kernel
    benchmark.extra_info["threads"] = fastrnn.get_num_threads()
    benchmark(lambda: call(kernels, kernel, arguments, work))
