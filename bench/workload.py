"""What every competitor of the race computes: the same captions, weights and batches."""

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrnn import CaptioningRNN
from fastrnn.data.coco import MAX_WORDS, SPECIAL, CaptionData, Split, sample_coco_minibatch
from fastrnn.data.prepare import encode, words

Array = np.ndarray[Any, Any]

D = 512  # features of an image
SEED = 231
BATCHES = 10  # minibatches that training goes round
EPOCH = 300  # captions of an epoch
CUBE_FLOPS = 2 * 2048**3  # of the product that is the machine's roof
DECODED = 30  # words of a greedy caption


class Task(NamedTuple):
    """One thing to race in. The sizes are those of the published runs unless others are given."""

    kind: str
    """train (an iteration), forward (the loss alone), epoch, layer (forward and backward), ragged (the same
    with lengths of real captions), decode or product (of h and Wh)."""
    cell: str = "lstm"  # or rnn
    N: int = 100  # captions, or rows of the product
    threads: int = 1
    T: int = MAX_WORDS + 1  # predictions a caption
    E: int = 256  # width of a word vector
    H: int = 512  # hidden units
    V: int = 1004  # words in the vocabulary

    def __str__(self) -> str:
        """Everything that differs from the published sizes, for people."""
        others = (
            f"{name}={getattr(self, name)}"
            for name in "TEHV"
            if getattr(self, name) != self._field_defaults[name]
        )
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return ", ".join([f"{self.kind} {self.cell.upper()} N={self.N}", *others, threads])


