"""The Numba backend: what is compiled when, where it is kept, and what its threads bear."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn import cli

pytest.importorskip("numba")

STEP = """
import sys, time, numpy as np, fastrnn
w, dw = np.ones(7), np.arange(7.0)
started = time.perf_counter()
print(fastrnn.sgd(w, dw, {"learning_rate": 0.5})[0].tolist())
kernel = sys.modules["fastrnn.kernels.numba_kernels"]._sgd
print([sum(d.stats.cache_hits.values()) for d in kernel.dispatchers.values() if d.overloads])
"""
EXPECTED = "[1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0]\n"
COMPILED, LOADED = EXPECTED + "[0]\n", EXPECTED + "[1]\n"


def start(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"FASTRNN_BACKEND": "numba"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(code, **environment):
    out, err = start(code, **environment).communicate(timeout=300)
    assert out, err
    return out


def test_what_was_compiled_is_kept(tmp_path, monkeypatch, capsys):
    kept = tmp_path / "cache"
    assert output(STEP, NUMBA_CACHE_DIR=str(kept)) == COMPILED
    assert output(STEP, NUMBA_CACHE_DIR=str(kept)) == LOADED
    somebody_elses = [kept / "numba.nbc", kept / "fastrnn" / "notes"]
    for path in somebody_elses:
        path.touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(kept))
    assert cli.main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == f"removed 1 compiled functions from {kept / 'fastrnn'}\n"
    assert cli.main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == f"nothing is kept in {kept / 'fastrnn'}\n"
    assert all(path.exists() for path in somebody_elses)
    assert output(STEP, NUMBA_CACHE_DIR=str(kept)) == COMPILED


@pytest.mark.parametrize("broken", [b"", b"garbage", None])
def test_a_broken_cache_is_made_anew(tmp_path, broken):
    output(STEP, NUMBA_CACHE_DIR=str(tmp_path))
    (file,) = tmp_path.rglob("*.nbc")
    file.write_bytes(file.read_bytes()[:2000] if broken is None else broken)
    assert output(STEP, NUMBA_CACHE_DIR=str(tmp_path)) == COMPILED
    assert output(STEP, NUMBA_CACHE_DIR=str(tmp_path)) == LOADED


def test_nowhere_to_keep_it(tmp_path):
    """A file is in the way, or it is no place to write to; nothing is written beside the source instead."""
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file" / "cache", "/proc/cache"):
        assert output(STEP, NUMBA_CACHE_DIR=str(directory)) == COMPILED
    assert not list((Path(__file__).parents[1] / "kernels").rglob("*.nb?"))


def test_a_full_disk(tmp_path):
    """What is there stays, what is not is not kept, and no half of it either."""
    full = """
import pathlib
def write_bytes(path, data):
    path.touch()
    raise OSError(28, "No space left on device")
pathlib.Path.write_bytes = write_bytes
"""
    assert output(full + STEP, NUMBA_CACHE_DIR=str(tmp_path)) == COMPILED
    assert list((tmp_path / "fastrnn").iterdir()) == []
    output(STEP, NUMBA_CACHE_DIR=str(tmp_path))
    assert output(full + STEP, NUMBA_CACHE_DIR=str(tmp_path)) == LOADED


def test_several_processes_on_one_cache(tmp_path):
    processes = [start(STEP, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(4)]
    for process in processes:
        assert process.communicate(timeout=300)[0].startswith(EXPECTED)
    assert output(STEP, NUMBA_CACHE_DIR=str(tmp_path)) == LOADED


def test_the_notice(tmp_path):
    """A second is a long time; said once, and not where a kernel is only slow."""
    code = """
import time, fastrnn, numpy as np
from numba.core.typing.templates import signature
from fastrnn.kernels import numba_kernels as k
class Context:
    def refresh(self): pass
    def codegen(self): return self
    def magic_tuple(self): return ()
class Compiled:
    codegen, lifted = Context(), [1]
for name in ("one", "two"):
    cache = k._Cache(name, False)
    assert cache.load_overload("sig", Context()) is None
    time.sleep(seconds)
    cache.save_overload("sig", Compiled())
time.sleep(1.2)
"""
    for seconds, lines in ((1.2, 1), (0.1, 0)):
        process = start(f"seconds = {seconds}\n" + code, NUMBA_CACHE_DIR=str(tmp_path))
        _, err = process.communicate(timeout=60)
        assert err.count("fastrnn: Numba compiles") == lines, err
        assert process.returncode == 0


FORK = """
import os, numpy as np, fastrnn
fastrnn.set_num_threads(2)
x = np.random.default_rng(0).standard_normal((400, 300))
def compute(name):
    with fastrnn.use_backend(name):
        return fastrnn.affine_forward(x, x.T[:, :200].copy(), np.zeros(200))[0]
