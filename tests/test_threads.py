"""Compiled kernels: equal bits on any number of threads, every instruction set right, life after a fork."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastrnn
from fastrnn import backend
from fastrnn.bench.cases import CASES, Size, make_case
from fastrnn.kernels import numpy_kernels
from tests import oracle
from tests.test_kernels import TOLERANCE, assert_close

COMPILED = [name for name in fastrnn.available_backends() if name != "numpy"]
WITH_ISA = [name for name in COMPILED if name == "cython"]
# Widths that no register divides
SIZES = {
    "odd": Size((9, 8, 8, 5, 5, 5, 2), D=37, H=61, V=131, U=23),
    "many rows": Size((7,) * 40, D=33, H=40, V=67, U=50),
    "wide": Size((3, 3, 1), D=70, H=131, V=1003, U=5),
}


@pytest.fixture
def module(request):
    """A backend's module, as it was left afterwards."""
    with fastrnn.use_backend(request.param):
        kernels = backend.kernels()
    threads = kernels.get_num_threads()
    isa = kernels.get_instruction_set() if hasattr(kernels, "get_instruction_set") else None
    yield kernels
    kernels.set_num_threads(threads)
    if isa is not None:
        kernels.set_instruction_set(isa)


@pytest.mark.parametrize("module", COMPILED, indirect=True)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("kernel", CASES)
def test_any_number_of_threads_gives_the_same_bits(module, kernel, size, dtype):
    case = make_case(kernel, size, dtype)
    results = {}
    for threads in (1, 2, 3, 5, 8):
        module.set_num_threads(threads, operations=1)
        results[threads] = case.run(module)
    for name, value in results.pop(1).items():
        for threads, others in results.items():
            assert value.tobytes() == others[name].tobytes(), (name, threads)


@pytest.mark.parametrize("module", WITH_ISA, indirect=True)
def test_every_instruction_set_agrees_with_the_oracle(module, dtype):
    """Forced in turn."""
    size = Size((3, 2, 2, 0), D=3, H=5, V=6, U=4)
    for kernel in CASES:
        case = make_case(kernel, size, dtype)
        exact = {
            name: a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
            for name, a in (case.inputs | case.state | case.unseen).items()
        }
        expected = getattr(oracle, kernel)(**exact)
        for isa in module.instruction_sets():
            module.set_instruction_set(isa)
            for name, got in case.run(module).items():
                assert_close(got, expected[name], TOLERANCE[dtype], f"{kernel} {name} {isa}")


@pytest.mark.parametrize("module", WITH_ISA, indirect=True)
@pytest.mark.parametrize(
    ("H", "V"),
    [(1, 3), (7, 8), (8, 15), (16, 17), (17, 33), (31, 64), (33, 65), (7, 1004), (40, 10_001), (513, 3)],
)
def test_sizes_around_registers_and_tiles_agree_with_numpy(module, H, V, dtype):
    """NumPy's kernels agree with the oracle at small sizes; here every instruction set with NumPy's."""
    for size in (
        Size((6, 5, 5, 3, 1), D=19, H=H, V=V, U=12),
        Size((2,) * 27, D=3, H=H, V=min(V, 100), U=30),
    ):
        for kernel in CASES:
            case = make_case(kernel, size, dtype)
            expected = make_case(kernel, size, np.float64).run(numpy_kernels)
            for isa in module.instruction_sets():
                module.set_instruction_set(isa)
                for name, got in case.run(module).items():
                    assert_close(got, expected[name], 10 * TOLERANCE[dtype], f"{kernel} {name} {isa}")


