"""The kernels of fastrnn, one module per backend, all with the same functions in the same order.

``numpy_kernels`` is the specification: read it first. ``README.md`` beside this file explains the
notation, the memory layout and the contract. Kernels are leaves: they never import ``fastrnn``.
"""

if __name__ != "fastrnn.kernels":
    raise ImportError("this folder is the package fastrnn.kernels: import fastrnn.kernels, not kernels")

from . import process as process  # it has to see a fork, whichever backend is imported later
