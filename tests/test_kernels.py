"""Every row of the contract on every backend: right answers, and nothing touched that should not be."""

import inspect
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fastrnn.backend import Kernels
from fastrnn.bench.cases import CASES, Size, call, make_case
from tests import oracle

SIZES = {
    "uneven lengths, one empty": Size((5, 3, 3, 0), D=3, H=2, V=7, U=6),
    "equal lengths": Size((4, 4), D=2, H=3, V=5, U=4),
    "all masked": Size((3, 1), D=2, H=2, V=4, U=3, all_masked=True),
    "all sizes one": Size((1,), D=1, H=1, V=1, U=1),
    "one step": Size((1, 1, 1), D=2, H=5, V=3, U=2),
    "nothing live": Size((0, 0), D=2, H=3, V=4, U=1),
}
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}  # relative to the largest number of an array


def contract():
    return [name for name, _ in inspect.getmembers(Kernels, inspect.isfunction) if not name.startswith("_")]


def assert_close(got, expected, tolerance, name):
    expected = np.asarray(expected, np.float64).reshape(got.shape)
    scale = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("kernel", CASES)
def test_agrees_with_the_oracle(kernels, kernel, size, dtype):
    case = make_case(kernel, size, dtype)
    exact = {
        name: a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
        for name, a in (case.inputs | case.state | case.unseen).items()
    }
    expected = getattr(oracle, kernel)(**exact)
    got = case.run(kernels)
    assert got.keys() == expected.keys()
    for name in got:
        assert got[name].dtype == dtype or name == "loss"
        assert_close(got[name], expected[name], TOLERANCE[dtype], name)


@pytest.mark.parametrize("kernel", CASES)
def test_touches_nothing_but_its_outputs(kernels, kernel, dtype):
    """Inputs are read-only and unchanged; a second call with used scratch and buffers gives the same bits."""
    case = make_case(kernel, SIZES["uneven lengths, one empty"], dtype)
    before = {name: np.copy(value) for name, value in case.inputs.items()}
    for value in case.inputs.values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    work = kernels.make_work()
    other = make_case(kernel, Size((2, 2, 1), D=5, H=3, V=9, U=4), dtype, seed=1)
    call(kernels, kernel, other.arguments(), work)
    arguments = case.arguments()
    loss = call(kernels, kernel, arguments, work)
    expected = case.run(kernels)
    for name, value in expected.items():
        got = np.array(loss) if name == "loss" else arguments[name]
        assert got.tobytes() == value.tobytes(), name
    for name, value in before.items():
        np.testing.assert_array_equal(case.inputs[name], value, err_msg=name)


OPTIONAL = {
    "rnn_backward": ("dx", "dh0", "dWx", "dWh", "db"),
    "lstm_forward": ("gates",),
    "lstm_backward": ("dx", "dh0", "dc0", "dWx", "dWh", "db"),
    "affine_backward": ("dx", "dW", "db"),
    "softmax_loss": ("dscores",),
    "vocab_loss": ("dh", "dW", "db"),
}


@pytest.mark.parametrize("kernel", OPTIONAL)
def test_outputs_that_are_not_wanted_may_be_none(kernels, kernel, dtype):
    """Each alone, and all at once; the others come out the same."""
    case = make_case(kernel, SIZES["uneven lengths, one empty"], dtype)
    everything = case.run(kernels)
    for without in (*((name,) for name in OPTIONAL[kernel]), OPTIONAL[kernel]):
        for name, value in case.run(kernels, without).items():
            np.testing.assert_array_equal(value, everything[name], err_msg=f"{name} without {without}")


@pytest.mark.parametrize("kernel", ["rnn_forward", "lstm_forward"])
def test_sequences_do_not_see_each_other(kernels, kernel):
    """A packed batch gives each sequence what it gets alone."""
    size = Size((6, 4, 4, 1), D=3, H=5, V=2, U=4)
    case = make_case(kernel, size, np.float64)
    got = case.run(kernels)
    starts = np.concatenate([[0], np.cumsum(case.inputs["batch_sizes"])])
    for n, length in enumerate(size.lengths):
        alone = dict(case.inputs)
        mine = starts[:length] + n
        alone["rows"] = case.inputs["rows"][mine]
        alone["batch_sizes"] = np.ones(length, np.int64)
        outputs = {name: np.full((length, *value.shape[1:]), np.nan) for name, value in got.items()}
        for name in {"h0", "c0"} & alone.keys():
            alone[name] = np.ascontiguousarray(case.inputs[name][n : n + 1])
        call(kernels, kernel, alone | outputs, kernels.make_work())
        for name, value in outputs.items():
            np.testing.assert_allclose(value, got[name][mine], rtol=1e-13, atol=1e-15)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_activations_saturate(kernels, dtype, size):
    """No overflow, no NaN: gates reach 0 and 1, c and h stay finite."""
    one = np.ones((1, 1), dtype)
    c0 = np.full((1, 1), 0.5, dtype)
    for sign in (1, -1):
        b = np.full(4, sign * size, dtype)
        h, c, gates = np.empty((1, 1), dtype), np.empty((1, 1), dtype), np.empty((1, 4), dtype)
        kernels.lstm_forward(
            one, np.array([0]), np.array([1]), one, c0, np.ones((1, 4), dtype), np.ones((1, 4), dtype), b,
            h, c, gates, kernels.make_work(),
        )  # fmt: skip
        np.testing.assert_allclose(gates[0], [1, 1, 1, 1] if sign > 0 else [0, 0, 0, -1], atol=1e-30)
        np.testing.assert_allclose(c, 1.5 if sign > 0 else 0, atol=1e-30)


