"""One case per row of the kernel contract, at any size: the tests check it, the benchmarks time it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastrnn import recurrence
from fastrnn.backend import Kernels
from fastrnn.kernels import numpy_kernels

Array = NDArray[Any]
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """The letters of the contract. ``lengths`` are the sequences' (N of them), ``U`` the distinct inputs."""

    lengths: tuple[int, ...]
    D: int
    H: int
    V: int
    U: int
    all_masked: bool = False

    @property
    def N(self) -> int:
        return len(self.lengths)

    @property
    def S(self) -> int:
        return sum(self.lengths)


def _captions(N: int, D: int, H: int, V: int, repeats: float) -> Size:
    """N captions as COCO's are: 10.2 words, deviation 1.8, and END; so many tokens per distinct one."""
    lengths = np.clip(np.random.default_rng(0).normal(11.2, 1.8, N).round(), 2, 16).astype(int).tolist()
    return Size(tuple(lengths), D, H, V, U=round(sum(lengths) / repeats))


BENCHMARKED = {
    "toy": Size((4, 4, 4), D=4, H=5, V=10, U=6),
    "N25": _captions(25, 256, 512, 1004, 2.3),
    "N100": _captions(100, 256, 512, 1004, 3.6),
    "N256": _captions(256, 256, 512, 1004, 5.6),
    "large": _captions(256, 512, 1024, 10_000, 5.6),
}


@dataclass(frozen=True)
class Case:
    """A kernel with its arguments."""

    kernel: str
    dtype: np.dtype[Any]
    inputs: Arguments
    outputs: dict[str, tuple[int, ...]]  # the shapes of what is overwritten
    state: dict[str, Array]  # read and overwritten
    unseen: Arguments  # what the forward pass had and backward is not told: for oracles

    def arguments(self) -> Arguments:
        """Everything but ``work``: inputs as they are, state copied, outputs full of NaN."""
        outputs = {name: np.full(shape, np.nan, self.dtype) for name, shape in self.outputs.items()}
        return self.inputs | {name: array.copy() for name, array in self.state.items()} | outputs

    def run(self, kernels: Kernels, without: tuple[str, ...] = ()) -> dict[str, Array]:
        """Call the kernel; its outputs, new state and loss. Outputs in ``without`` are passed as None."""
        arguments = self.arguments() | dict.fromkeys(without)
        result = call(kernels, self.kernel, arguments, kernels.make_work())
        written = {name: arguments[name] for name in (*self.outputs, *self.state) if name not in without}
        return written if result is None else written | {"loss": np.array(result)}


def call(kernels: Kernels, kernel: str, arguments: Arguments, work: Any) -> Any:
    """Call a kernel by name; the optimisers and embedding_forward take no work."""
    takes_work = kernel not in ("embedding_forward", "sgd", "sgd_momentum", "rmsprop", "adam")
    return getattr(kernels, kernel)(**arguments, **({"work": work} if takes_work else {}))


_UPDATES = {"sgd": 2, "sgd_momentum": 4, "rmsprop": 9, "adam": 13}  # operations for each number


def flops(case: Case) -> float:
    """Operations that a kernel cannot do without: those of its products, or where there are none all it does.

    An exponential, a root and a quotient count as one. Rows whose mask is 0 need none.
    """
    layer, _, way = case.kernel.rpartition("_")
    times = 2 if way == "backward" else 1  # the gradients of both factors
    if layer in ("rnn", "lstm"):
        if way == "step":
            return 2.0 * len(case.inputs["prev_h"]) * case.inputs["Wh"].size
        return (
            times
            * 2.0
            * (
                len(case.inputs["x"]) * case.inputs["Wx"].size
                + len(case.inputs["rows"]) * case.inputs["Wh"].size
            )
        )
    if layer == "affine":
        return times * 2.0 * len(case.inputs["x"]) * case.inputs["W"].size
    if layer == "embedding":
        return float(case.inputs["dout"].size) if way == "backward" else 0.0
    if way == "loss":
        live = np.count_nonzero(case.inputs["mask"])
        V = case.inputs["W" if layer == "vocab" else "scores"].shape[1]
        return live * V * (3 * 2.0 * case.inputs["h"].shape[1] if layer == "vocab" else 5.0)
    return float(_UPDATES[case.kernel] * case.inputs["dw"].size)


def nbytes(case: Case) -> int:
    """Bytes of what a kernel reads and of what it writes."""
    read = sum(a.nbytes for a in case.inputs.values() if isinstance(a, np.ndarray))
    written = sum(int(np.prod(shape)) for shape in case.outputs.values()) * case.dtype.itemsize
    return read + written + 2 * sum(a.nbytes for a in case.state.values())


