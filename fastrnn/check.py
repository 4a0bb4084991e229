"""What ``fastrnn check`` computes: published values beside ours, and gradients against central differences.

Everything is float64 and runs on the current backend. The values, sizes and bounds are those of the notebooks
of Stanford's CS231n (RNN_Captioning, LSTM_Captioning), but where a comment calls them fastrnn's own.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastrnn import backend, layers
from fastrnn.arrays import Array
from fastrnn.captioning import CaptioningRNN
from fastrnn.gradient_check import eval_numerical_gradient_array


class Value(NamedTuple):
    """A published output and ours; of an array the last number is shown, and all are compared."""

    name: str
    published: float
    ours: float
    error: float  # the largest relative one
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.error <= self.bound


class Gradient(NamedTuple):
    """An analytic gradient against central differences."""

    name: str
    of: str  # what the gradient is with respect to
    error: float  # the largest relative one
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.error <= self.bound


def relative_error(x: ArrayLike, y: ArrayLike) -> float:
    """The published measure: the largest |x - y| / max(1e-8, |x| + |y|)."""
    x, y = np.asarray(x), np.asarray(y)
    return float(np.max(np.abs(x - y) / np.maximum(1e-8, np.abs(x) + np.abs(y))))


# ---------------------------------------------------------------------------------------------------
# Published values

PUBLISHED: dict[str, Any] = {
    "rnn_step_forward": [
        [-0.58172089, -0.50182032, -0.41232771, -0.31410098],
        [0.66854692, 0.79562378, 0.87755553, 0.92795967],
        [0.97934501, 0.99144213, 0.99646691, 0.99854353],
    ],
    "rnn_forward": [
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
    ],
    "word_embedding_forward": [
        [
            [0, 0.07142857, 0.14285714],
            [0.64285714, 0.71428571, 0.78571429],
            [0.21428571, 0.28571429, 0.35714286],
            [0.42857143, 0.5, 0.57142857],
        ],
        [
            [0.42857143, 0.5, 0.57142857],
            [0.21428571, 0.28571429, 0.35714286],
            [0, 0.07142857, 0.14285714],
            [0.64285714, 0.71428571, 0.78571429],
        ],
    ],
    "lstm_step_forward, h": [
        [0.24635157, 0.28610883, 0.32240467, 0.35525807, 0.38474904],
        [0.49223563, 0.55611431, 0.61507696, 0.66844003, 0.7159181],
        [0.56735664, 0.66310127, 0.74419266, 0.80889665, 0.858299],
    ],
    "lstm_step_forward, c": [
        [0.32986176, 0.39145139, 0.451556, 0.51014116, 0.56717407],
        [0.66382255, 0.76674007, 0.87195994, 0.97902709, 1.08751345],
        [0.74192008, 0.90592151, 1.07717006, 1.25120233, 1.42395676],
    ],
    "lstm_forward": [
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
    ],
    "CaptioningRNN.loss, rnn": 9.83235591003,
    "CaptioningRNN.loss, lstm": 9.82445935443,
}
BOUNDS = {
    "rnn_forward": 1e-7,
    "word_embedding_forward": 2e-8,
    "lstm_forward": 1e-7,
    "CaptioningRNN.loss": 1e-11,
}
BOUND = 1e-8  # of all others
_AS_PUBLISHED = {  # the kernels that decoding calls give the values of the layers
    "rnn_step, decoding": "rnn_step_forward",
    "lstm_step, h, decoding": "lstm_step_forward, h",
    "lstm_step, c, decoding": "lstm_step_forward, c",
}


def values() -> Iterator[Value]:
    """Our outputs for the published inputs."""
    for name, ours in _outputs():
        published = np.asarray(PUBLISHED[_AS_PUBLISHED.get(name, name)])
        bound = BOUNDS.get(name.split(",")[0], BOUND)
        yield Value(
            name, published.flat[-1], np.asarray(ours).flat[-1], relative_error(published, ours), bound
        )


def _linspace(low: float, high: float, *shape: int) -> Array:
    return np.linspace(low, high, num=int(np.prod(shape))).reshape(shape)


def _outputs() -> Iterator[tuple[str, ArrayLike]]:
    N, D, H = 3, 10, 4
    next_h, _ = layers.rnn_step_forward(
        _linspace(-0.4, 0.7, N, D),
        _linspace(-0.2, 0.5, N, H),
        _linspace(-0.1, 0.9, D, H),
        _linspace(-0.3, 0.7, H, H),
        _linspace(-0.2, 0.4, H),
    )
    yield "rnn_step_forward", next_h
    h = np.empty((N, H))
    kernels, work = backend.kernels_and_work()
    a = _linspace(-0.4, 0.7, N, D) @ _linspace(-0.1, 0.9, D, H) + _linspace(-0.2, 0.4, H)
    kernels.rnn_step(a, np.arange(N), _linspace(-0.2, 0.5, N, H), _linspace(-0.3, 0.7, H, H), h, work)
    yield "rnn_step, decoding", h

    N, T, D, H = 2, 3, 4, 5
    h, _ = layers.rnn_forward(
        _linspace(-0.1, 0.3, N, T, D),
        _linspace(-0.3, 0.1, N, H),
        _linspace(-0.2, 0.4, D, H),
        _linspace(-0.4, 0.1, H, H),
        _linspace(-0.7, 0.1, H),
    )
    yield "rnn_forward", h

    V, D = 5, 3
    out, _ = layers.word_embedding_forward(np.array([[0, 3, 1, 2], [2, 1, 0, 3]]), _linspace(0, 1, V, D))
    yield "word_embedding_forward", out

    N, D, H = 3, 4, 5
    next_h, next_c, _ = layers.lstm_step_forward(
        _linspace(-0.4, 1.2, N, D),
        _linspace(-0.3, 0.7, N, H),
        _linspace(-0.4, 0.9, N, H),
        _linspace(-2.1, 1.3, D, 4 * H),
        _linspace(-0.7, 2.2, H, 4 * H),
        _linspace(0.3, 0.7, 4 * H),
    )
    yield "lstm_step_forward, h", next_h
    yield "lstm_step_forward, c", next_c
    h, c = np.empty((2, N, H))
    a = _linspace(-0.4, 1.2, N, D) @ _linspace(-2.1, 1.3, D, 4 * H) + _linspace(0.3, 0.7, 4 * H)
    prev_h, prev_c = _linspace(-0.3, 0.7, N, H), _linspace(-0.4, 0.9, N, H)
    kernels.lstm_step(a, np.arange(N), prev_h, prev_c, _linspace(-0.7, 2.2, H, 4 * H), h, c, work)
    yield "lstm_step, h, decoding", h
    yield "lstm_step, c, decoding", c

    N, T, D, H = 2, 3, 5, 4
    h, _ = layers.lstm_forward(
        _linspace(-0.4, 0.6, N, T, D),
        _linspace(-0.4, 0.8, N, H),
        _linspace(-0.2, 0.9, D, 4 * H),
        _linspace(-0.3, 0.6, H, 4 * H),
        _linspace(0.2, 0.7, 4 * H),
    )
    yield "lstm_forward", h

    N, D, W, H, T = 10, 20, 30, 40, 13
    for cell_type, low, high in (("rnn", -1.5, 0.3), ("lstm", -0.5, 1.7)):
        model = _model(D, W, H, cell_type)
        for name, w in model.params.items():
            model.params[name] = _linspace(-1.4, 1.3, *w.shape)
        captions = (np.arange(N * T) % 3).reshape(N, T)
        yield f"CaptioningRNN.loss, {cell_type}", model.loss(_linspace(low, high, N, D), captions)[0]


def _model(D: int, W: int, H: int, cell_type: str) -> CaptioningRNN:
    """A model of the published vocabulary with a gap, always the same."""
    state = np.random.get_state()
    np.random.seed(231)
    model = CaptioningRNN({"<NULL>": 0, "cat": 2, "dog": 3}, D, W, H, cell_type, dtype=np.float64)
    np.random.set_state(state)
    return model


# ---------------------------------------------------------------------------------------------------
# Gradients


def gradients() -> Iterator[Gradient]:
    """Every gradient of every function at small sizes, inputs standard normal, models as they are drawn."""
    rng = np.random.RandomState(231)

    def normal(**shapes: tuple[int, ...]) -> dict[str, Array]:
        return {name: rng.randn(*shape) for name, shape in shapes.items()}

    N, D, H = 4, 5, 6
    inputs = normal(x=(N, D), prev_h=(N, H), Wx=(D, H), Wh=(H, H), b=(H,))
    yield from _compare("rnn_step", layers.rnn_step_forward, layers.rnn_step_backward, inputs, rng, 1e-8)
    N, D, T, H = 2, 3, 10, 5
    inputs = normal(x=(N, T, D), h0=(N, H), Wx=(D, H), Wh=(H, H), b=(H,))
    yield from _compare("rnn", layers.rnn_forward, layers.rnn_backward, inputs, rng, 5e-7)

    N, T, V, D = 50, 3, 5, 6
    tokens = rng.randint(V, size=(N, T))
    yield from _compare(
        "word_embedding",
        lambda W: layers.word_embedding_forward(tokens, W),
        layers.word_embedding_backward,
        normal(W=(V, D)),
        rng,
        1e-11,
    )
    N, T, D, M = 2, 3, 4, 5
    inputs = normal(x=(N, T, D), w=(D, M), b=(M,))
    affine = layers.temporal_affine_forward, layers.temporal_affine_backward
    yield from _compare("temporal_affine", *affine, inputs, rng, 1e-9)

    N, T, V = 7, 8, 9
    y, mask = rng.randint(V, size=(N, T)), rng.rand(N, T) > 0.5

    def softmax(x: Array) -> tuple[Array, Array]:
        loss, dx = layers.temporal_softmax_loss(x, y, mask)
        return np.array(loss), dx

    yield from _compare("temporal_softmax_loss", softmax, np.multiply, normal(x=(N, T, V)), rng, 1e-7)

    N, D, H = 4, 5, 6
    inputs = normal(x=(N, D), prev_h=(N, H), prev_c=(N, H), Wx=(D, 4 * H), Wh=(H, 4 * H), b=(4 * H,))
    yield from _compare("lstm_step", layers.lstm_step_forward, layers.lstm_step_backward, inputs, rng, 1e-6)
    N, D, T, H = 2, 3, 10, 6
    inputs = normal(x=(N, T, D), h0=(N, H), Wx=(D, 4 * H), Wh=(H, 4 * H), b=(4 * H,))
    yield from _compare("lstm", layers.lstm_forward, layers.lstm_backward, inputs, rng, 1e-6)

    # fastrnn's own: a first cell state, uneven lengths, and both cells of the model
    N, D, T, H = 3, 4, 5, 6
    inputs = normal(x=(N, T, D), h0=(N, H), Wx=(D, 4 * H), Wh=(H, 4 * H), b=(4 * H,), c0=(N, H))

    def uneven(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array, c0: Array) -> tuple[Array, Any]:
        return layers.lstm_forward(x, h0, Wx, Wh, b, c0=c0, lengths=[2, 5, 0])

    yield from _compare(
        "lstm with lengths",
        uneven,
        lambda dh, cache: layers.lstm_backward(dh, cache, return_dc0=True),
        inputs,
        rng,
        1e-6,
    )
    N, T, D, W, H = 2, 4, 4, 5, 6
    captions, features = np.array([[1, 2, 0, 1], [2, 0, 0, 0]]), rng.randn(N, D)
    for cell_type in ("rnn", "lstm"):
        model = _model(D, W, H, cell_type)

        def loss(*params: Array, model: CaptioningRNN = model) -> tuple[Array, tuple[Array, ...]]:
            model.params = dict(zip(model.params, params, strict=True))
            loss, grads = model.loss(features, captions)
            return np.array(loss), tuple(grads.values())

        yield from _compare(
            f"CaptioningRNN, {cell_type}",
            loss,
            lambda dloss, grads: tuple(dloss * grad for grad in grads),
            dict(model.params),
            rng,
            5e-6,
        )


def _compare(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: dict[str, Array],
    rng: np.random.RandomState,
    bound: float,
) -> Iterator[Gradient]:
    """The gradient of the sum of forward's outputs times random numbers, with respect to each input.

    ``forward(*inputs)`` returns outputs and a cache, ``backward(*douts, cache)`` a gradient for each input.
    """
    *outputs, cache = forward(*inputs.values())
    douts = [rng.randn(*np.shape(output)) for output in outputs]
    analytic = backward(*douts, cache)
    above = np.concatenate([np.ravel(dout) for dout in douts])

    def outputs_of(_: Array) -> Array:
        return np.concatenate([np.ravel(output) for output in forward(*inputs.values())[:-1]])

    analytic = analytic if isinstance(analytic, tuple) else (analytic,)
    for (of, array), gradient in zip(inputs.items(), analytic, strict=True):
        coarse, fine = (eval_numerical_gradient_array(outputs_of, array, above, h) for h in (1e-3, 5e-4))
        numeric = (4 * fine - coarse) / 3  # Richardson: error of order h^4
        yield Gradient(name, of, relative_error(numeric, gradient), bound)
