"""The only door to the kernels: which backend computes, and on how many threads.

Nothing else in fastrnn imports a kernel module, reads ``FASTRNN_*`` or calls threadpoolctl, but for the
benchmarks, which compare kernels and look for real captions.
"""

import functools
import importlib
import importlib.util
import os
import platform
import sys
import threading
import weakref
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

import numpy as np
import threadpoolctl
from numpy.typing import DTypeLike

from fastrnn.arrays import Array, Memory, fresh_memory

_MODULES = {  # in the order of the automatic choice
    "cython": "fastrnn.kernels.cython_kernels",
    "numba": "fastrnn.kernels.numba_kernels",
    "numpy": "fastrnn.kernels.numpy_kernels",
}


class Kernels(Protocol):
    """The contract, written once: a test compares every backend's signatures with it.

    ``kernels/README.md`` gives the shapes; ``kernels/numpy_kernels.py`` the equations.
    """

    # fmt: off
    def make_work(self) -> Any: ...
    def pack(self, W: Array, gates: int, work: Any) -> Any: ...
    def rnn_forward(self, x: Array, rows: Array, batch_sizes: Array, h0: Array, Wx: Array, Wh: Array,
                    b: Array, h: Array, work: Any) -> None: ...
    def rnn_backward(self, dh: Array, x: Array, rows: Array, batch_sizes: Array, h0: Array, h: Array,
                     Wx: Array, Wh: Array, dx: Array | None, dh0: Array | None, dWx: Array | None,
                     dWh: Array | None, db: Array | None, work: Any) -> None: ...
    def lstm_forward(self, x: Array, rows: Array, batch_sizes: Array, h0: Array, c0: Array, Wx: Array,
                     Wh: Array, b: Array, h: Array, c: Array, gates: Array | None, work: Any) -> None: ...
    def lstm_backward(self, dh: Array, dcT: Array, x: Array, rows: Array, batch_sizes: Array, h0: Array,
                      c0: Array, h: Array, c: Array, gates: Array, Wx: Array, Wh: Array,
                      dx: Array | None, dh0: Array | None, dc0: Array | None, dWx: Array | None,
                      dWh: Array | None, db: Array | None, work: Any) -> None: ...
    def rnn_step(self, a: Array, rows: Array, prev_h: Array, Wh: Any, h: Array, work: Any) -> None: ...
    def lstm_step(self, a: Array, rows: Array, prev_h: Array, prev_c: Array, Wh: Any, h: Array,
                  c: Array, work: Any) -> None: ...
    def affine_forward(self, x: Array, W: Any, b: Array, out: Array, work: Any) -> None: ...
    def affine_backward(self, dout: Array, x: Array, W: Array, dx: Array | None, dW: Array | None,
                        db: Array | None, work: Any) -> None: ...
    def embedding_forward(self, tokens: Array, W: Array, out: Array) -> None: ...
    def embedding_backward(self, tokens: Array, dout: Array, dW: Array, work: Any) -> None: ...
    def softmax_loss(self, scores: Array, targets: Array, mask: Array, scale: float,
                     dscores: Array | None, work: Any) -> float: ...
    def vocab_loss(self, h: Array, W: Array, b: Array, targets: Array, mask: Array, scale: float,
                   dh: Array | None, dW: Array | None, db: Array | None, work: Any) -> float: ...
    def sgd(self, w: Array, dw: Array, learning_rate: float) -> None: ...
    def sgd_momentum(self, w: Array, dw: Array, velocity: Array, learning_rate: float,
                     momentum: float) -> None: ...
    def rmsprop(self, w: Array, dw: Array, cache: Array, learning_rate: float, decay_rate: float,
                epsilon: float) -> None: ...
    def adam(self, w: Array, dw: Array, m: Array, v: Array, t: int, learning_rate: float, beta1: float,
             beta2: float, epsilon: float) -> None: ...
    # fmt: on


# ---------------------------------------------------------------------------------------------------
# Which backend

_in_context: ContextVar[str | None] = ContextVar("fastrnn backend", default=None)
_in_process: list[tuple[str, "weakref.ref[use_backend]"]] = []  # the plain calls, the newest last
_lock = threading.Lock()


