"""The published inputs, outputs and gradient checks of the image-captioning exercises, in float64.

Source: the notebooks of Stanford's CS231n (RNN_Captioning, LSTM_Captioning). An input given as linspace(a, b)
is ``numpy.linspace(a, b, num=size).reshape(shape)``.
"""

import numpy as np
import pytest

import fastrnn
from fastrnn.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array


def linspace(low, high, *shape):
    return np.linspace(low, high, num=int(np.prod(shape))).reshape(shape)


def rel_error(x, y):
    return np.max(np.abs(x - y) / np.maximum(1e-8, np.abs(x) + np.abs(y)))


@pytest.fixture(autouse=True)
def _every_backend(kernels):
    np.random.seed(231)


def test_rnn_step_forward():
    N, D, H = 3, 10, 4
    next_h, _ = fastrnn.rnn_step_forward(
        linspace(-0.4, 0.7, N, D),
        linspace(-0.2, 0.5, N, H),
        linspace(-0.1, 0.9, D, H),
        linspace(-0.3, 0.7, H, H),
        linspace(-0.2, 0.4, H),
    )
    expected = [
        [-0.58172089, -0.50182032, -0.41232771, -0.31410098],
        [0.66854692, 0.79562378, 0.87755553, 0.92795967],
        [0.97934501, 0.99144213, 0.99646691, 0.99854353],
    ]
    assert rel_error(expected, next_h) <= 1e-8


def test_rnn_forward():
    N, T, D, H = 2, 3, 4, 5
    h, _ = fastrnn.rnn_forward(
        linspace(-0.1, 0.3, N, T, D),
        linspace(-0.3, 0.1, N, H),
        linspace(-0.2, 0.4, D, H),
        linspace(-0.4, 0.1, H, H),
        linspace(-0.7, 0.1, H),
    )
    expected = [
        [
            [-0.42070749, -0.27279261, -0.11074945, 0.05740409, 0.22236251],
            [-0.39525808, -0.22554661, -0.0409454, 0.14649412, 0.32397316],
            [-0.42305111, -0.24223728, -0.04287027, 0.15997045, 0.35014525],
        ],
        [
            [-0.55857474, -0.39065825, -0.19198182, 0.02378408, 0.23735671],
            [-0.27150199, -0.07088804, 0.13562939, 0.33099728, 0.50158768],
            [-0.51014825, -0.30524429, -0.06755202, 0.17806392, 0.40333043],
        ],
    ]
    assert rel_error(expected, h) <= 1e-7


def test_word_embedding_forward():
    V, D = 5, 3
    x = np.array([[0, 3, 1, 2], [2, 1, 0, 3]])
    out, _ = fastrnn.word_embedding_forward(x, linspace(0, 1, V, D))
    rows = {
        0: [0, 0.07142857, 0.14285714],
        1: [0.21428571, 0.28571429, 0.35714286],
        2: [0.42857143, 0.5, 0.57142857],
        3: [0.64285714, 0.71428571, 0.78571429],
    }
    assert rel_error([[rows[token] for token in caption] for caption in x], out) <= 2e-8


def test_lstm_step_forward():
    N, D, H = 3, 4, 5
    next_h, next_c, _ = fastrnn.lstm_step_forward(
        linspace(-0.4, 1.2, N, D),
        linspace(-0.3, 0.7, N, H),
        linspace(-0.4, 0.9, N, H),
        linspace(-2.1, 1.3, D, 4 * H),
        linspace(-0.7, 2.2, H, 4 * H),
        linspace(0.3, 0.7, 4 * H),
    )
    expected_h = [
        [0.24635157, 0.28610883, 0.32240467, 0.35525807, 0.38474904],
        [0.49223563, 0.55611431, 0.61507696, 0.66844003, 0.7159181],
        [0.56735664, 0.66310127, 0.74419266, 0.80889665, 0.858299],
    ]
    expected_c = [
        [0.32986176, 0.39145139, 0.451556, 0.51014116, 0.56717407],
        [0.66382255, 0.76674007, 0.87195994, 0.97902709, 1.08751345],
        [0.74192008, 0.90592151, 1.07717006, 1.25120233, 1.42395676],
    ]
    assert rel_error(expected_h, next_h) <= 1e-8
    assert rel_error(expected_c, next_c) <= 1e-8


