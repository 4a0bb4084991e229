"""The door to the kernels: who chooses, for whom, and what is said when a choice is not to be had."""

import asyncio
import os
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import threadpoolctl

import fastrnn
from fastrnn import backend
from fastrnn.kernels import numpy_kernels


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch):
    """No choice by the environment, none left behind, and a second backend that is NumPy by another name."""
    monkeypatch.delenv("FASTRNN_BACKEND", raising=False)
    monkeypatch.delenv("FASTRNN_NUM_THREADS", raising=False)
    monkeypatch.setattr(backend, "_in_process", [])
    other = types.ModuleType("fastrnn.kernels.other")
    other.__dict__.update({k: v for k, v in vars(numpy_kernels).items() if not k.startswith("__")})
    other.__spec__ = numpy_kernels.__spec__
    monkeypatch.setitem(sys.modules, "fastrnn.kernels.other", other)
    monkeypatch.setitem(backend._MODULES, "other", "fastrnn.kernels.other")


def test_the_choice():
    assert fastrnn.available_backends()[-2:] == ("numpy", "other")
    assert fastrnn.current_backend() == fastrnn.available_backends()[0]
    fastrnn.use_backend("other")
    assert fastrnn.current_backend() == "other"
    with fastrnn.use_backend("numpy"):
        assert fastrnn.current_backend() == "numpy"
        with fastrnn.use_backend("other"):
            assert fastrnn.current_backend() == "other"
        assert fastrnn.current_backend() == "numpy"
    assert fastrnn.current_backend() == "other"
    assert backend.kernels() is sys.modules["fastrnn.kernels.other"]


def test_the_environment(monkeypatch):
    monkeypatch.setenv("FASTRNN_BACKEND", "other")
    assert fastrnn.current_backend() == "other"
    fastrnn.use_backend("numpy")
    assert fastrnn.current_backend() == "numpy"


def test_the_choice_ends_with_an_exception():
    with pytest.raises(KeyError), fastrnn.use_backend("other"):
        raise KeyError
    assert fastrnn.current_backend() != "other"


def test_asked_means_strict(monkeypatch):
    with pytest.raises(ValueError, match=r"backend: expected one of .*'numpy'.*, got 'torch'"):
        fastrnn.use_backend("torch")
    monkeypatch.setitem(backend._MODULES, "cython", "fastrnn.kernels.missing_kernels")
    with pytest.raises(ImportError, match=r"backend: 'cython' is not part of this installation, .*'numpy'"):
        fastrnn.use_backend("cython")
    monkeypatch.setenv("FASTRNN_BACKEND", "cython")
    with pytest.raises(ImportError, match="FASTRNN_BACKEND: 'cython' is not part"):
        fastrnn.sgd(np.ones(1), np.ones(1))


def test_threads_and_tasks_keep_their_own():
    """A context's choice is not seen by others, and no choice is lost when many are made at once."""
    fastrnn.use_backend("numpy")
    wrong = []
    barrier = threading.Barrier(8)

    def work(name):
        barrier.wait()
        for _ in range(300):
            with fastrnn.use_backend(name):
                if fastrnn.current_backend() != name:
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("numpy", "other") * 4]
    with fastrnn.use_backend("other"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert fastrnn.current_backend() == "other"
    assert not wrong
    assert fastrnn.current_backend() == "numpy"

    async def task(name):
        with fastrnn.use_backend(name):
            for _ in range(20):
                await asyncio.sleep(0)
                assert fastrnn.current_backend() == name

    async def tasks():
        await asyncio.gather(*(task(name) for name in ("numpy", "other") * 4))

    asyncio.run(tasks())


def test_concurrent_calls_are_right(rng):
    """Each thread has its own scratch."""
    inputs = [rng.standard_normal(shape) for shape in ((4, 6, 3), (4, 5), (3, 20), (5, 20), (20,))]
    h, cache = fastrnn.lstm_forward(*inputs)
    expected = fastrnn.lstm_backward(h, cache)
    wrong = []

    def work():
        for _ in range(50):
            h, cache = fastrnn.lstm_forward(*inputs)
            for a, b in zip(fastrnn.lstm_backward(h, cache), expected, strict=True):
                if not np.array_equal(a, b):
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_scratch_is_neither_shared_between_threads_nor_between_backends():
    mine, found = backend.kernels_and_work()[1], []
    assert backend.kernels_and_work()[1] is mine
    thread = threading.Thread(target=lambda: found.append(backend.kernels_and_work()[1]))
    thread.start()
    thread.join()
    with fastrnn.use_backend("other"):
        found.append(backend.kernels_and_work()[1])
    assert all(work is not mine for work in found)


def test_many_plain_calls_leave_one_choice():
    for _ in range(50):
        fastrnn.use_backend("other")
        fastrnn.use_backend("numpy")
    assert len(backend._in_process) <= 2
    kept = fastrnn.use_backend("other")
    fastrnn.use_backend("numpy")
    with kept:
        assert fastrnn.current_backend() == "other"
    assert fastrnn.current_backend() == "numpy"


def blas_threads():
    """NumPy's: SciPy's has one thread once Numba was used."""
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    return {pool["num_threads"] for pool in pools if "scipy.libs" not in pool["filepath"]}


def test_number_of_threads(monkeypatch):
    assert fastrnn.get_num_threads() >= 1
    try:
        fastrnn.set_num_threads(1)
        assert fastrnn.get_num_threads() == 1
        assert blas_threads() == {1}
        fastrnn.set_num_threads(np.int64(2))
        assert fastrnn.get_num_threads() == 2
        assert blas_threads() == {2}
        for wrong in (0, -1, 1.5, "two", None, float("inf")):
            with pytest.raises(ValueError, match="n: expected a whole number of threads"):
                fastrnn.set_num_threads(wrong)
        assert fastrnn.get_num_threads() == 2
    finally:
        threadpoolctl.threadpool_limits(os.cpu_count(), user_api="blas")
        monkeypatch.setattr(backend, "_asked_threads", None)
        monkeypatch.setattr(backend, "_applied_threads", {})
        monkeypatch.setattr(backend, "_scratch", threading.local())


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_threads_by_the_environment():
    result = python("import fastrnn; print(fastrnn.get_num_threads())", FASTRNN_NUM_THREADS="1")
    assert result.stdout == "1\n", result.stderr
    code = "import fastrnn, threadpoolctl as t; fastrnn.sgd(*__import__('numpy').ones((2, 1)));"
    code += "print({pool['num_threads'] for pool in t.threadpool_info() if pool['user_api'] == 'blas'})"
    assert python(code, FASTRNN_NUM_THREADS="1").stdout == "{1}\n"
    result = python("import fastrnn; fastrnn.get_num_threads()", FASTRNN_NUM_THREADS="many")
    assert "FASTRNN_NUM_THREADS: expected a whole number of threads, at least 1, got 'many'" in result.stderr


def test_import_is_light():
    """Importing the package pulls in neither compilers nor what only some commands need."""
    heavy = ("numba", "h5py", "matplotlib", "PIL", "scipy", "sklearn", "sacrebleu", "typer", "tqdm")
    result = python(f"import sys, fastrnn; print([m for m in {heavy} if m in sys.modules])")
    assert result.stdout == "[]\n", result.stderr


def test_show_config(capsys):
    fastrnn.use_backend("other")
    fastrnn.show_config()
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["fastrnn"] == fastrnn.__version__
    assert shown["backend"] == "other (use_backend)"
    assert shown["threads"] == str(fastrnn.get_num_threads())
    assert shown["numpy"] == np.__version__
    assert "blas" in shown