def available_backends() -> tuple[str, ...]:
    """The names of the backends that this installation has, the automatic choice first."""
    return tuple(name for name, module in _MODULES.items() if _is_installed(module))


@functools.cache
def _is_installed(module: str) -> bool:
    try:
        there = importlib.util.find_spec(module) is not None
        return there and (module != _MODULES["numba"] or importlib.util.find_spec("numba") is not None)
    except ModuleNotFoundError as error:
        raise ImportError(
            'fastrnn.kernels is not installed: if this is a checkout, run "pip install --editable ." in it'
        ) from error


class use_backend:
    """Choose the kernels that compute: ``"cython"``, ``"numba"`` or ``"numpy"``.

    Called plainly, ``use_backend("numpy")`` sets the choice for the whole process. As a context manager,
    ``with use_backend("numpy"): ...`` sets it for the current context only: other threads and asynchronous
    tasks keep theirs. Without any call the environment variable ``FASTRNN_BACKEND`` decides, else the first
    of :func:`available_backends`.

    Raises ``ValueError`` for an unknown name and ``ImportError`` for a backend that is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = _existing(name, "backend")
        self._tokens: list[Token[str | None]] = []
        with _lock:
            # A call whose object is gone can't be entered any more; of these only the newest still counts.
            gone = [choice for choice in _in_process if choice[1]() is None]
            _in_process[:] = [
                choice for choice in _in_process if choice[1]() is not None or choice is gone[-1]
            ]
            _in_process.append((name, weakref.ref(self)))

    def __enter__(self) -> Self:
        with _lock:  # it was not a plain call after all
            _in_process[:] = [choice for choice in _in_process if choice[1]() is not self]
        self._tokens.append(_in_context.set(self.name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _in_context.reset(self._tokens.pop())


def current_backend() -> str:
    """The name of the backend that the next call will use. Raises as :class:`use_backend` does."""
    return _current()[0]


def _current() -> tuple[str, str]:
    """The backend's name and who chose it."""
    if name := _in_context.get():
        return name, "use_backend in this context"
    for name, _ in _in_process[-1:]:
        return name, "use_backend"
    if name := os.environ.get("FASTRNN_BACKEND"):
        return _existing(name, "FASTRNN_BACKEND"), "FASTRNN_BACKEND"
    return next(filter(_can_be_imported, available_backends())), "automatic"


@functools.cache
def _can_be_imported(name: str) -> bool:
    """Whether a backend works here: Numba may be installed and not fit the installed NumPy."""
    try:
        _module(name)
    except ImportError:
        return False
    return True


def _existing(name: str, asked_by: str) -> str:
    if name not in _MODULES:
        raise ValueError(f"{asked_by}: expected one of {', '.join(map(repr, _MODULES))}, got {name!r}")
    if name not in available_backends():
        raise ImportError(
            f"{asked_by}: {name!r} is not part of this installation, which has "
            f"{', '.join(map(repr, available_backends()))}"
        )
    return name


def kernels() -> Kernels:
    """The kernels of the current backend. Raises as :class:`use_backend` does."""
    return kernels_and_work()[0]


_scratch = threading.local()


def kernels_and_work() -> tuple[Kernels, Any]:
    """The current backend's kernels, and scratch for them that the calling thread keeps until it ends."""
    name = current_backend()
    found = cast(Kernels, _module(name))
    _apply_threads(name)
    return found, kept_work(found, "any call")


def kept_work(kernels: Kernels, purpose: str) -> Any:
    """Scratch for these kernels that the calling thread keeps for a purpose."""
    kept: dict[Any, Any] = _scratch.__dict__.setdefault("work", {})
    if (kernels, purpose) not in kept:
        kept[kernels, purpose] = kernels.make_work()
    return kept[kernels, purpose]


