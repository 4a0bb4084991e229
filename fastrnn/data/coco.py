"""The published COCO layout on disk, and two ways to read it.

A data directory holds::

    coco2014_captions.h5           train_captions (n,17) int32, train_image_idxs (n,), and the same for val
    train2014_vgg16_fc7_pca.h5     features (images,D) float32; without _pca the raw ones; the same for val
    coco2014_vocab.json            idx_to_word (list), word_to_idx (dict)
    train2014_urls.txt             a URL or file name per image; the same for val

and, where ``fastrnn data prepare`` made it, ``references.json`` (image ids and raw captions of every image)
and ``pca.safetensors`` (the projection of raw features). Tokens 0 to 3 are ``<NULL> <START> <END> <UNK>``; a
caption is START, at most 15 words, END and NULLs.

:func:`load_coco_data` and :func:`sample_coco_minibatch` are the published functions, with their traps: every
feature in memory, draws with replacement from NumPy's global generator. :func:`open_data` is the way for
real work: features stay on disk, epochs are true epochs, and the generator is yours.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from fastrnn import files
from fastrnn.arrays import Array
from fastrnn.data.pca import PCA
from fastrnn.files import StrPath

BASE_DIR = "cs231n/datasets/coco_captioning"
SPECIAL = ("<NULL>", "<START>", "<END>", "<UNK>")
MAX_WORDS = 15
CAPTIONS, VOCABULARY, REFERENCES, PROJECTION = (
    "coco2014_captions.h5",
    "coco2014_vocab.json",
    "references.json",
    "pca.safetensors",
)


def features_file(split: str, pca: bool) -> str:
    """The name of a split's feature file."""
    return f"{split}2014_vgg16_fc7{'_pca' if pca else ''}.h5"


def urls_file(split: str) -> str:
    """The name of a split's list of image URLs."""
    return f"{split}2014_urls.txt"


# ---------------------------------------------------------------------------------------------------
# The published functions


def load_coco_data(
    base_dir: StrPath = BASE_DIR, max_train: int | None = None, pca_features: bool = True
) -> dict[str, Any]:
    """Read a whole data directory into memory.

    ``base_dir`` is by default ``cs231n/datasets/coco_captioning``, in the working directory or else beside
    an imported ``cs231n``. ``max_train`` keeps that many training captions, drawn with replacement by
    ``numpy.random.randint``.

    Returns a dictionary of ``train_captions`` (n,17), ``train_image_idxs`` (n,), ``train_features``
    (images,D), ``train_urls`` (images,), the same for val, ``idx_to_word`` (list) and ``word_to_idx`` (dict).
    URLs that name a picture in the data directory are given as its path.

    Raises ``FileNotFoundError`` for a missing file, ``ValueError`` for one that is not what it should be.
    """
    directory = _real_base_dir() if base_dir == BASE_DIR else Path(base_dir)
    print("base dir ", directory)
    data: dict[str, Any] = {}
    with open_h5(directory / CAPTIONS) as captions:
        for name in captions:
            data[name] = captions[name][()]
    for split in ("train", "val"):
        with open_h5(directory / features_file(split, pca_features)) as features:
            data[f"{split}_features"] = dataset(features, "features")[()]
    data.update(files.read_json(directory / VOCABULARY))
    for split in ("train", "val"):
        urls = _read_lines(directory / urls_file(split))
        data[f"{split}_urls"] = np.asarray([locate(directory, url) for url in urls])
    if max_train is not None:
        kept = np.random.randint(len(data["train_captions"]), size=max_train)
        data["train_captions"] = data["train_captions"][kept]
        data["train_image_idxs"] = data["train_image_idxs"][kept]
    return data


def _real_base_dir() -> Path:
    """The published place of the data: in the working directory, or in the folder of an imported cs231n."""
    places = [Path(BASE_DIR)]
    places += [
        Path(path) / "datasets/coco_captioning" for path in getattr(sys.modules.get("cs231n"), "__path__", ())
    ]
    return next((place for place in places if place.is_dir()), places[0])


def sample_coco_minibatch(
    data: Mapping[str, Any], batch_size: int = 100, split: str = "train"
) -> tuple[Array, Array, Array]:
    """Draw captions (n,17), features (n,D) and URLs (n,) with replacement by ``numpy.random.choice``."""
    chosen = np.random.choice(len(data[f"{split}_captions"]), batch_size)
    images = data[f"{split}_image_idxs"][chosen]
    return data[f"{split}_captions"][chosen], data[f"{split}_features"][images], data[f"{split}_urls"][images]


