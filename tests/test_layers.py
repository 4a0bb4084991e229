"""The layer functions: gradients, what they accept, what they refuse, and what they leave alone."""

import numpy as np
import pytest

import fastrnn
from fastrnn.gradient_check import eval_numerical_gradient_array


@pytest.fixture(autouse=True)
def _every_backend(kernels):
    pass


N, T, D, H, V = 3, 4, 2, 5, 7
SHAPES = {
    "rnn": {"x": (N, T, D), "h0": (N, H), "Wx": (D, H), "Wh": (H, H), "b": (H,)},
    "lstm": {"x": (N, T, D), "h0": (N, H), "Wx": (D, 4 * H), "Wh": (H, 4 * H), "b": (4 * H,), "c0": (N, H)},
}
FORWARD = {"rnn": fastrnn.rnn_forward, "lstm": fastrnn.lstm_forward}


def backward(cell, dh, cache):
    if cell == "rnn":
        return fastrnn.rnn_backward(dh, cache)
    return fastrnn.lstm_backward(dh, cache, return_dc0=True)


@pytest.mark.parametrize("lengths", [None, [4, 0, 2]], ids=["whole", "lengths"])
@pytest.mark.parametrize("cell", SHAPES)
def test_sequence_gradients(cell, lengths, rng):
    """Every gradient, from a gradient at every step, with distinct non-zero initial states."""
    inputs = {name: rng.standard_normal(shape) for name, shape in SHAPES[cell].items()}
    h, cache = FORWARD[cell](**inputs, lengths=lengths)
    dh = rng.standard_normal(h.shape)
    gradients = backward(cell, dh, cache)
    for (name, array), gradient in zip(inputs.items(), gradients, strict=True):
        numeric = eval_numerical_gradient_array(
            lambda _: FORWARD[cell](**inputs, lengths=lengths)[0], array, dh
        )
        assert np.abs(numeric).max() > 1e-3, name
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("cell", SHAPES)
def test_lengths_are_those_of_shorter_sequences(cell, rng):
    """Past its length a sequence is 0, gradients given there are ignored, the rest is as if it were cut."""
    inputs = {name: rng.standard_normal(shape) for name, shape in SHAPES[cell].items()}
    lengths = np.array([2, 4, 3])
    h, cache = FORWARD[cell](**inputs, lengths=lengths)
    dh = rng.standard_normal(h.shape)
    dx, dh0, *_ = backward(cell, dh, cache)
    for n, length in enumerate(lengths):
        alone = {name: array[n : n + 1] if name in ("h0", "c0") else array for name, array in inputs.items()}
        alone["x"] = inputs["x"][n : n + 1, :length]
        h_alone, cache_alone = FORWARD[cell](**alone)
        dx_alone, dh0_alone, *_ = backward(cell, dh[n : n + 1, :length], cache_alone)
        for whole, cut in ((h[n], h_alone[0]), (dx[n], dx_alone[0])):
            np.testing.assert_allclose(whole[:length], cut, rtol=1e-12, atol=1e-15)
            assert not whole[length:].any()
        np.testing.assert_allclose(dh0[n], dh0_alone[0], rtol=1e-12)


@pytest.mark.parametrize("cell", SHAPES)
def test_a_sequence_is_its_steps(cell, rng):
    inputs = {name: rng.standard_normal(shape) for name, shape in SHAPES[cell].items()}
    x, h, *weights = (inputs[name] for name in ("x", "h0", "Wx", "Wh", "b"))
    together, _ = FORWARD[cell](**inputs)
    c = inputs.get("c0")
    for t in range(T):
        if cell == "rnn":
            h, _ = fastrnn.rnn_step_forward(x[:, t], h, *weights)
        else:
            h, c, _ = fastrnn.lstm_step_forward(x[:, t], h, c, *weights)
        np.testing.assert_allclose(together[:, t], h, rtol=1e-13)


def test_affine_flattens_its_input(rng):
    x, w, b = rng.standard_normal((3, 2, 4)), rng.standard_normal((8, 5)), rng.standard_normal(5)
    out, cache = fastrnn.affine_forward(x, w, b)
    np.testing.assert_allclose(out, x.reshape(3, -1) @ w + b, rtol=1e-13)
    dout = rng.standard_normal(out.shape)
    for array, gradient in zip((x, w, b), fastrnn.affine_backward(dout, cache), strict=True):
        numeric = eval_numerical_gradient_array(lambda _: fastrnn.affine_forward(x, w, b)[0], array, dout)
        assert gradient.shape == array.shape
        np.testing.assert_allclose(gradient, numeric, rtol=1e-7, atol=1e-8)