def test_lstm_forward():
    N, T, D, H = 2, 3, 5, 4
    h, _ = fastrnn.lstm_forward(
        linspace(-0.4, 0.6, N, T, D),
        linspace(-0.4, 0.8, N, H),
        linspace(-0.2, 0.9, D, 4 * H),
        linspace(-0.3, 0.6, H, 4 * H),
        linspace(0.2, 0.7, 4 * H),
    )
    expected = [
        [
            [0.01764008, 0.01823233, 0.01882671, 0.0194232],
            [0.11287491, 0.12146228, 0.13018446, 0.13902939],
            [0.31358768, 0.33338627, 0.35304453, 0.37250975],
        ],
        [
            [0.45767879, 0.4761092, 0.4936887, 0.51041945],
            [0.6704845, 0.69350089, 0.71486014, 0.7346449],
            [0.81733511, 0.83677871, 0.85403753, 0.86935314],
        ],
    ]
    assert rel_error(expected, h) <= 1e-7


@pytest.mark.parametrize(
    ("cell_type", "features", "expected"),
    [("rnn", (-1.5, 0.3), 9.83235591003), ("lstm", (-0.5, 1.7), 9.82445935443)],
)
def test_captioning_loss(cell_type, features, expected):
    """A vocabulary with a gap and without START, and parameters that the user replaces."""
    N, D, W, H, T = 10, 20, 30, 40, 13
    word_to_idx = {"<NULL>": 0, "cat": 2, "dog": 3}
    model = fastrnn.CaptioningRNN(word_to_idx, D, W, H, cell_type, dtype=np.float64)
    for name, w in model.params.items():
        model.params[name] = linspace(-1.4, 1.3, *w.shape)
    captions = (np.arange(N * T) % len(word_to_idx)).reshape(N, T)
    loss, _ = model.loss(linspace(*features, N, D), captions)
    assert abs(loss - expected) <= 1e-10


@pytest.mark.parametrize(
    ("N", "T", "V", "p", "low", "high"),
    [(100, 1, 10, 1.0, 2.25, 2.35), (100, 10, 10, 1.0, 22.9, 23.1), (5000, 10, 10, 0.1, 2.2, 2.4)],
)
def test_temporal_softmax_loss(N, T, V, p, low, high):
    x = 0.001 * np.random.randn(N, T, V)
    y = np.random.randint(V, size=(N, T))
    mask = np.random.rand(N, T) <= p
    loss, _ = fastrnn.temporal_softmax_loss(x, y, mask)
    assert low <= loss <= high


# ---------------------------------------------------------------------------------------------------
# Gradient checks, standard normal inputs


def check_gradients(forward, inputs, output, above, gradients, largest, h=1e-5):
    """Each analytic gradient against the central differences of sum(output of forward * above)."""
    for name, gradient in gradients.items():
        numeric = eval_numerical_gradient_array(
            lambda _: output(forward(*inputs.values())), inputs[name], above, h
        )
        assert rel_error(numeric, gradient) <= largest, name


def test_rnn_step_backward():
    N, D, H = 4, 5, 6
    shapes = {"x": (N, D), "h": (N, H), "Wx": (D, H), "Wh": (H, H), "b": (H,)}
    inputs = {name: np.random.randn(*shape) for name, shape in shapes.items()}
    out, cache = fastrnn.rnn_step_forward(*inputs.values())
    dnext_h = np.random.randn(*out.shape)
    gradients = dict(zip(inputs, fastrnn.rnn_step_backward(dnext_h, cache), strict=True))
    check_gradients(fastrnn.rnn_step_forward, inputs, lambda r: r[0], dnext_h, gradients, 1e-8)


def test_rnn_backward():
    N, D, T, H = 2, 3, 10, 5
    shapes = {"x": (N, T, D), "h0": (N, H), "Wx": (D, H), "Wh": (H, H), "b": (H,)}
    inputs = {name: np.random.randn(*shape) for name, shape in shapes.items()}
    out, cache = fastrnn.rnn_forward(*inputs.values())
    dout = np.random.randn(*out.shape)
    gradients = dict(zip(inputs, fastrnn.rnn_backward(dout, cache), strict=True))
    check_gradients(fastrnn.rnn_forward, inputs, lambda r: r[0], dout, gradients, 5e-7)


