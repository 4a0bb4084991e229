"""The competitors of the race, one module each.

A competitor is a module with ``start(task) -> (answer, run)``: ``answer`` is compared with everybody else's
before anything is timed, and ``run(count)`` does the task ``count`` times and returns the seconds of each.
"""

import time
from collections.abc import Callable


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