def test_sigmoid():
    x = np.array([[-1000.0, -30.0, 0.0], [1.0, 30.0, 1000.0]])
    expected = [[0, 9.357622968839299e-14, 0.5], [0.7310585786300049, 0.9999999999999065, 1]]
    np.testing.assert_allclose(fastrnn.sigmoid(x), expected, rtol=1e-14)
    assert fastrnn.sigmoid(np.float32([0.5])).dtype == np.float32
    assert fastrnn.sigmoid(0) == 0.5


# ---------------------------------------------------------------------------------------------------
# What they accept: every case is a function of named arrays, called whole (forward and backward)


def _rnn_step(x, prev_h, Wx, Wh, b, dh):
    next_h, cache = fastrnn.rnn_step_forward(x, prev_h, Wx, Wh, b)
    return next_h, *fastrnn.rnn_step_backward(dh, cache)


def _lstm_step(x, prev_h, prev_c, Wx, Wh, b, dh, dc):
    next_h, next_c, cache = fastrnn.lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b)
    return next_h, next_c, *fastrnn.lstm_step_backward(dh, dc, cache)


def _rnn(x, h0, Wx, Wh, b, dh, lengths):
    h, cache = fastrnn.rnn_forward(x, h0, Wx, Wh, b, lengths=lengths)
    return h, *fastrnn.rnn_backward(dh, cache)


def _lstm(x, h0, Wx, Wh, b, c0, dh, lengths):
    h, cache = fastrnn.lstm_forward(x, h0, Wx, Wh, b, c0=c0, lengths=lengths)
    return h, *fastrnn.lstm_backward(dh, cache, return_dc0=True)


def _embedding(tokens, W, dout):
    out, cache = fastrnn.word_embedding_forward(tokens, W)
    return out, fastrnn.word_embedding_backward(dout, cache)


def _affine(x, w, b, dout):
    out, cache = fastrnn.temporal_affine_forward(x, w, b)
    return out, *fastrnn.temporal_affine_backward(dout, cache)


def _softmax(x, tokens, mask):
    loss, dx = fastrnn.temporal_softmax_loss(x, tokens, mask)
    return np.array(loss), dx


LAYERS = {
    _rnn_step: {"x": (N, D), "prev_h": (N, H), "Wx": (D, H), "Wh": (H, H), "b": (H,), "dh": (N, H)},
    _lstm_step: {
        "x": (N, D), "prev_h": (N, H), "prev_c": (N, H), "Wx": (D, 4 * H), "Wh": (H, 4 * H), "b": (4 * H,),
        "dh": (N, H), "dc": (N, H),
    },
    _rnn: {**SHAPES["rnn"], "dh": (N, T, H), "lengths": (N,)},
    _lstm: {**SHAPES["lstm"], "dh": (N, T, H), "lengths": (N,)},
    _embedding: {"tokens": (N, T), "W": (V, D), "dout": (N, T, D)},
    _affine: {"x": (N, T, D), "w": (D, H), "b": (H,), "dout": (N, T, H)},
    _softmax: {"x": (N, T, V), "tokens": (N, T), "mask": (N, T)},
}  # fmt: skip


def arguments(layer, rng, dtype):
    drawn = {}
    for name, shape in LAYERS[layer].items():
        if name == "tokens":
            drawn[name] = rng.integers(0, V, shape)
        elif name == "lengths":
            drawn[name] = np.array([3, 1, 4])
        elif name == "mask":
            drawn[name] = rng.random(shape) > 0.4
        else:
            drawn[name] = rng.standard_normal(shape).astype(dtype)
    return drawn


def strided(array):
    """The same numbers, not contiguous."""
    return np.repeat(array[..., np.newaxis], 2, axis=-1)[..., 0]


