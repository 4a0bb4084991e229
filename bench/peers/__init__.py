"""The competitors of the race, one module each.

A competitor is a module with ``start(task, *arguments) -> (answer, run)``: ``answer`` is compared with
everybody else's before anything is timed, and ``run(count)`` does the task ``count`` times and returns the
seconds of each.
"""

import itertools
import time
from collections.abc import Callable

from fastrnn.bench import workload


def timed(once: Callable[[], object]) -> Callable[[int], list[float]]:
    """A ``run`` that does ``once`` again and again."""

    def run(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            once()
            seconds.append(time.perf_counter() - started)
        return seconds

    return run


def training(
    task: workload.Task, step: Callable[[workload.Array, workload.Array], object]
) -> Callable[[int], list[float]]:
    """A ``run`` of training iterations, or of epochs; ``step`` takes features (N,D), captions (N,T+1)."""
    if task.kind == "epoch":
        return timed(lambda: [step(*batch) for batch in workload.epoch(task)])
    batches = itertools.cycle(workload.batches(task))
    return timed(lambda: step(*next(batches)))
