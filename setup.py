"""Which folder becomes which package, and the compiled kernels; everything else is in pyproject.toml.

The kernels live in the top-level folder ``kernels/`` and install as ``fastrnn.kernels``, the benchmarks in
``bench/`` and install as ``fastrnn.bench`` (docs/decisions.md says why). Without a compiler the kernels in
Cython are left out and Numba computes; ``FASTRNN_REQUIRE_CYTHON=1`` makes that an error instead.
"""

import os

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

# Never -ffast-math, which also changes how the process that loads the library treats small numbers, and never
# -march=native: isa.h has the kernels for each instruction set.
OPTIONS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
OPENMP = ["-fopenmp"]
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


class BuildKernels(build_ext):
    """Builds with OpenMP where the compiler has it, else for one thread."""

    def build_extension(self, ext: Extension) -> None:
        checks = SANITIZE if os.environ.get("FASTRNN_SANITIZE") == "1" else []  # make sanitize
        try:
            self.build_with(ext, OPENMP + checks)
        except (CompileError, LinkError):
            self.build_with(ext, checks)

    def build_with(self, ext: Extension, options: list[str]) -> None:
        ext.extra_compile_args, ext.extra_link_args = OPTIONS + options, options
        super().build_extension(ext)


kernels = Extension(
    "fastrnn.kernels.cython_kernels",
    ["kernels/cython_kernels.pyx"],
    include_dirs=["kernels", np.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
    depends=["kernels/isa.h", "kernels/lanes.h", "kernels/threads.h"],
)
extensions = cythonize([kernels], build_dir="build/cython")
for extension in extensions:  # cythonize drops it
    extension.optional = os.environ.get("FASTRNN_REQUIRE_CYTHON") != "1"

setup(
    packages=["fastrnn", "fastrnn.data", "fastrnn.kernels", "fastrnn.bench", "fastrnn.bench.peers"],
    package_dir={"fastrnn.kernels": "kernels", "fastrnn.bench": "bench"},
    ext_modules=extensions,
    cmdclass={"build_ext": BuildKernels},
)