VARIANTS = {
    "not contiguous": strided,
    "Fortran order": np.asfortranarray,
    "byte-swapped": lambda array: array.astype(array.dtype.newbyteorder()),
    "lists": lambda array: array.tolist(),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_any_memory_layout_gives_the_same_bits(layer, variant, rng):
    given = arguments(layer, rng, np.float64)
    expected = layer(**given)
    got = layer(**{name: VARIANTS[variant](array) for name, array in given.items()})
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("layer", LAYERS)
def test_inputs_are_left_alone_and_a_cache_serves_twice(layer, rng, dtype):
    """Read-only inputs work; results are the caller's own, so spoiling them spoils nothing."""
    given = arguments(layer, rng, dtype)
    before = {name: array.copy() for name, array in given.items()}
    for array in given.values():
        array.setflags(write=False)
    first = layer(**given)
    kept = [array.copy() for array in first]
    assert all(array.dtype == dtype for array in first if array.ndim)
    for array in first:
        if array.ndim:
            array.fill(np.nan)
    for again, expected in zip(layer(**given), kept, strict=True):
        np.testing.assert_array_equal(again, expected)
    for name, array in before.items():
        np.testing.assert_array_equal(given[name], array)


def test_a_cache_survives_later_calls_and_spoilt_outputs(rng):
    """Backward twice, another sequence in between, and the output overwritten by its owner."""
    inputs = {name: rng.standard_normal(shape) for name, shape in SHAPES["lstm"].items()}
    h, cache = fastrnn.lstm_forward(**inputs)
    dh = rng.standard_normal(h.shape)
    expected = [gradient.copy() for gradient in fastrnn.lstm_backward(dh, cache)]
    h.fill(np.nan)
    other, other_cache = fastrnn.lstm_forward(**{name: 2 * array for name, array in inputs.items()})
    fastrnn.lstm_backward(np.ones_like(other), other_cache)
    for got, wanted in zip(fastrnn.lstm_backward(dh, cache), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    step = fastrnn.lstm_step_forward(dh[:, 0], *(rng.standard_normal((N, 5)) for _ in "hc"), *(
        rng.standard_normal(shape) for shape in ((H, 4 * H), (H, 4 * H), (4 * H,))
    ))  # fmt: skip
    expected = [g.copy() for g in fastrnn.lstm_step_backward(dh[:, 0], dh[:, 1], step[2])]
    step[0].fill(np.nan)
    step[1].fill(np.nan)
    for got, wanted in zip(fastrnn.lstm_step_backward(dh[:, 0], dh[:, 1], step[2]), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    weights = [rng.standard_normal(shape) for shape in ((H, H), (H, H), (H,))]
    next_h, cache = fastrnn.rnn_step_forward(dh[:, 0], dh[:, 1], *weights)
    expected = fastrnn.rnn_step_backward(dh[:, 0], cache)
    next_h.fill(np.nan)
    for got, wanted in zip(fastrnn.rnn_step_backward(dh[:, 0], cache), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("x", "W", "result"),
    [
        (np.float32, np.float64, np.float64),
        (np.float16, np.float32, np.float32),
        (np.float16, np.float16, np.float32),
        (np.int64, np.float32, np.float64),
        (np.longdouble, np.float32, np.float64),
        (np.int8, np.float32, np.float32),
    ],
)
def test_mixed_types(x, W, result):
    out, cache = fastrnn.temporal_affine_forward(np.ones((2, 3, 4), x), np.ones((4, 5), W), np.zeros(5, W))
    assert out.dtype == result
    np.testing.assert_array_equal(out, 4)
    assert all(gradient.dtype == result for gradient in fastrnn.temporal_affine_backward(out, cache))


def test_tokens_may_be_whole_floats(rng):
    W = rng.standard_normal((V, D))
    tokens = rng.integers(0, V, (N, T))
    out, _ = fastrnn.word_embedding_forward(tokens.astype(np.float32), W)
    np.testing.assert_array_equal(out, W[tokens])


def test_the_default_cell_state_keeps_float32(rng):
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES["lstm"].items()}
    del inputs["c0"]
    assert fastrnn.lstm_forward(**inputs)[0].dtype == np.float32


def test_targets_under_the_mask_may_be_anything(rng):
    x, mask = rng.standard_normal((1, 2, V)), [[True, False]]
    losses = [fastrnn.temporal_softmax_loss(x, [[1, y]], mask)[0] for y in (0, -1, V, 999)]
    assert len(set(losses)) == 1


def test_mask_of_weights(rng):
    x, y = rng.standard_normal((1, 2, V)), np.array([[1, 2]])
    both = [
        fastrnn.temporal_softmax_loss(x, y, [[1, 0]])[0],
        fastrnn.temporal_softmax_loss(x, y, [[0, 1]])[0],
    ]
    weighted, _ = fastrnn.temporal_softmax_loss(x, y, [[0.5, 0.25]])
    np.testing.assert_allclose(weighted, 0.5 * both[0] + 0.25 * both[1])


def test_verbose_prints_the_shape(capsys):
    fastrnn.temporal_softmax_loss(np.zeros((2, 3, V)), np.zeros((2, 3)), np.ones((2, 3)))
    assert capsys.readouterr().out == ""
    fastrnn.temporal_softmax_loss(np.zeros((2, 3, V)), np.zeros((2, 3)), np.ones((2, 3)), verbose=True)
    assert "(6, 7)" in capsys.readouterr().out


def test_empty_batches(rng):
    for n, t in ((0, T), (N, 0)):
        inputs = {name: rng.standard_normal(shape) for name, shape in SHAPES["lstm"].items()}
        inputs |= {"x": np.zeros((n, t, D)), "h0": inputs["h0"][:n], "c0": inputs["c0"][:n]}
        h, cache = fastrnn.lstm_forward(**inputs)
        assert h.shape == (n, t, H)
        dx, dh0, *_ = fastrnn.lstm_backward(h, cache)
        assert dx.shape == (n, t, D)
        assert not dh0.any()


# ---------------------------------------------------------------------------------------------------
# What they refuse


ones = np.ones
embed, affine, temporal_affine, softmax = (
    fastrnn.word_embedding_forward,
    fastrnn.affine_forward,
    fastrnn.temporal_affine_forward,
    fastrnn.temporal_softmax_loss,
)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fastrnn.rnn_forward(ones((2, 3, 4)), ones((2, 5)), ones((4, 6)), ones((5, 5)), ones(5)),
            ValueError,
            r"Wx: expected shape \(D,H\) with D=4, H=5, got \(4, 6\)",
        ),
        (
            lambda: fastrnn.lstm_forward(ones((2, 3)), ones((2, 5)), ones((3, 20)), ones((5, 20)), ones(20)),
            ValueError,
            r"x: expected shape \(N,T,D\), got \(2, 3\)",
        ),
        (
            lambda: fastrnn.lstm_step_forward(
                ones((2, 3)), ones((2, 5)), ones((2, 5)), ones((3, 5)), ones((5, 20)), ones(20)
            ),
            ValueError,
            r"Wx: expected shape \(D,4H\) with D=3, H=5, got \(3, 5\)",
        ),
        (
            lambda: fastrnn.rnn_forward(
                ones((2, 3, 4)), ones((2, 5)), ones((4, 5)), ones((5, 5)), ones(5), lengths=[1, 4]
            ),
            ValueError,
            r"lengths: expected numbers in 0\.\.3, got 1\.\.4",
        ),
        (
            lambda: fastrnn.rnn_forward(
                ones((2, 3, 4)), ones((2, 5)), ones((4, 5)), ones((5, 5)), ones(5), lengths=[-1, 2]
            ),
            ValueError,
            r"lengths: expected numbers in 0\.\.3, got -1\.\.2",
        ),
        (
            lambda: fastrnn.rnn_forward(
                ones((2, 3, 4)), ones((2, 5)), ones((4, 5)), ones((5, 5)), ones(5), lengths=[1]
            ),
            ValueError,
            r"lengths: expected shape \(N\) with N=2, got \(1,\)",
        ),
        (
            lambda: embed([[0, 7]], ones((7, 2))),
            IndexError,
            r"x: token 7 at \[0, 1\] is outside the vocabulary of 7 \(0\.\.6\)",
        ),
        (lambda: embed([[-1]], ones((7, 2))), IndexError, "token -1 at"),
        (lambda: embed([[0.5]], ones((7, 2))), ValueError, "x: expected whole numbers"),
        (lambda: embed([[np.nan]], ones((7, 2))), ValueError, "x: expected whole"),
        (lambda: embed([[1e300]], ones((7, 2))), IndexError, "x: token 1000000"),
        (lambda: embed(np.array([2**63], np.uint64), ones((7, 2))), IndexError, "token 9223372036854775808"),
        (lambda: embed([["cat"]], ones((7, 2))), TypeError, "x: expected real numbers"),
        (lambda: affine(ones((2, 3)) * 1j, ones((3, 2)), ones(2)), TypeError, "x: .*complex"),
        (lambda: affine(ones((2, 3)), ones((4, 2)), ones(2)), ValueError, "w: expected shape"),
        (lambda: temporal_affine(ones((2, 3)), ones((3, 2)), ones(2)), ValueError, "x: expected"),
        (
            lambda: softmax(ones((1, 2, 3)), [[0, 3]], [[1, 1]]),
            IndexError,
            r"y: token 3 at \[0, 1\]",
        ),
        (lambda: softmax(ones((1, 2, 3)), [[0, 1]], [1, 1]), ValueError, "mask: expected"),
        (lambda: softmax(ones((1, 2, 3)), [[0, 1]], [[1, 2]]), ValueError, r"mask: expected .* got 1\.\.2"),
        (lambda: softmax(ones((1, 2, 3)), [[0, 1]], [[-1, 1]]), ValueError, r"mask: expected .* got -1\.\.1"),
        (lambda: softmax(ones((1, 2, 3)), [[0, 1]], [[1, np.nan]]), ValueError, "mask: expected"),
        (lambda: affine([[1, 2], [3]], ones((3, 2)), ones(2)), ValueError, "x: not an array"),
        (lambda: softmax(ones((0, 2, 3)), ones((0, 2)), ones((0, 2))), ValueError, "N=0"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_from_above_are_checked(layer, rng):
    given = arguments(layer, rng, np.float64)
    for name in {"dh", "dc", "dout"} & given.keys():
        with pytest.raises(ValueError, match=rf"d.*: expected shape .* got \({N}, 1\)"):
            layer(**given | {name: np.ones((N, 1))})