def make_case(kernel: str, size: Size, dtype: DTypeLike, seed: int = 0) -> Case:
    """The case of a kernel at a size, with random inputs (float64 draws, then cast)."""
    parts = CASES[kernel](np.random.default_rng(seed), size)
    inputs, state, unseen = (_cast(part, dtype) for part in (parts.inputs, parts.state, parts.unseen))
    return Case(kernel, np.dtype(dtype), inputs, parts.outputs, state, unseen)


def _cast(arguments: Arguments, dtype: DTypeLike) -> Arguments:
    return {
        name: np.ascontiguousarray(a, dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
        for name, a in arguments.items()
    }


class Parts(NamedTuple):
    """What differs from case to case; the fields are those of :class:`Case`."""

    inputs: Arguments
    outputs: dict[str, tuple[int, ...]]
    state: Arguments = {}  # noqa: RUF012
    unseen: Arguments = {}  # noqa: RUF012


def _layer(rng: np.random.Generator, size: Size, gates: int) -> Arguments:
    """Inputs of a recurrent layer: distinct non-zero initial states, inputs read several times or never."""
    packed = recurrence.pack(np.array(size.lengths, dtype=np.int64), max(size.lengths, default=0))
    scale = 1 / np.sqrt(size.H + size.D)
    states = {"h0": rng.standard_normal((size.N, size.H))}
    if gates == 4:
        states["c0"] = rng.standard_normal((size.N, size.H))
    return {
        "x": rng.standard_normal((size.U, size.D)),
        "rows": np.minimum(rng.geometric(0.2, size.S) - 1, size.U - 1),
        "batch_sizes": packed.batch_sizes,
        **states,
        "Wx": rng.standard_normal((size.D, gates * size.H)) * scale,
        "Wh": rng.standard_normal((size.H, gates * size.H)) * scale,
        "b": rng.standard_normal(gates * size.H),
    }


def _rnn_forward(rng: np.random.Generator, size: Size) -> Parts:
    return Parts(_layer(rng, size, 1), {"h": (size.S, size.H)})


def _rnn_backward(rng: np.random.Generator, size: Size) -> Parts:
    inputs = _layer(rng, size, 1)
    h = np.empty((size.S, size.H))
    numpy_kernels.rnn_forward(**inputs, h=h, work=numpy_kernels.make_work())
    unseen = {"b": inputs.pop("b")}
    outputs = {
        "dx": (size.U, size.D),
        "dh0": (size.N, size.H),
        "dWx": (size.D, size.H),
        "dWh": (size.H, size.H),
        "db": (size.H,),
    }
    return Parts({"dh": rng.standard_normal(h.shape), **inputs, "h": h}, outputs, unseen=unseen)


def _lstm_forward(rng: np.random.Generator, size: Size) -> Parts:
    S, H = size.S, size.H
    return Parts(_layer(rng, size, 4), {"h": (S, H), "c": (S, H), "gates": (S, 4 * H)})


def _lstm_backward(rng: np.random.Generator, size: Size) -> Parts:
    S, N, D, H = size.S, size.N, size.D, size.H
    inputs = _layer(rng, size, 4)
    made = {"h": np.empty((S, H)), "c": np.empty((S, H)), "gates": np.empty((S, 4 * H))}
    numpy_kernels.lstm_forward(**inputs, **made, work=numpy_kernels.make_work())
    unseen = {"b": inputs.pop("b")}
    outputs = {
        "dx": (size.U, D),
        "dh0": (N, H),
        "dc0": (N, H),
        "dWx": (D, 4 * H),
        "dWh": (H, 4 * H),
        "db": (4 * H,),
    }
    above = {"dh": rng.standard_normal((S, H)), "dcT": rng.standard_normal((N, H))}
    return Parts(above | inputs | made, outputs, unseen=unseen)


def _rnn_step(rng: np.random.Generator, size: Size) -> Parts:
    inputs = {
        "a": rng.standard_normal((size.U, size.H)),
        "rows": rng.integers(0, size.U, size.N),
        "prev_h": rng.standard_normal((size.N, size.H)),
        "Wh": rng.standard_normal((size.H, size.H)) / np.sqrt(size.H),
    }
    return Parts(inputs, {"h": (size.N, size.H)})


def _lstm_step(rng: np.random.Generator, size: Size) -> Parts:
    inputs = {
        "a": rng.standard_normal((size.U, 4 * size.H)),
        "rows": rng.integers(0, size.U, size.N),
        "prev_h": rng.standard_normal((size.N, size.H)),
        "prev_c": rng.standard_normal((size.N, size.H)),
        "Wh": rng.standard_normal((size.H, 4 * size.H)) / np.sqrt(size.H),
    }
    return Parts(inputs, {"h": (size.N, size.H), "c": (size.N, size.H)})


def _affine_forward(rng: np.random.Generator, size: Size) -> Parts:
    inputs = {
        "x": rng.standard_normal((size.S, size.D)),
        "W": rng.standard_normal((size.D, size.H)),
        "b": rng.standard_normal(size.H),
    }
    return Parts(inputs, {"out": (size.S, size.H)})


def _affine_backward(rng: np.random.Generator, size: Size) -> Parts:
    inputs = {
        "dout": rng.standard_normal((size.S, size.H)),
        "x": rng.standard_normal((size.S, size.D)),
        "W": rng.standard_normal((size.D, size.H)),
    }
    return Parts(inputs, {"dx": (size.S, size.D), "dW": (size.D, size.H), "db": (size.H,)})


def _tokens(rng: np.random.Generator, size: Size) -> Array:
    """A few tokens many times and many never, as words are."""
    return np.minimum(rng.geometric(0.3, size.S) - 1, size.V - 1)


def _embedding_forward(rng: np.random.Generator, size: Size) -> Parts:
    inputs = {"tokens": _tokens(rng, size), "W": rng.standard_normal((size.V, size.D))}
    return Parts(inputs, {"out": (size.S, size.D)})


def _embedding_backward(rng: np.random.Generator, size: Size) -> Parts:
    inputs = {"tokens": _tokens(rng, size), "dout": rng.standard_normal((size.S, size.D))}
    return Parts(inputs, {"dW": (size.V, size.D)}, unseen={"V": size.V})


def _targets(rng: np.random.Generator, size: Size) -> Arguments:
    """Targets and a mask with holes and a fractional weight, or nothing but holes."""
    mask = rng.choice([0.0, 0.5, 1.0], size.S, p=[0.25, 0.25, 0.5])
    return {
        "targets": rng.integers(0, size.V, size.S),
        "mask": np.zeros(size.S) if size.all_masked else mask,
        "scale": 1 / max(size.N, 1),
    }


def _softmax_loss(rng: np.random.Generator, size: Size) -> Parts:
    inputs = {"scores": 2 * rng.standard_normal((size.S, size.V)), **_targets(rng, size)}
    return Parts(inputs, {"dscores": (size.S, size.V)})


def _vocab_loss(rng: np.random.Generator, size: Size) -> Parts:
    inputs = {
        "h": np.tanh(rng.standard_normal((size.S, size.H))),
        "W": rng.standard_normal((size.H, size.V)) / np.sqrt(size.H),
        "b": rng.standard_normal(size.V),
        **_targets(rng, size),
    }
    return Parts(inputs, {"dh": (size.S, size.H), "dW": (size.H, size.V), "db": (size.V,)})


def _sgd(rng: np.random.Generator, size: Size) -> Parts:
    w, dw = rng.standard_normal((2, size.V, size.D))
    return Parts({"dw": dw, "learning_rate": 0.3}, {}, {"w": w})


def _sgd_momentum(rng: np.random.Generator, size: Size) -> Parts:
    w, dw, velocity = rng.standard_normal((3, size.V, size.D))
    return Parts({"dw": dw, "learning_rate": 0.3, "momentum": 0.8}, {}, {"w": w, "velocity": velocity})


def _rmsprop(rng: np.random.Generator, size: Size) -> Parts:
    w, dw, cache = rng.standard_normal((3, size.V, size.D))
    settings = {"learning_rate": 0.3, "decay_rate": 0.9, "epsilon": 1e-3}
    return Parts({"dw": dw, **settings}, {}, {"w": w, "cache": cache**2})


def _adam(rng: np.random.Generator, size: Size) -> Parts:
    w, dw, m, v = rng.standard_normal((4, size.V, size.D))
    settings = {"t": 3, "learning_rate": 0.3, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}
    return Parts({"dw": dw, **settings}, {}, {"w": w, "m": m, "v": v**2})


CASES: dict[str, Callable[[np.random.Generator, Size], Parts]] = {
    "rnn_forward": _rnn_forward,
    "rnn_backward": _rnn_backward,
    "lstm_forward": _lstm_forward,
    "lstm_backward": _lstm_backward,
    "rnn_step": _rnn_step,
    "lstm_step": _lstm_step,
    "affine_forward": _affine_forward,
    "affine_backward": _affine_backward,
    "embedding_forward": _embedding_forward,
    "embedding_backward": _embedding_backward,
    "softmax_loss": _softmax_loss,
    "vocab_loss": _vocab_loss,
    "sgd": _sgd,
    "sgd_momentum": _sgd_momentum,
    "rmsprop": _rmsprop,
    "adam": _adam,
}
