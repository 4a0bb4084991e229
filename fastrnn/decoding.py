"""Turning a model's scores into words."""

from collections.abc import Callable

import numpy as np

from fastrnn.arrays import Array


def greedy(step: Callable[[Array], Array], first: Array, max_length: int) -> Array:
    """Take the word with the highest score at every step.

    ``step`` takes the last words (N,) int64, advances its own state and returns scores (N,V), which it may
    overwrite the next time; ``first`` (N,) are the words to begin with. Returns words (N,max_length) int32;
    every sequence runs to the end.
    """
    words = np.empty((len(first), max_length), np.int32)
    last = first
    for t in range(max_length):
        last = step(last).argmax(axis=1)
        words[:, t] = last
    return words