def decode_captions(captions: Array, idx_to_word: Sequence[str] | Mapping[int, str]) -> str | list[str]:
    """Captions (T,) or (N,T) as one string or a list: NULL is left out, the string ends with ``<END>``."""
    captions = np.asarray(captions)
    decoded = []
    for caption in np.atleast_2d(captions):
        words = []
        for token in caption.tolist():
            word = idx_to_word[int(token)]
            if word != "<NULL>":
                words.append(word)
            if word == "<END>":
                break
        decoded.append(" ".join(words))
    return decoded[0] if captions.ndim == 1 else decoded


def locate(directory: Path, url: str) -> str:
    """The path of a picture that lies in the data directory, else its URL as it is."""
    if "://" in url or os.path.isabs(url) or ".." in Path(url).parts:
        return url
    inside = directory / url
    return str(inside) if os.path.isfile(inside) else url


# ---------------------------------------------------------------------------------------------------
# The native path


@dataclass(frozen=True)
class Split:
    """The captions of one split and the features of its images."""

    name: str
    captions: Array  # (n,17) int32
    image_idxs: Array  # (n,) which row of features belongs to each caption
    features: Any  # (images,D), on disk: a memory map, or ChunkedFeatures
    urls: list[str]  # one per image

    def __len__(self) -> int:
        """The number of captions."""
        return len(self.captions)

    def minibatches(
        self, batch_size: int, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[Array, Array, Array]]:
        """One true epoch: every caption once, shuffled by ``rng``, or in the order given without one.

        Yields features (n,D), captions (n,17) and image indices (n,), n = batch_size but for the last, which
        a thread of its own has read. Raises ``ValueError`` for a batch_size below 1.
        """
        return read_ahead(self.read, self.epoch(batch_size, rng))

    def epoch(
        self, batch_size: int, rng: np.random.Generator | None = None, *, bucket: bool = False
    ) -> list[Array]:
        """Which captions (n,) make each minibatch of a true epoch, shuffled by ``rng`` if there is one.

        ``bucket`` brings captions of about one length together: twenty minibatches' worth of the shuffled
        captions at a time are sorted by length, and the minibatches shuffled again.
        Raises ``ValueError`` for a batch_size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        order = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        if bucket:
            lengths = np.count_nonzero(self.captions, axis=1)  # NULL is 0
            window = np.arange(len(self)) // (20 * batch_size)
            order = order[np.lexsort((lengths[order], window))]
        batches = [order[start : start + batch_size] for start in range(0, len(self), batch_size)]
        if bucket and rng is not None:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def read(self, chosen: Array) -> tuple[Array, Array, Array]:
        """Features (n,D), captions (n,17) and image indices (n,) of chosen captions (n,)."""
        images = self.image_idxs[chosen]
        return np.asarray(self.features[images]), self.captions[chosen], images

    def check_features(self) -> None:
        """Read all features once. Raises ``ValueError`` naming an image whose features are not finite."""
        for start in range(0, len(self.features), 4096):
            finite = np.isfinite(self.features[start : start + 4096]).all(axis=1)
            if not finite.all():
                image = start + int(np.argmin(finite))
                raise ValueError(
                    f"{self.name} features: those of image {image} ({self.urls[image]}) have NaN or infinite "
                    "values"
                )

    def subset(self, n: int, rng: np.random.Generator) -> "Split":
        """The first n captions of a permutation drawn from ``rng``, all of them if there are fewer."""
        kept = rng.permutation(len(self))[:n]
        return replace(self, captions=self.captions[kept], image_idxs=self.image_idxs[kept])


A = TypeVar("A")
R = TypeVar("R")


def read_ahead(read: Callable[[A], R], arguments: Iterable[A], ahead: int = 3) -> Iterator[R]:
    """``map(read, arguments)``, where a thread is that many results ahead of who takes them."""
    rest = iter(arguments)
    with ThreadPoolExecutor(1, "fastrnn reads ahead") as pool:
        waiting = deque(pool.submit(read, argument) for argument in islice(rest, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(read, argument) for argument in islice(rest, 1))
            yield result


@dataclass(frozen=True)
class CaptionData:
    """A data directory, opened by :func:`open_data`."""

    directory: Path
    word_to_idx: dict[str, int]
    idx_to_word: list[str]
    train: Split
    val: Split
    pca: PCA | None  # how raw features became these, where known

    @property
    def input_dim(self) -> int:
        """The width D of the features."""
        return int(self.train.features.shape[1])

    def split(self, name: str) -> Split:
        """The split of that name. Raises ``ValueError`` for another than train and val."""
        splits = {"train": self.train, "val": self.val}
        if name not in splits:
            raise ValueError(f"split: expected 'train' or 'val', got {name!r}")
        return splits[name]

    def true_captions(self, name: str, images: Sequence[int]) -> list[str]:
        """The first caption of each of the images (numbers) of a split, empty where there is none.

        Raises what :meth:`references` raises.
        """
        references = self.references(name)
        return [" ".join(references[image][0].split()) if references[image] else "" for image in images]

    @property
    def has_raw_captions(self) -> bool:
        """Whether the captions are known as they were written, in ``references.json``."""
        return (self.directory / REFERENCES).exists()

    def references(self, name: str) -> list[list[str]]:
        """The captions of every image of a split, in the order of its features.

        They are the raw ones where the directory has them, at least one for each image. Otherwise they are
        what the tokens say: captions of at most 15 words, ``<UNK>`` for words outside the vocabulary, and
        perhaps none of some images. Raises ``ValueError`` for raw captions of other images.
        """
        split, path = self.split(name), self.directory / REFERENCES
        if not self.has_raw_captions:
            decoded: list[list[str]] = [[] for _ in range(len(split.features))]
            captions = decode_captions(split.captions, self.idx_to_word)
            for image, caption in zip(split.image_idxs.tolist(), captions, strict=True):
                decoded[image].append(caption.removeprefix("<START> ").removesuffix(" <END>"))
            return decoded
        references: list[list[str]] = read_references(path)[name]["captions"]
        if len(references) != len(split.features):
            raise ValueError(
                f"{path}: has captions of {len(references)} {name} images, the features are of "
                f"{len(split.features)}"
            )
        return references


def open_data(directory: StrPath) -> CaptionData:
    """Open a data directory without reading its features, the PCA ones where there are both.

    Raises ``FileNotFoundError`` for a missing file, and ``ValueError`` naming the file for one that is
    truncated, empty, or does not fit the others.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    vocabulary = read_vocabulary(directory / VOCABULARY)
    raw_only = not (directory / features_file("train", pca=True)).exists()
    pca_features = not (raw_only and (directory / features_file("train", pca=False)).exists())
    train, val = (_open_split(directory, split, pca_features, vocabulary) for split in ("train", "val"))
    if train.features.shape[1] != val.features.shape[1]:
        raise ValueError(
            f"{directory}: train features are {train.features.shape[1]} wide, val {val.features.shape[1]}"
        )
    has_projection = pca_features and (directory / PROJECTION).exists()
    pca = PCA.load(directory / PROJECTION) if has_projection else None
    return CaptionData(
        directory, vocabulary["word_to_idx"], vocabulary["idx_to_word"], train=train, val=val, pca=pca
    )


