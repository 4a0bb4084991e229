"""What users hand in, checked and converted once: below this line arrays are what the kernels expect."""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[Any]
Sizes = dict[str, int]
Memory = Callable[[int], Array]  # so many bytes, at least, as an array of uint8

CACHE_LINE = 64  # bytes


def reals(spec: str, *arrays: ArrayLike) -> tuple[list[Array], Sizes]:
    """Arrays of real numbers in one type, C-contiguous, of shapes that fit together.

    ``spec`` names each array with its shape, as in ``"x(N,D) Wx(D,4H) Wh(H,4H)"``. The type is float32 where
    the arrays' common type is float32 or narrower, else float64. An array that already is as wanted is not
    copied. Returns the arrays and the sizes of the letters.

    Raises ``TypeError`` for anything but real numbers, ``ValueError`` for shapes that do not fit.
    """
    entries = re.findall(r"(\w+)\(([^)]*)\)", spec)
    converted = [real(name, array) for (name, _), array in zip(entries, arrays, strict=True)]
    sizes: Sizes = {}
    for (name, dims), array in zip(entries, converted, strict=True):
        _match(name, dims, array.shape, sizes)
    dtype = real_type(*converted)
    return [np.asarray(array, dtype, order="C") for array in converted], sizes


def real(name: str, array: ArrayLike) -> Array:
    """``array`` as a NumPy array of real numbers. Raises ``TypeError`` naming it otherwise."""
    try:
        converted = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{name}: not an array: {error}") from error
    if converted.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got an array of {converted.dtype}")
    return converted


def real_type(*arrays: Array) -> np.dtype[Any]:
    """float32 where the arrays' common type is float32 or narrower, else float64."""
    common = np.result_type(np.float32, *(array.dtype for array in arrays))
    return np.dtype(np.float32 if common == np.float32 else np.float64)


def _match(name: str, dims: str, shape: tuple[int, ...], sizes: Sizes) -> None:
    """Check a shape against ``"D,4H"``, learning the letters that are new."""
    symbols = dims.split(",")
    fits = len(symbols) == len(shape)
    if fits:
        for symbol, size in zip(symbols, shape, strict=True):
            factor, letter = int(symbol[:-1] or 1), symbol[-1]
            if factor == 1:
                sizes.setdefault(letter, size)
            fits = fits and sizes.get(letter) is not None and factor * sizes[letter] == size
    if not fits:
        letters = dict.fromkeys(symbol[-1] for symbol in symbols)
        known = ", ".join(f"{letter}={sizes[letter]}" for letter in letters if letter in sizes)
        where = f" with {known}" if known else ""
        raise ValueError(f"{name}: expected shape ({dims}){where}, got {shape}")


def integers(name: str, array: ArrayLike) -> Array:
    """``array`` as int64, C-contiguous. Floats that are whole numbers will do.

    Raises ``TypeError`` for anything but numbers, ``ValueError`` for fractions and what int64 cannot hold.
    """
    given = _whole(name, array)
    fits = (given >= -(2**63)) & (given < 2**63)
    if not fits.all():
        raise ValueError(f"{name}: expected numbers that int64 can hold, got {given[~fits].flat[0]}")
    return np.asarray(given, np.int64, order="C")


def tokens(name: str, array: ArrayLike, V: int) -> Array:
    """Token ids as int64, C-contiguous, all in 0..V-1.

    Raises as :func:`integers` does, and ``IndexError`` for an id outside the vocabulary.
    """
    given = _whole(name, array)
    outside = (given < 0) | (given >= V)
    if outside.any():
        where = tuple(int(i) for i in np.argwhere(outside)[0])
        raise IndexError(
            f"{name}: token {given[where]:.0f} at {list(where)} is outside the vocabulary of {V} (0..{V - 1})"
        )
    return np.asarray(given, np.int64, order="C")


def _whole(name: str, array: ArrayLike) -> Array:
    """``array`` with its values checked to be whole numbers."""
    given = real(name, array)
    if given.dtype.kind == "f":
        whole = np.isfinite(given) & (given == np.trunc(given))
        if not whole.all():
            raise ValueError(f"{name}: expected whole numbers, got {given[~whole].flat[0]}")
    return given


def fresh_memory(nbytes: int) -> Array:
    """Bytes that nobody else has."""
    return np.empty(nbytes, np.uint8)


def in_one_piece(memory: Memory, dtype: DTypeLike, *shapes: tuple[int, ...]) -> list[Array]:
    """Arrays of unknown content, side by side in memory, each from the start of a cache line on.

    glibc keeps a freed piece for the next time if it is below 32 MiB and not much larger than others before;
    of many middling ones it hands most back to the system, which has to clear them before they are used.
    """
    return _views(memory, dtype, shapes)[1]


def views_of_one(dtype: DTypeLike, *shapes: tuple[int, ...]) -> tuple[Array, list[Array]]:
    """An array (n,) of zeros, and a view into it for each shape, each from the start of a cache line on.

    Where the views are in the array depends on the shapes alone: other processes have the same places.
    """
    whole, views = _views(lambda nbytes: np.zeros(nbytes, np.uint8), dtype, shapes)
    return whole.view(dtype), views


def _views(
    memory: Memory, dtype: DTypeLike, shapes: tuple[tuple[int, ...], ...]
) -> tuple[Array, list[Array]]:
    """Bytes from the first cache line in memory on, and arrays of these shapes in them."""
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape in shapes]
    padded = [-(-size // CACHE_LINE) * CACHE_LINE for size in sizes]
    piece = memory(sum(padded) + CACHE_LINE)
    start = -piece.__array_interface__["data"][0] % CACHE_LINE
    whole = piece[start : start + sum(padded)]
    starts = itertools.accumulate(padded, initial=0)
    views = [
        whole[start : start + size].view(dtype).reshape(shape)
        for start, size, shape in zip(starts, sizes, shapes, strict=False)
    ]
    return whole, views
