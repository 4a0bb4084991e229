"""What every competitor of the race computes: the same captions, weights and batches."""

import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrnn import CaptioningRNN
from fastrnn.data.coco import MAX_WORDS, SPECIAL, sample_coco_minibatch
from fastrnn.data.prepare import encode, words

Array = np.ndarray[Any, Any]

D, E, H, V = 512, 256, 512, 1004  # features, word vectors, hidden units, vocabulary of the published runs
VOCABULARY = {word: i for i, word in enumerate([*SPECIAL, *(f"word{i}" for i in range(V - len(SPECIAL)))])}
STEPS = MAX_WORDS + 1  # predictions of a caption of 17 tokens
SEED = 231
BATCHES = 10  # minibatches that training goes round
DECODED = 30  # words of a greedy caption


class Task(NamedTuple):
    """One thing to race in."""

    kind: str  # train, layer, ragged (the layer with lengths of real captions), decode or product
    cell: str  # lstm or rnn
    N: int  # captions, or rows of the product
    threads: int


@functools.cache
def captions() -> Array:
    """Captions (n,17) int32: COCO's where they are at hand, else drawn to the same statistics."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    directory = Path(os.environ.get("FASTRNN_TEST_DATA", beside)) / "coco"
    if directory.is_dir():
        vocabulary = json.loads((directory / "coco2014_vocab.json").read_text())["word_to_idx"]
        notes = json.loads((directory / "captions_val2017.json").read_text())["annotations"]
        texts = [words(note["caption"]) for note in notes]
        return np.stack([encode(text, vocabulary) for text in texts if 1 <= len(text) <= MAX_WORDS])
    rng = np.random.default_rng(0)
    rank = np.arange(1, V - 2)  # the words of the vocabulary and UNK: Zipf's law as Mandelbrot has it
    frequency = 1 / (rank + 2.5) ** 1.07
    drawn = np.zeros((25_000, MAX_WORDS + 2), np.int32)
    for caption in drawn:
        n = int(np.clip(round(rng.normal(10.2, 1.8)), 1, MAX_WORDS))
        caption[0], caption[n + 1] = 1, 2
        caption[1 : n + 1] = 2 + rng.choice(rank, n, p=frequency / frequency.sum())
    return drawn


@functools.cache
def data() -> dict[str, Array]:
    """A data set as the published solver takes it: the captions, and an image for every five of them."""
    every = captions()
    images = np.arange(len(every)) // 5
    features = np.random.default_rng(0).standard_normal((images[-1] + 1, D), np.float32)
    return {
        "train_captions": every,
        "train_image_idxs": images,
        "train_features": features,
        "train_urls": np.full(len(features), ""),
    }


@functools.cache
def batches(N: int) -> list[tuple[Array, Array]]:
    """Features (N,512) float32 and captions (N,17) of the first minibatches that the solver draws."""
    np.random.seed(SEED)
    drawn = [sample_coco_minibatch(data(), N) for _ in range(BATCHES)]
    return [(features, captions) for captions, features, _ in drawn]


def lengths(N: int) -> Array:
    """How many steps of each caption of the first minibatch are live."""
    return np.count_nonzero(batches(N)[0][1][:, 1:], axis=1)


def model(cell: str) -> CaptioningRNN:
    """A new model at the published sizes, float32, always the same."""
    np.random.seed(SEED)
    return CaptioningRNN(VOCABULARY, D, E, H, cell)


def layer(N: int) -> tuple[Array, Array, tuple[Array, Array, Array], Array]:
    """x (N,T,E), h0 (N,H), (Wx, Wh, b) and dh (N,T,H) for the LSTM layer alone, float32."""
    rng = np.random.default_rng(0)
    params = model("lstm").params
    x, h0, dh = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((N, STEPS, E), (N, H), (N, STEPS, H))
    )
    dh *= np.arange(STEPS)[None, :, None] < lengths(N)[:, None, None]  # nothing flows into padding
    return x, h0, (params["Wx"], params["Wh"], params["b"]), dh


def recurrent_product(cell: str, N: int) -> tuple[Array, Array]:
    """h (N,H) and Wh (H,mH), float32: what every step of a layer multiplies."""
    return np.random.default_rng(0).standard_normal((N, H), np.float32), model(cell).params["Wh"]


def summary(outputs: tuple[Array, Array], live: Array | None) -> list[float]:
    """Sums of the outputs h and dx (N,T,...), over live steps only where lengths are given."""
    mask = np.ones(outputs[0].shape[:2]) if live is None else np.arange(STEPS) < live[:, None]
    return [float(np.sum(np.abs(output) * mask[:, :, None])) for output in outputs]