def _open_split(directory: Path, name: str, pca: bool, vocabulary: dict[str, Any]) -> Split:
    path = directory / CAPTIONS
    with open_h5(path) as file:
        captions = dataset(file, f"{name}_captions")[()]
        image_idxs = dataset(file, f"{name}_image_idxs")[()]
    features_path = directory / features_file(name, pca)
    features = _open_features(features_path)
    urls = _read_lines(directory / urls_file(name))
    V = len(vocabulary["idx_to_word"])
    integers = captions.dtype.kind in "iu" and image_idxs.dtype.kind in "iu"
    if not integers or captions.ndim != 2 or captions.shape[1] < 2 or image_idxs.shape != captions.shape[:1]:
        raise ValueError(
            f"{path}: expected {name}_captions (n,17) and {name}_image_idxs (n,) of integers, got "
            f"{captions.shape} {captions.dtype} and {image_idxs.shape} {image_idxs.dtype}"
        )
    if len(captions) == 0:
        raise ValueError(f"{path}: the {name} split has no captions")
    if captions.min() < 0 or captions.max() >= V:
        raise ValueError(
            f"{path}: {name}_captions has tokens {captions.min()}..{captions.max()}, "
            f"the vocabulary 0..{V - 1}"
        )
    if image_idxs.min() < 0 or image_idxs.max() >= len(features):
        raise ValueError(
            f"{path}: {name}_image_idxs has {image_idxs.min()}..{image_idxs.max()}, "
            f"{features_path.name} has features of {len(features)} images"
        )
    if len(urls) != len(features):
        raise ValueError(
            f"{directory / urls_file(name)}: has {len(urls)} lines, "
            f"{features_path.name} has features of {len(features)} images"
        )
    return Split(name, captions, image_idxs, features, urls)