def test_small_gates_are_exact_to_the_last_digits(kernels):
    """sigma(-30) is 9.4e-14: computed as 1 - sigma(30) it would keep three digits."""
    a = np.array([[-30.0, 0, 0, 0]])
    h, c, gates = np.empty((1, 1)), np.empty((1, 1)), np.empty((1, 4))
    zero, none = np.zeros((1, 1)), np.zeros((1, 4))
    kernels.lstm_forward(
        zero, np.array([0]), np.array([1]), zero, zero, none, none, a[0], h, c, gates, kernels.make_work()
    )
    np.testing.assert_allclose(gates[0, 0], np.exp(-30) / (1 + np.exp(-30)), rtol=1e-14)


@pytest.mark.parametrize("kernel", ["softmax_loss", "vocab_loss"])
@pytest.mark.parametrize("largest", [1e4, -1e4])
def test_huge_scores_do_not_overflow(kernels, kernel, largest, dtype):
    targets, mask = np.array([0, 1]), np.ones(2, dtype)
    if kernel == "softmax_loss":
        scores = np.array([[largest, 0.0], [largest, 0.0]], dtype)
        dscores = np.full_like(scores, np.nan)
        loss = kernels.softmax_loss(scores, targets, mask, 1.0, dscores, kernels.make_work())
    else:
        h, W, b = np.ones((2, 1), dtype), np.array([[largest, 0.0]], dtype), np.zeros(2, dtype)
        loss = kernels.vocab_loss(h, W, b, targets, mask, 1.0, None, None, None, kernels.make_work())
    np.testing.assert_allclose(loss, 1e4)


def test_targets_under_the_mask_are_not_looked_at(kernels, dtype):
    scores = np.array([[1.0, 2.0], [3.0, 1.0]], dtype)
    mask = np.array([1, 0], dtype)
    losses = [
        kernels.softmax_loss(scores, np.array([0, target]), mask, 1.0, None, kernels.make_work())
        for target in (0, 1, -1, 99)
    ]
    assert len(set(losses)) == 1


def test_vocab_loss_in_many_blocks(kernels, dtype):
    """More rows than a block of scores holds: the same loss and gradients as from whole scores."""
    size = Size((40, 30, 7), D=2, H=6, V=70_000, U=1)
    case = make_case("vocab_loss", size, dtype)
    got = case.run(kernels)
    h, W, b = (case.inputs[name].astype(np.float64) for name in ("h", "W", "b"))
    scores = h @ W + b
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    weight = (case.inputs["mask"] * case.inputs["scale"]).astype(np.float64)
    every = np.arange(len(p))
    assert_close(got["loss"], np.sum(-weight * np.log(p[every, case.inputs["targets"]])), 1e-5, "loss")
    p[every, case.inputs["targets"]] -= 1
    p *= weight[:, np.newaxis]
    tolerance = {np.float32: 1e-4, np.float64: 1e-11}[dtype]
    for name, expected in {"dh": p @ W.T, "dW": h.T @ p, "db": p.sum(axis=0)}.items():
        assert_close(got[name], expected, tolerance, name)


def test_scratch_of_vocab_loss_does_not_grow_with_the_scores(kernels):
    """4,096 rows of 10,000 scores would be 164 MB; scratch stays under 64 MB, packed weights and all."""
    case = make_case("vocab_loss", Size((16,) * 256, D=1, H=512, V=10_000, U=1), np.float32)
    arguments, work = case.arguments(), kernels.make_work()
    tracemalloc.start()
    call(kernels, "vocab_loss", arguments, work)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6


def test_repeated_tokens_are_summed_in_the_order_of_the_rows(kernels):
    """1 is lost when added to 1e16, and is not when 1e16 has cancelled before."""
    dW = np.full((2, 1), np.nan)
    for dout, expected in (([1.0, 1e16, -1e16], 0), ([1e16, -1e16, 1.0], 1)):
        kernels.embedding_backward(np.ones(3, np.int64), np.array([dout]).T.copy(), dW, kernels.make_work())
        np.testing.assert_array_equal(dW[:, 0], [0, expected])
    dout, total = np.random.default_rng(0).standard_normal((1000, 1)), 0.0
    kernels.embedding_backward(np.ones(1000, np.int64), dout, dW, kernels.make_work())
    for value in dout[:, 0].tolist():
        total += value
    assert dW[1, 0] == total


@pytest.mark.parametrize("kernel", ["rnn_step", "lstm_step", "affine_forward"])
def test_packed_weights(kernels, kernel, dtype):
    """Used again and again they give what the weights themselves give."""
    for size in (Size((1,), D=7, H=40, V=33, U=3), Size((2,) * 30, D=5, H=9, V=70, U=4)):
        case = make_case(kernel, size, dtype)
        expected = case.run(kernels)
        name, gates = {"rnn_step": ("Wh", 1), "lstm_step": ("Wh", 4), "affine_forward": ("W", 1)}[kernel]
        packed, work = kernels.pack(case.inputs[name], gates, kernels.make_work()), kernels.make_work()
        for _ in range(3):
            arguments = case.arguments() | {name: packed}
            call(kernels, kernel, arguments, work)
            for output, value in expected.items():
                np.testing.assert_array_equal(arguments[output], value)


def test_signatures_are_those_of_the_contract(kernels):
    for name in contract():
        expected = list(inspect.signature(getattr(Kernels, name)).parameters)[1:]
        assert list(inspect.signature(getattr(kernels, name)).parameters) == expected, name


def test_the_readme_names_every_kernel():
    text = (Path(__file__).parents[1] / "kernels" / "README.md").read_text()
    for name in contract():
        assert f"`{name}`" in text, name


def test_every_row_of_the_contract_has_a_case():
    assert {*CASES, "make_work", "pack"} == set(contract())