before = compute("{parent}")
pid = os.fork()
if pid == 0:
    os._exit(0 if np.allclose(compute("{child}"), before) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize(("parent", "child"), [("cython", "numba"), ("numba", "cython")])
def test_a_forked_child_with_another_backend(parent, child):
    """Threads of one are as gone as those of the other."""
    if "cython" not in fastrnn.available_backends():
        pytest.skip("needs both compiled backends")
    assert (
        output("import warnings; warnings.simplefilter('ignore')" + FORK.format(parent=parent, child=child))
        == "0\n"
    )


CONCURRENT = """
import threading, numpy as np, fastrnn
fastrnn.set_num_threads(2)
x = np.random.default_rng(0).standard_normal((300, 200))
def compute():
    return fastrnn.affine_forward(x, x.T[:, :200].copy(), np.zeros(200))[0]
expected, wrong = compute(), []
def repeat():
    for _ in range(20):
        if not np.array_equal(compute(), expected): wrong.append(1)
threads = [threading.Thread(target=repeat) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import numba
print(numba.threading_layer(), fastrnn.get_num_threads(), wrong)
"""


def test_a_threading_layer_that_bears_one_call_at_a_time():
    """Calls from several threads would end the process: there the kernels have one thread."""
    assert output(CONCURRENT, NUMBA_THREADING_LAYER="workqueue") == "workqueue 1 []\n"


def test_blas_has_one_thread_in_each_of_ours():
    """SciPy's, whichever thread comes first; NumPy's has what was asked for."""
    code = """
import threading, numpy as np, fastrnn, threadpoolctl
fastrnn.set_num_threads(2)
def compute():
    fastrnn.affine_forward(np.ones((4, 3)), np.ones((3, 2)), np.zeros(2))
def number(whose):
    return [p["num_threads"] for p in threadpoolctl.threadpool_info() if f"{whose}.libs" in p["filepath"]]
with fastrnn.use_backend("numpy"):
    compute()
thread = threading.Thread(target=compute)
thread.start()
thread.join()
print(number("scipy") in ([1], []), number("numpy") in ([2], []))
compute()
with fastrnn.use_backend("numpy"):
    compute()
print(number("scipy") in ([1], []), number("numpy") in ([2], []))
"""
    assert output(code) == "True True\nTrue True\n"


def test_somebody_else_gave_blas_more_threads():
    """SciPy's BLAS stays at one once Numba has used it, whoever changed that in between."""
    code = """
import numpy as np, fastrnn, threadpoolctl
fastrnn.affine_forward(np.ones((4, 3)), np.ones((3, 2)), np.zeros(2))
threadpoolctl.threadpool_limits(2, user_api="blas")
fastrnn.use_backend("numpy")
fastrnn.set_num_threads(1)
print(fastrnn.get_num_threads())
"""
    assert output(code) == "1\n"


def test_numba_that_cannot_be_used(tmp_path):
    """Nobody asked for it: the next backend computes. Somebody did: they are told."""
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 1.2 or less')")
    code = "import fastrnn; fastrnn.backend._MODULES.pop('cython'); print(fastrnn.current_backend()); "
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    for environment in ({"PYTHONPATH": paths}, {"NUMBA_DISABLE_JIT": "1"}):
        assert output(code, **environment, FASTRNN_BACKEND="") == "numpy\n"
        _, err = start(code + "fastrnn.backend.kernels()", **environment).communicate()
        assert "ImportError: NUMBA_DISABLE_JIT is set" in err or "ImportError: Numba needs NumPy 1.2" in err


def test_warmup(tmp_path):
    """Afterwards training and captions find everything compiled."""
    code = """
import numpy as np, fastrnn
from fastrnn import backend
fastrnn.set_num_threads(2)
np.random.seed(3)
fastrnn.warmup(np.float64)
drawn = np.random.rand()
from fastrnn.kernels import numba_kernels as k
def count():
    kernels = {name: kernel for name, kernel in vars(k).items() if isinstance(kernel, k._Kernel)}
    return {name: [len(d.overloads) for d in kernel.dispatchers.values()] for name, kernel in kernels.items()}
before = count()
for cell_type in ("rnn", "lstm"):
    model = fastrnn.CaptioningRNN({"<NULL>": 0, "<START>": 1, "a": 2}, 40, 30, 300, cell_type, np.float64)
    captions = np.tile([1, 2, 2, 2, 0], (200, 1))
    model.loss(np.ones((200, 40)), captions), model.evaluate_loss(np.ones((200, 40)), captions)
    model.sample(np.ones((200, 40)), 3), model.sample(np.ones((1, 40)), 3)
after = count()
np.random.seed(3)
print({name: (before[name], after[name]) for name in after if after[name] != before[name]})
print(drawn == np.random.rand(), [name for name, counts in after.items() if counts != [1, 1]])
"""
    assert output(code, NUMBA_CACHE_DIR=str(tmp_path)) == "{}\nTrue ['_softmax_loss']\n"


def test_read_only_arrays_and_whole_numbers_are_no_reason_to_compile_again(rng):
    from fastrnn.kernels import numba_kernels

    x, W, b = rng.standard_normal((3, 4)), rng.standard_normal((4, 5)), np.zeros(5)
    expected = x @ W
    kernels = (numba_kernels._affine_forward, numba_kernels._sgd)
    counts = []
    with fastrnn.use_backend("numba"):
        for learning_rate in (0.5, 1, np.float32(1)):
            out, _ = fastrnn.affine_forward(x, W, b)
            np.testing.assert_allclose(out, expected, rtol=1e-12)
            fastrnn.sgd(np.ones(3), np.ones(3), {"learning_rate": learning_rate})
            counts.append([len(d.overloads) for kernel in kernels for d in kernel.dispatchers.values()])
            for array in (x, W, b):
                array.setflags(write=False)
    assert counts[0] == counts[1] == counts[2]