def _open_features(path: Path) -> Any:
    """The features (images,D) of a file: mapped from disk where they are contiguous there, else in chunks."""
    with open_h5(path) as file:
        stored = dataset(file, "features")
        if stored.ndim != 2 or stored.dtype.kind != "f":
            raise ValueError(
                f"{path}: expected features (images,D) of floats, got {stored.shape} {stored.dtype}"
            )
        offset, shape, dtype = stored.id.get_offset(), stored.shape, stored.dtype
    if offset is None:  # in chunks, or empty
        return ChunkedFeatures(path, shape, dtype)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape)


@dataclass(frozen=True)
class ChunkedFeatures:
    """Features that lie in chunks, perhaps compressed: what is asked for is read from the file then."""

    path: Path
    shape: tuple[int, int]  # (images,D)
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        """The number of images."""
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Array) -> Array:
        """Rows by number (D,), by slice or by an array of numbers (n,), in any order, repeated or not."""
        with open_h5(self.path) as file:
            stored = dataset(file, "features")
            if isinstance(rows, int | np.integer | slice):
                part: Array = stored[rows]
                return part
            distinct, which = np.unique(rows, return_inverse=True)  # h5py wants them rising, each once
            found: Array = stored[distinct][which]
            return found

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        """All of them."""
        return np.asarray(self[:], dtype)


def read_references(path: Path) -> dict[str, Any]:
    """Image ids and raw captions by split. Raises ``ValueError`` naming the file if it holds none."""
    references = files.read_json(path)
    try:
        for split in ("train", "val"):
            captions = references[split]["captions"]
            texts = all(captions) and all(isinstance(text, str) for of_image in captions for text in of_image)
            if not texts or len(references[split]["image_ids"]) != len(captions):
                raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected image_ids and captions of train and val, of one length, some for every image"
        ) from error
    return dict(references)


def read_vocabulary(path: StrPath) -> dict[str, Any]:
    """``idx_to_word`` (list) and ``word_to_idx`` (dict) of a vocabulary file.

    Raises ``ValueError`` naming the file where the two do not agree or a special token is not in its place.
    """
    vocabulary = files.read_json(path)
    try:
        idx_to_word, word_to_idx = vocabulary["idx_to_word"], vocabulary["word_to_idx"]
        words = isinstance(idx_to_word, list) and all(isinstance(word, str) for word in idx_to_word)
        agree = words and word_to_idx == {word: i for i, word in enumerate(idx_to_word)}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a list idx_to_word and an object word_to_idx") from error
    if not agree or tuple(idx_to_word[: len(SPECIAL)]) != SPECIAL:
        raise ValueError(
            f"{path}: idx_to_word and word_to_idx must agree, be without repetition and begin with "
            f"{' '.join(SPECIAL)}"
        )
    return {"idx_to_word": idx_to_word, "word_to_idx": word_to_idx}


def _read_lines(path: Path) -> list[str]:
    return [line.strip() for line in files.read_text(path).splitlines()]


@contextmanager
def open_h5(path: Path) -> Iterator[Any]:
    """An HDF5 file to read. Raises ``FileNotFoundError``, or ``ValueError`` naming a damaged one."""
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, TypeError, AttributeError) as error:  # h5py raises any of them
        raise ValueError(f"{path}: not a whole HDF5 file: {error}") from error


@contextmanager
def new_h5(path: Path) -> Iterator[Any]:
    """An HDF5 file to write. Raises ``OSError`` naming it where it cannot be written."""
    import h5py

    try:
        with h5py.File(path, "w") as file:
            yield file
    except (OSError, RuntimeError) as error:  # RuntimeError is h5py's where a file cannot be closed
        raise OSError(f"{path.name}: could not be written: {error}") from error


def dataset(file: Any, name: str) -> Any:
    """A data set of an HDF5 file. Raises ``ValueError`` naming the file where it has none such."""
    if not hasattr(file.get(name), "dtype"):
        found = ", ".join(map(str, file)) or "nothing"
        raise ValueError(f"{file.filename}: has no data set {name!r}, only {found}")
    return file[name]