def test_word_embedding_backward():
    N, T, V, D = 50, 3, 5, 6
    x = np.random.randint(V, size=(N, T))
    W = np.random.randn(V, D)
    out, cache = fastrnn.word_embedding_forward(x, W)
    dout = np.random.randn(*out.shape)
    dW = fastrnn.word_embedding_backward(dout, cache)
    numeric = eval_numerical_gradient_array(lambda W: fastrnn.word_embedding_forward(x, W)[0], W, dout)
    assert rel_error(dW, numeric) <= 1e-11


def test_temporal_affine_backward():
    N, T, D, M = 2, 3, 4, 5
    inputs = {"x": np.random.randn(N, T, D), "w": np.random.randn(D, M), "b": np.random.randn(M)}
    out, cache = fastrnn.temporal_affine_forward(*inputs.values())
    dout = np.random.randn(*out.shape)
    gradients = dict(zip(inputs, fastrnn.temporal_affine_backward(dout, cache), strict=True))
    check_gradients(fastrnn.temporal_affine_forward, inputs, lambda r: r[0], dout, gradients, 1e-9)


def test_temporal_softmax_loss_gradient():
    N, T, V = 7, 8, 9
    x = np.random.randn(N, T, V)
    y = np.random.randint(V, size=(N, T))
    mask = np.random.rand(N, T) > 0.5
    _, dx = fastrnn.temporal_softmax_loss(x, y, mask)
    numeric = eval_numerical_gradient(
        lambda x: fastrnn.temporal_softmax_loss(x, y, mask)[0], x, verbose=False
    )
    assert rel_error(dx, numeric) <= 1e-7


def test_lstm_step_backward():
    N, D, H = 4, 5, 6
    shapes = {"x": (N, D), "h": (N, H), "c": (N, H), "Wx": (D, 4 * H), "Wh": (H, 4 * H), "b": (4 * H,)}
    inputs = {name: np.random.randn(*shape) for name, shape in shapes.items()}
    next_h, _, cache = fastrnn.lstm_step_forward(*inputs.values())
    above = np.random.randn(2, *next_h.shape)
    gradients = dict(zip(inputs, fastrnn.lstm_step_backward(*above, cache), strict=True))
    check_gradients(
        fastrnn.lstm_step_forward, inputs, lambda r: np.stack([r[0], r[1]]), above, gradients, 1e-6
    )


def test_lstm_backward():
    N, D, T, H = 2, 3, 10, 6
    shapes = {"x": (N, T, D), "h0": (N, H), "Wx": (D, 4 * H), "Wh": (H, 4 * H), "b": (4 * H,)}
    inputs = {name: np.random.randn(*shape) for name, shape in shapes.items()}
    out, cache = fastrnn.lstm_forward(*inputs.values())
    dout = np.random.randn(*out.shape)
    gradients = dict(zip(inputs, fastrnn.lstm_backward(dout, cache), strict=True))
    # One element of dWh is 1.3e-5: with h = 1e-5 the rounding of the numeric slope alone is 2e-6 of that.
    coarse = {"Wh": gradients.pop("Wh")}
    check_gradients(fastrnn.lstm_forward, inputs, lambda r: r[0], dout, gradients, 1e-6)
    check_gradients(fastrnn.lstm_forward, inputs, lambda r: r[0], dout, coarse, 1e-6, h=1e-4)


def test_captioning_rnn_gradient():
    N, T, D, W, H = 2, 3, 4, 5, 6
    word_to_idx = {"<NULL>": 0, "cat": 2, "dog": 3}
    captions = np.random.randint(len(word_to_idx), size=(N, T))
    features = np.random.randn(N, D)
    model = fastrnn.CaptioningRNN(word_to_idx, D, W, H, "rnn", dtype=np.float64)
    _, grads = model.loss(features, captions)
    assert grads.keys() == model.params.keys()
    for name, w in model.params.items():
        numeric = eval_numerical_gradient(
            lambda _: model.loss(features, captions)[0], w, verbose=False, h=1e-6
        )
        assert rel_error(numeric, grads[name]) <= 5e-6, name