@functools.cache
def captions(V: int, T: int) -> tuple[Array, str]:
    """Captions (n,T+1) int32, and whose: COCO's where they are at hand and of that size, else like them."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    directory = Path(os.environ.get("FASTRNN_TEST_DATA", beside)) / "coco"
    if directory.is_dir() and (V, T) == (Task("train").V, Task("train").T):
        vocabulary = json.loads((directory / "coco2014_vocab.json").read_text())["word_to_idx"]
        notes = json.loads((directory / "captions_val2017.json").read_text())["annotations"]
        texts = [words(note["caption"]) for note in notes]
        every = [encode(text, vocabulary) for text in texts if 1 <= len(text) <= MAX_WORDS]
        return np.stack(every), "COCO val2017"
    rng = np.random.default_rng(0)
    rank = np.arange(1, V - 2)  # the words of the vocabulary and UNK: Zipf's law as Mandelbrot has it
    frequency = 1 / (rank + 2.5) ** 1.07
    cumulated = np.cumsum(frequency) / np.sum(frequency)
    drawn = 2 + rank[np.searchsorted(cumulated, rng.random((25_000, T + 1)))].astype(np.int32)
    scale = T / (MAX_WORDS + 1)
    lengths = np.clip(rng.normal(10.2 * scale, 1.8 * scale, len(drawn)).round(), 1, T - 1).astype(int)
    drawn[:, 0] = 1
    np.put_along_axis(drawn, lengths[:, None] + 1, 2, axis=1)
    drawn[np.arange(T + 1) > lengths[:, None] + 1] = 0
    return drawn, "drawn to the statistics of COCO's"


@functools.cache
def vocabulary(V: int) -> dict[str, int]:
    """Words without meaning."""
    return {word: i for i, word in enumerate([*SPECIAL, *(f"word{i}" for i in range(V - len(SPECIAL)))])}


@functools.cache
def data(V: int, T: int) -> dict[str, Array]:
    """A data set as the published solver takes it: the captions, and an image for every five of them."""
    every, _ = captions(V, T)
    images = np.arange(len(every)) // 5
    features = np.random.default_rng(0).standard_normal((images[-1] + 1, D), np.float32)
    return {
        "train_captions": every,
        "train_image_idxs": images,
        "train_features": features,
        "train_urls": np.full(len(features), ""),
    }


def native_data(task: Task) -> CaptionData:
    """The first captions of :func:`data`, enough for an epoch, as the native solver takes them."""
    every = data(task.V, task.T)
    split = Split(
        "train", *(every[f"train_{part}"][:EPOCH] for part in ("captions", "image_idxs", "features")), []
    )
    words = vocabulary(task.V)
    return CaptionData(Path(), words, list(words), train=split, val=split, pca=None)


def epoch(task: Task, seed: int | None = None) -> Iterator[tuple[Array, Array]]:
    """Features and captions of the minibatches of an epoch, shuffled anew each time without a seed."""
    for features, chosen, _ in native_data(task).train.minibatches(task.N, np.random.default_rng(seed)):
        yield features, chosen


@functools.cache
def batches(task: Task) -> list[tuple[Array, Array]]:
    """Features (N,D) float32 and captions (N,T+1) of the first minibatches that the solver draws."""
    np.random.seed(SEED)
    drawn = [sample_coco_minibatch(data(task.V, task.T), task.N) for _ in range(BATCHES)]
    return [(features, captions) for captions, features, _ in drawn]


def lengths(task: Task) -> Array:
    """How many steps of each caption of the first minibatch are live."""
    return np.count_nonzero(batches(task)[0][1][:, 1:], axis=1)


def model(task: Task) -> CaptioningRNN:
    """A new model, float32, always the same."""
    np.random.seed(SEED)
    return CaptioningRNN(vocabulary(task.V), D, task.E, task.H, task.cell)


def layer(task: Task) -> tuple[Array, Array, tuple[Array, Array, Array], Array]:
    """x (N,T,E), h0 (N,H), (Wx, Wh, b) and dh (N,T,H) for the LSTM layer alone, float32."""
    rng = np.random.default_rng(0)
    params = model(task).params
    N, T = task.N, task.T
    x, h0, dh = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((N, T, task.E), (N, task.H), (N, T, task.H))
    )
    dh *= np.arange(T)[None, :, None] < lengths(task)[:, None, None]  # nothing flows into padding
    return x, h0, (params["Wx"], params["Wh"], params["b"]), dh


def recurrent_product(task: Task) -> tuple[Array, Array]:
    """h (N,H) and Wh (H,mH), float32: what every step of a layer multiplies."""
    return np.random.default_rng(0).standard_normal((task.N, task.H), np.float32), model(task).params["Wh"]


def summary(outputs: tuple[Array, Array], live: Array | None) -> list[float]:
    """Sums of the outputs h and dx (N,T,...), over live steps only where lengths are given."""
    T = outputs[0].shape[1]
    mask = np.ones(outputs[0].shape[:2]) if live is None else np.arange(T) < live[:, None]
    return [float(np.sum(np.abs(output) * mask[:, :, None])) for output in outputs]


class Cost(NamedTuple):
    """What a task cannot do without, whoever does it."""

    flops: float  # of the live, de-duplicated products
    nbytes: float  # moved, if nothing but parameters and activations is, and each no more often than it must


def cost(task: Task) -> Cost:
    """The work of a task: products of live tokens, each distinct input once, and the arrays they need.

    A training iteration reads a parameter forward and backward, writes its gradient, and Adam reads four
    arrays and writes three: 40 bytes each. A live token's h, c and gates (6H numbers; H for an RNN) are
    written once and read once. Decoding reads Wh and W_vocab at every step.
    """
    m, activations = (4, 6) if task.cell == "lstm" else (1, 1)
    N, T, E, H, V = task.N, task.T, task.E, task.H, task.V
    recurrent = (E + H + 1) * m * H
    parameters = recurrent + (V + D + 1) * H + V * (E + 1)
    if task.kind == "product":
        return Cost(2.0 * N * H * m * H, 4 * (H * m * H + N * (1 + m) * H))
    if task.kind == "decode":
        step = H * m * H + H * V
        return Cost(2.0 * N * (D * H + DECODED * step), 4.0 * DECODED * step)
    if task.kind == "layer":
        return Cost(3 * 2.0 * N * T * (E + H) * m * H, 12 * recurrent + 8 * N * T * (activations * H + E + H))
    S, U, batch_count = _tokens(task)
    if task.kind == "ragged":
        return Cost(3 * 2.0 * S * (E + H) * m * H, 12 * recurrent + 8 * S * (activations * H + E + H))
    forward = 2.0 * (S * H * m * H + U * E * m * H + S * H * V + N * D * H)
    if task.kind == "forward":
        return Cost(forward, 4 * parameters + 4 * S * H)
    # No gradient of the features is asked for
    return Cost(
        batch_count * (3 * forward - 2.0 * N * D * H),
        batch_count * (40.0 * parameters + 8 * S * activations * H),
    )


def _tokens(task: Task) -> tuple[float, float, int]:
    """Live and distinct tokens of a minibatch on average, and how many minibatches the task has."""
    chosen = list(epoch(task, SEED)) if task.kind == "epoch" else batches(task)
    if task.kind in ("ragged", "forward"):
        chosen = chosen[:1]
    alive = [captions[:, 1:] != 0 for _, captions in chosen]
    distinct = [len(np.unique(captions[:, :-1][a])) for (_, captions), a in zip(chosen, alive, strict=True)]
    count = len(chosen) if task.kind == "epoch" else 1
    return float(np.mean([np.sum(a) for a in alive])), float(np.mean(distinct)), count