@pytest.mark.parametrize("name", COMPILED)
def test_concurrent_calls(name, rng):
    """Python threads that train at the same time get what each gets alone."""

    def losses(seed):
        rng = np.random.default_rng(seed)
        with fastrnn.use_backend(name):
            for _ in range(4):
                captions = rng.integers(0, 60, (20 + seed, 9))
                captions[:, 0] = 1
                features = rng.standard_normal((20 + seed, 30))
                results[seed].append(models[seed].loss(features, captions)[0])
                results[seed].append(models[seed].sample(features, 5).tolist())

    vocabulary = {word: i for i, word in enumerate(["<NULL>", "<START>", *map(str, range(58))])}
    models = [fastrnn.CaptioningRNN(vocabulary, 30, 40, 70 + seed, "lstm", np.float64) for seed in range(6)]
    results = [[] for _ in models]
    for seed in range(6):
        losses(seed)
    alone, results = results, [[] for _ in models]
    workers = [threading.Thread(target=losses, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == alone


FORK = """
import os, numpy as np, fastrnn
fastrnn.use_backend("{name}")
fastrnn.set_num_threads({threads})
x = np.random.default_rng(0).standard_normal((400, 300))
def compute():
    return fastrnn.affine_forward(x, x.T[:, :200].copy(), np.zeros(200))[0]
before = compute()
pid = os.fork()
if pid == 0:
    fastrnn.set_num_threads({threads})
    same = np.array_equal(compute(), before)
    os._exit(0 if same else 1)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert np.array_equal(compute(), before)
print(status)
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", COMPILED)
def test_a_forked_child_computes_too(name, threads):
    code = FORK.format(name=name, threads=threads)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "0\n", result.stderr


@pytest.mark.parametrize("name", WITH_ISA)
def test_the_instruction_set_by_the_environment(name):
    def info(isa):
        environment = os.environ | {"FASTRNN_BACKEND": name, "FASTRNN_ISA": isa}
        code = "import fastrnn; fastrnn.show_config()"
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    with fastrnn.use_backend(name):
        usable = backend.kernels().instruction_sets()
    for isa in usable:
        assert f"isa        {isa} (this CPU has {', '.join(usable)})\n" in info(isa).stdout
    assert "ValueError: FASTRNN_ISA: expected one of 'generic'" in info("sse9").stderr


@pytest.mark.parametrize("module", WITH_ISA, indirect=True)
def test_tiny_numbers_are_flushed_inside(module):
    """On x86-64, where they are slow: they become 0 in products, and in moments that decay."""
    flushed = "x86-64-v2" in module.instruction_sets()
    x = np.full((1, 1), 1e-30, np.float32)
    zero, out = np.zeros(1, np.float32), np.full((1, 1), np.nan, np.float32)
    module.affine_forward(x, np.full((1, 1), 1e-12, np.float32), zero, out, module.make_work())
    assert (out == 0) == flushed
    tiny = np.finfo(np.float32).tiny
    m, v = np.full(40, 1.05 * tiny, np.float32), np.full(40, 1.0005 * tiny, np.float32)
    w = np.ones(40, np.float32)
    module.adam(w, np.zeros(40, np.float32), m, v, 9, 1e-3, 0.9, 0.999, 1e-8)
    assert m.any() == v.any() == (not flushed)


@pytest.mark.parametrize("module", COMPILED, indirect=True)
def test_tiny_numbers_do_not_stay_flushed(module):
    """Kernels may take numbers below the smallest normal one for 0, but not so the caller's arithmetic."""
    tiny = np.full(4, np.finfo(np.float32).tiny, np.float32)
    for kernel in CASES:
        make_case(kernel, SIZES["odd"], np.float32).run(module)
        assert (tiny / 4 > 0).all()
        assert (tiny / np.float32(4) * np.float32(4) == tiny).all()


@pytest.mark.parametrize("name", COMPILED)
def test_loss_histories_agree_with_numpy(name):
    """Float64 to 1e-6 over 500 iterations, float32 to 1e-4 over the first 30."""
    histories = {}
    for kind in (name, "numpy"):
        for dtype, iterations in ((np.float64, 500), (np.float32, 30)):
            with fastrnn.use_backend(kind):
                histories[kind, dtype] = train(dtype, iterations)
    for dtype, tolerance in ((np.float64, 1e-6), (np.float32, 1e-4)):
        np.testing.assert_allclose(histories[name, dtype], histories["numpy", dtype], rtol=tolerance)
    assert histories[name, np.float64][-1] < 0.5 * histories[name, np.float64][0]


def train(dtype, iterations):
    rng = np.random.default_rng(0)
    n, V = 60, 40
    captions = np.zeros((n, 10), np.int32)
    for caption in captions:
        length = rng.integers(1, 9)
        caption[: length + 2] = [1, *rng.integers(3, V, length), 2]
    data = {
        "train_captions": captions,
        "train_image_idxs": np.arange(n),
        "train_features": rng.standard_normal((n, 20)),
        "train_urls": np.array([""] * n),
    }
    np.random.seed(1)
    vocabulary = {word: i for i, word in enumerate(["<NULL>", "<START>", "<END>", *map(str, range(3, V))])}
    model = fastrnn.CaptioningRNN(vocabulary, 20, 24, 35, "lstm", dtype)
    solver = fastrnn.CaptioningSolver(
        model, data, update_rule="adam", optim_config={"learning_rate": 2e-3}, batch_size=20, verbose=False,
        num_epochs=-(-iterations // 3),
    )  # fmt: skip
    solver.train()
    return solver.loss_history[:iterations]
