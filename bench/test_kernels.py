"""Every kernel on every backend, in several sizes and both types.

``pytest bench --benchmark-enable --benchmark-group-by=group`` shows the backends side by side. An answer is
compared with float64 NumPy before it is timed; without ``--benchmark-enable`` each body runs
once as a test, at the small sizes.
The first call, which may compile and touches memory for the first time, is in ``extra_info`` of the JSON.
"""

import functools
import itertools
import time

import numpy as np

import fastrnn
from fastrnn import backend
from fastrnn.bench.cases import BENCHMARKED, CASES, Case, call, make_case
from fastrnn.kernels import numpy_kernels

TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # relative to the largest number of an array


# All backends of a case come one after the other, and all types of a size


@functools.lru_cache(maxsize=1)
def case_of(kernel, size, dtype):
    """The case of a kernel; random numbers for the large ones take a second."""
    return make_case(kernel, BENCHMARKED[size], dtype)


@functools.lru_cache(maxsize=1)
def exact(kernel, size):
    """What float64 NumPy answers."""
    return make_case(kernel, BENCHMARKED[size], np.float64).run(numpy_kernels)


def check(case: Case, kernels, size):
    """Raise ``AssertionError`` where an answer is wrong; returns the seconds of the call."""
    arguments = case.arguments()
    started = time.perf_counter()
    loss = call(kernels, case.kernel, arguments, kernels.make_work())
    seconds = time.perf_counter() - started
    for output, expected in exact(case.kernel, size).items():
        error = np.abs((loss if output == "loss" else arguments[output]) - expected).max()
        largest = np.abs(expected).max()
        assert error <= TOLERANCE[case.dtype.name] * largest, (
            f"{output}: off by {error}, the largest is {largest}"
        )
    return seconds


def pytest_generate_tests(metafunc):
    """All sizes where times are taken, the small ones where not; large models are trained in float32."""
    sizes = BENCHMARKED if metafunc.config.getoption("benchmark_enable") else ("toy", "N25")
    each = itertools.product(CASES, sizes, TOLERANCE, fastrnn.available_backends())
    kinds = [kind for kind in each if kind[1:3] != ("large", "float64")]
    metafunc.parametrize(("kernel", "size", "dtype", "name"), kinds)


def test_kernel(benchmark, kernel, size, dtype, name):
    case = case_of(kernel, size, dtype)
    with fastrnn.use_backend(name):
        kernels = backend.kernels()
        benchmark.extra_info["first call, s"] = check(case, kernels, size)
        benchmark.extra_info["threads"] = fastrnn.get_num_threads()
        benchmark.group = f"{kernel} {size} {dtype}"
        arguments, work = case.arguments(), kernels.make_work()
        if kernel.endswith("_step"):  # decoding packs its weights once
            gates = arguments["Wh"].shape[1] // arguments["Wh"].shape[0]
            arguments["Wh"] = kernels.pack(arguments["Wh"], gates, kernels.make_work())
        if benchmark.enabled:
            time.sleep(0.015)  # until the threads of what computed last sleep
        benchmark(lambda: call(kernels, kernel, arguments, work))
