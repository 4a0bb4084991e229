"""Where fastrnn spends a training iteration: kernels of the contract, timed as they are called."""

import functools
import inspect
import statistics
import time
from collections import defaultdict

from fastrnn import backend
from fastrnn.backend import Kernels
from fastrnn.bench.peers import ours

REST = "all between them"


def start(task, name):
    """``run(count)`` gives a dictionary of the stages' median seconds instead of a list."""
    loss, run_iterations = ours.start(task, name)
    spent = watch(backend.kernels())

    def run(count):
        stages = defaultdict(list)
        for _ in range(count):
            spent.clear()
            (whole,) = run_iterations(1)
            for stage, seconds in spent.items():
                stages[stage].append(seconds)
            stages[REST].append(whole - sum(spent.values()))
        return {stage: statistics.median(seconds) for stage, seconds in stages.items()}

    return loss, run


def watch(kernels):
    """Let every kernel add the seconds that it takes to a dictionary, unless another one called it."""
    spent, running = defaultdict(float), []

    def watched(name, kernel):
        @functools.wraps(kernel)
        def timed(*args, **kwargs):
            if running:
                return kernel(*args, **kwargs)
            running.append(name)
            started = time.perf_counter()
            try:
                return kernel(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - started
                running.pop()

        return timed

    for name, _ in inspect.getmembers(Kernels, inspect.isfunction):
        if hasattr(kernels, name):
            setattr(kernels, name, watched(name, getattr(kernels, name)))
    return spent
