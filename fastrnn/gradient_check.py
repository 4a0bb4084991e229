"""Central differences: (f(x + h) - f(x - h)) / 2h, with the published names.

All functions change ``x`` in place, one element at a time, and restore it. Use float64: with float32 the
rounding of f drowns the slope.
"""

from collections.abc import Callable, Iterator, Sequence
from random import randrange
from typing import Any

import numpy as np

from fastrnn.arrays import Array

__all__ = [
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "eval_numerical_gradient_blobs",
    "eval_numerical_gradient_net",
    "grad_check_sparse",
]

Index = tuple[int, ...]


def eval_numerical_gradient(
    f: Callable[[Array], Any], x: Array, verbose: bool = True, h: float = 1e-5
) -> Array:
    """Gradient, shaped like x, of a function of x that returns a number.

    ``verbose`` prints every index with its slope.
    """
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        above, below = _around(lambda: f(x), x, index, h)
        gradient[index] = (above - below) / (2 * h)
        if verbose:
            print(index, gradient[index])
    return gradient


def eval_numerical_gradient_array(f: Callable[[Array], Any], x: Array, df: Any, h: float = 1e-5) -> Array:
    """Gradient, shaped like x, of sum(f(x) * df), where f returns an array or a number and df is like it."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        above, below = _around(lambda: f(x), x, index, h)
        gradient[index] = np.sum((above - below) * df) / (2 * h)
    return gradient


def eval_numerical_gradient_blobs(
    f: Callable[..., Any], inputs: Sequence[Any], output: Any, h: float = 1e-5
) -> list[Array]:
    """Gradients of a function that reads blobs and writes its result into one.

    A blob has arrays ``vals`` and ``diffs``; ``f(*inputs, output)`` fills ``output.vals``, and
    ``output.diffs`` is the gradient from above. Returns one gradient per input.
    """

    def run() -> Array:
        f(*inputs, output)
        return np.copy(output.vals)

    gradients = []
    for blob in inputs:
        gradient = np.zeros_like(blob.diffs)
        for index in np.ndindex(blob.vals.shape):
            above, below = _around(run, blob.vals, index, h)
            gradient[index] = np.sum((above - below) * output.diffs) / (2 * h)
        gradients.append(gradient)
    return gradients


def eval_numerical_gradient_net(net: Any, inputs: Sequence[Any], output: Any, h: float = 1e-5) -> list[Array]:
    """:func:`eval_numerical_gradient_blobs` of ``net.forward()``."""
    return eval_numerical_gradient_blobs(lambda *blobs: net.forward(), inputs, output, h=h)


def grad_check_sparse(
    f: Callable[[Array], Any], x: Array, analytic_grad: Array, num_checks: int = 10, h: float = 1e-5
) -> None:
    """Print numerical and analytic slope and their relative error at ``num_checks`` random elements of x."""
    for index in _random_indices(x.shape, num_checks):
        above, below = _around(lambda: f(x), x, index, h)
        numerical = (above - below) / (2 * h)
        analytic = analytic_grad[index]
        error = abs(numerical - analytic) / max(abs(numerical) + abs(analytic), np.finfo(float).tiny)
        print(f"numerical: {numerical:f} analytic: {analytic:f}, relative error: {error:e}")


def _around(f: Callable[[], Any], x: Array, index: Index, h: float) -> tuple[Any, Any]:
    """f with x[index] a little above and a little below its value, which is restored."""
    value = x[index]
    try:
        x[index] = value + h
        above = np.copy(f())
        x[index] = value - h
        below = np.copy(f())
    finally:
        x[index] = value
    return above, below


def _random_indices(shape: tuple[int, ...], count: int) -> Iterator[Index]:
    for _ in range(count):
        yield tuple(randrange(size) for size in shape)
