"""Fixtures: every kernel test runs on every backend of this installation and in both real types."""

import os
from pathlib import Path

import numpy as np
import pytest

# More threads than there are cores, and a cache of our own, before anybody imports Numba
os.environ.setdefault("NUMBA_NUM_THREADS", "8")
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "numba"))

import fastrnn
from fastrnn import backend


@pytest.fixture(params=fastrnn.available_backends())
def kernels(request):
    """The kernels of each backend in turn, which the layers use too."""
    with fastrnn.use_backend(request.param):
        yield backend.kernels()


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(231)


@pytest.fixture(scope="session")
def real_data():
    """Real data sets for trying, which are not part of the project."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    directory = Path(os.environ.get("FASTRNN_TEST_DATA", beside))
    if not directory.is_dir():
        pytest.skip("no real data: set FASTRNN_TEST_DATA to a directory with flickr8k/ and coco/")
    return directory