def kept_memory(purpose: str) -> Memory:
    """Memory that the calling thread keeps for a purpose, so that it is not paged in anew for each call.

    Who asks again gets the same: it is for arrays that no caller ever sees. It stays as large as the largest
    that was asked for, until the thread ends.
    """

    def memory(nbytes: int) -> Array:
        kept: dict[str, Array] = _scratch.__dict__.setdefault("memory", {})
        if purpose not in kept or kept[purpose].nbytes < nbytes:
            kept.pop(purpose, None)  # before there is another
            kept[purpose] = fresh_memory(nbytes + nbytes // 16)  # batches vary
        return kept[purpose]

    return memory


@functools.cache
def _module(name: str) -> Any:
    """A backend's module; ``FASTRNN_ISA`` tells one with several instruction sets which to compute with."""
    module = importlib.import_module(_MODULES[name])
    if hasattr(module, "use_cache"):
        module.use_cache(_cache_directory())
    asked = os.environ.get("FASTRNN_ISA")
    if asked and hasattr(module, "instruction_sets"):
        usable = module.instruction_sets()
        if asked not in usable:
            raise ValueError(f"FASTRNN_ISA: expected one of {', '.join(map(repr, usable))}, got {asked!r}")
        module.set_instruction_set(asked)
    return module


# ---------------------------------------------------------------------------------------------------
# What Numba compiled


def _cache_directory() -> Path | None:
    """Beneath ``NUMBA_CACHE_DIR``, else beneath the user's cache; it need not be there nor be writable."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(given) / "fastrnn"
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    return Path(caches) / "fastrnn" / "numba"


def clear_cache() -> tuple[int, Path | None]:
    """Remove what Numba has compiled and kept; returns how many files that were, and where.

    Raises ``OSError`` where they cannot be removed.
    """
    directory = _cache_directory()
    files = list(directory.glob("*.nbc")) if directory else []
    for file in files:
        file.unlink(missing_ok=True)
    return len(files), directory


def warmup(dtype: DTypeLike = np.float32) -> None:
    """Compile now what training and decoding need in a type, with the current backend.

    With Numba this takes about a minute where nothing is kept from an earlier time, and else a few seconds;
    with the other backends there is nothing to compile.
    """
    from fastrnn import CaptioningRNN, optim

    module = _module(current_backend())
    if not hasattr(module, "use_cache"):
        return
    _apply_threads(current_backend())
    threads, state = module.get_num_threads(), np.random.get_state()
    captions = np.array([[1, 1]])
    try:
        for operations in (0.0, np.inf):  # threads for everything, and for nothing
            module.set_num_threads(threads, operations)
            for cell_type in ("rnn", "lstm"):
                model = CaptioningRNN({"<NULL>": 0, "<START>": 1}, 1, 1, 1, cell_type, dtype)
                _, grads = model.loss([[0.0]], captions)
                model.sample([[0.0]], 1)
            for rule in (optim.sgd, optim.sgd_momentum, optim.rmsprop, optim.adam):
                rule(model.params["b"], grads["b"])
    finally:
        module.set_num_threads(threads)
        np.random.set_state(state)


# ---------------------------------------------------------------------------------------------------
# How many threads

_asked_threads: int | None = None
_applied_threads: dict[str, int] = {}


def set_num_threads(n: int) -> None:
    """Let the kernels, and NumPy's BLAS, run on ``n`` threads.

    Without any call the environment variable ``FASTRNN_NUM_THREADS`` decides. Without it compiled kernels
    take one thread per physical core that the process may use, and BLAS keeps the number it chose itself.
    Raises ``ValueError`` unless ``n`` is a whole number of at least 1.
    """
    global _asked_threads
    _asked_threads = _thread_count(n, "n")
    _apply_threads(current_backend())


def get_num_threads() -> int:
    """The number of threads that the kernels run on at most.

    It may be below what was asked for: BLAS has limits of its own, and compiled kernels have one thread
    without OpenMP, or in a process that was forked from one where they had several.
    """
    name = current_backend()
    _apply_threads(name)
    module = _module(name)
    if hasattr(module, "get_num_threads"):
        return int(module.get_num_threads())
    return max((pool["num_threads"] for pool in _blas_pools()), default=1)


def _thread_count(n: Any, asked_by: str) -> int:
    try:
        count = int(n)
        valid = count == float(n) and count >= 1
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise ValueError(f"{asked_by}: expected a whole number of threads, at least 1, got {n!r}")
    return count


def _apply_threads(name: str) -> None:
    """Give BLAS and a backend the number of threads asked for; else compiled kernels have a default."""
    asked = _asked_threads
    if asked is None and (value := os.environ.get("FASTRNN_NUM_THREADS")):
        asked = _thread_count(value, "FASTRNN_NUM_THREADS")
    _apply_blas_threads(asked, for_numba=name == "numba")
    module, wanted = _module(name), asked or physical_cores()
    if hasattr(module, "set_num_threads") and _applied_threads.get(name) != wanted:
        module.set_num_threads(wanted)
        _applied_threads[name] = wanted


def _apply_blas_threads(asked: int | None, *, for_numba: bool) -> None:
    """Give BLAS the number of threads asked for; that of SciPy, which Numba calls in threads of its own, one.

    SciPy's stays at one from then on. Where it shares NumPy's BLAS, that has one while Numba's kernels are
    used. Some libraries keep a limit for each thread, so every thread applies it.
    """
    wanted = asked, for_numba
    applied = _scratch.__dict__.setdefault("blas", (None, False))
    if applied == wanted:
        return
    with _lock:
        if for_numba:
            importlib.import_module("scipy.linalg.cython_blas")
        pools = {pool["filepath"]: pool["num_threads"] for pool in _blas_pools()}
        scipys = [
            path for path in pools if "scipy" in path.rsplit("site-packages", 1)[-1].split("/libscipy")[0]
        ]
        alone = (scipys or list(pools)) if for_numba else []
        for path, number in pools.items():
            if path in alone or (path in scipys and path in _before_numba):
                _before_numba.setdefault(path, number)
                _limit_blas(path, 1)
            elif asked is not None or path in _before_numba:
                _limit_blas(path, asked or _before_numba[path])
        _scratch.blas = wanted


_before_numba: dict[str, int] = {}  # the threads of the libraries that it calls


def _limit_blas(path: str, n: int) -> None:
    # Only one thread at a time may set the number of an OpenBLAS, since threadpoolctl 3.7: whoever asks last.
    for_all = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", lambda force: None)
    for_all(force=True)
    threadpoolctl.ThreadpoolController().select(filepath=path).limit(limits=n)
    for_all(force=True)


@functools.cache
def physical_cores() -> int:
    """How many physical cores this process may use, by its affinity and by the quota of its control group."""
    return max(min(len(cores()), cpu_quota()), 1)


def cores() -> frozenset[str]:
    """The physical cores that this process may use by its affinity, each named by its hardware threads."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset(map(str, range(os.cpu_count() or 1)))
    named = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        named.add(siblings.read_text() if siblings.exists() else str(cpu))
    return frozenset(named)


def cpu_quota() -> int:
    """How many CPUs' time the control group allows, rounded up; more than any machine has without a limit."""
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit, _, period = (quota.read_text() if quota.exists() else "max 1").partition(" ")
    return sys.maxsize if limit == "max" else -(-int(limit) // int(period))


def _blas_pools() -> list[dict[str, Any]]:
    return [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


# ---------------------------------------------------------------------------------------------------


def config() -> dict[str, str]:
    """What computes: versions, backend and who chose it, threads, BLAS."""
    from fastrnn import __version__

    name, chosen_by = _current()
    rows = {
        "fastrnn": __version__,
        "backend": f"{name} ({chosen_by})",
        "available": ", ".join(available_backends()),
        "threads": str(get_num_threads()),
        "isa": instruction_set(),
        "python": f"{platform.python_version()} on {sys.platform} {platform.machine()}",
        "numpy": np.__version__,
    }
    rows["blas"] = "; ".join(
        f"{pool['internal_api']} {pool.get('version')}, {pool.get('architecture', 'unknown')} kernels, "
        f"{pool['num_threads']} threads"
        for pool in _blas_pools()
    )
    return rows


def show_config() -> None:
    """Print :func:`config`."""
    for label, value in config().items():
        print(f"{label:<10} {value}")


def instruction_set() -> str:
    """What the current backend's kernels compute with, and what this CPU has, for people."""
    name = current_backend()
    module = _module(name)
    if not hasattr(module, "instruction_sets"):
        return "this CPU's, by LLVM and BLAS" if name == "numba" else "that of NumPy"
    return f"{module.get_instruction_set()} (this CPU has {', '.join(module.instruction_sets())})"
