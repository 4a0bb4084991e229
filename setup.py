"""Which folder becomes which package; everything else about the project is in pyproject.toml.

The kernels live in the top-level folder ``kernels/`` and install as ``fastrnn.kernels``
(docs/decisions.md says why).
"""

from setuptools import setup

setup(
    packages=["fastrnn", "fastrnn.data", "fastrnn.kernels"],
    package_dir={"fastrnn.kernels": "kernels"},
)
