"""From COCO-format captions and image features to the published layout (``fastrnn.data.coco`` tells it)."""

import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import files
from fastrnn.arrays import Array
from fastrnn.data import coco
from fastrnn.data.pca import PCA
from fastrnn.files import StrPath

SLICE = 1024  # images whose features are in memory at a time; about twice the usual number of components


@dataclass(frozen=True)
class Prepared:
    """What became of one split."""

    images: int
    captions: int  # in the data set
    left_out: int  # longer than 15 words, or without any
    unknown: float  # fraction of the words in the data set that are not in the vocabulary


def words(caption: str) -> list[str]:
    """The words of a caption: runs of a to z after lower-casing."""
    return re.findall(r"[a-z]+", caption.lower())


def prepare_data(
    out: StrPath,
    train_captions: StrPath,
    train_features: StrPath,
    val_captions: StrPath,
    val_features: StrPath,
    *,
    min_count: int | None = None,
    vocab_size: int | None = None,
    vocab: StrPath | None = None,
    pca: int | None = None,
    allow_unmatched: bool = False,
    progress: bool = False,
) -> dict[str, Prepared]:
    """Write a data directory ``out`` in the published layout.

    Captions are COCO-format JSON files. Features are either HDF5 files with ``image_ids`` (n,) and
    ``features`` (n,D), or npy files (n,D) with the ids in ``NAME_image_ids.npy`` beside ``NAME.npy``; they
    are matched with the captions by image id, in any order. Captions of more than 15 words are left out of
    training and kept as references.

    The vocabulary holds the words that stand ``min_count`` times in the training captions (5 by default), or
    the most frequent so that it has ``vocab_size`` entries with the four special tokens, or that of the file
    ``vocab``. ``pca`` projects the features onto that many components fitted on train. ``allow_unmatched``
    leaves out images that have captions but no features, or features but no captions; otherwise they are an
    error. ``progress`` shows bars for what takes long.

    Returns what became of ``"train"`` and ``"val"``. Raises ``FileExistsError`` where ``out`` holds
    something, ``FileNotFoundError`` for a missing input, ``ValueError`` for one that is not as described,
    ``OSError`` where the disk is full; nothing is left behind then.
    """
    _check_options(min_count, vocab_size, vocab, pca)
    sources = {}
    for split, captions, features in (
        ("train", train_captions, train_features),
        ("val", val_captions, val_features),
    ):
        sources[split] = Source.read(Path(captions), Path(features), allow_unmatched)
    if sources["train"].width != sources["val"].width:
        raise ValueError(
            f"{val_features}: features are {sources['val'].width} wide, those of {train_features} "
            f"{sources['train'].width}"
        )
    idx_to_word = _vocabulary(sources["train"], min_count, vocab_size, vocab)
    with files.new_directory(out) as directory:
        return write_data(directory, sources, idx_to_word, pca, progress)


def write_data(
    directory: Path,
    sources: dict[str, "Source"],
    idx_to_word: list[str],
    pca: int | None = None,
    progress: bool = False,
) -> dict[str, Prepared]:
    """Write the published files of the splits ``sources`` ("train" and "val") into an existing directory.

    Other arguments, and what is raised, are those of :func:`prepare_data`.
    """
    projection = None
    if pca is not None:
        projection = _fit(sources["train"], pca, progress)
        projection.save(directory / coco.PROJECTION)
    for split, source in sources.items():
        path = directory / coco.features_file(split, pca is not None)
        _write_features(path, source, projection, progress)
    word_to_idx = {word: i for i, word in enumerate(idx_to_word)}
    prepared = _write_captions(directory / coco.CAPTIONS, sources, word_to_idx)
    files.write_json(directory / coco.VOCABULARY, {"idx_to_word": idx_to_word, "word_to_idx": word_to_idx})
    files.write_json(
        directory / coco.REFERENCES,
        {
            split: {"image_ids": source.image_ids, "captions": source.captions}
            for split, source in sources.items()
        },
    )
    for split, source in sources.items():
        files.write_text(directory / coco.urls_file(split), "".join(f"{url}\n" for url in source.urls))
    return prepared


def _check_options(
    min_count: int | None, vocab_size: int | None, vocab: StrPath | None, pca: int | None
) -> None:
    given = {"min_count": min_count, "vocab_size": vocab_size, "vocab": vocab}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)}: expected one way to choose the vocabulary")
    for name, value, least in (
        ("min_count", min_count, 1),
        ("vocab_size", vocab_size, len(coco.SPECIAL) + 1),
        ("pca", pca, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")


# ---------------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Source:
    """One split's inputs; the images are in the order of the caption file."""

    image_ids: list[int]
    urls: list[str]
    captions: list[list[str]]  # the raw captions of each image
    annotations: list[tuple[int, list[str]]]  # image index and words of each caption, in the file's order
    features_path: Path
    rows: Array  # (feature rows,) the image index of each row of features, -1 for none
    width: int  # D of the features

    @classmethod
    def read(cls, captions_path: Path, features_path: Path, allow_unmatched: bool = False) -> "Source":
        urls, annotations = _read_captions(captions_path)
        with _open_features(features_path) as (ids, features):
            featured, width = ids.tolist(), features.shape[1]
        captioned, with_features = {image_id for image_id, _ in annotations}, set(featured)
        if not allow_unmatched:
            _check_matched(captions_path, features_path, captioned, with_features)
        image_ids = [i for i in urls if i in captioned and i in with_features]
        if not image_ids:
            raise ValueError(f"{captions_path}: no image has both captions and features")
        index = {image_id: i for i, image_id in enumerate(image_ids)}
        captions: list[list[str]] = [[] for _ in image_ids]
        tokenised = []
        for image_id, caption in annotations:
            if image_id in index:
                captions[index[image_id]].append(caption)
                tokenised.append((index[image_id], words(caption)))
        rows = np.array([index.get(image_id, -1) for image_id in featured])
        source = cls(image_ids, [urls[i] for i in image_ids], captions, tokenised, features_path, rows, width)
        if not source.kept():
            raise ValueError(f"{captions_path}: no caption has 1 to {coco.MAX_WORDS} words")
        return source

    def kept(self) -> list[tuple[int, list[str]]]:
        """The annotations that are short enough to train on, and not empty."""
        return [
            (image, caption) for image, caption in self.annotations if 1 <= len(caption) <= coco.MAX_WORDS
        ]

    def features(self, doing: str, progress: bool) -> Iterator[tuple[Array, Array]]:
        """Slices of the features that belong to an image, in the file's order: image indices, float32 rows.

        Raises ``ValueError`` naming the image whose features are not finite.
        """
        from tqdm.auto import tqdm

        with (
            _open_features(self.features_path) as (ids, features),
            tqdm(desc=doing, total=len(ids), unit="image", disable=not progress) as bar,
        ):
            for start in range(0, len(ids), SLICE):
                images = self.rows[start : start + SLICE]
                wanted = images >= 0
                rows = np.asarray(features[start : start + SLICE], np.float32)[wanted]
                finite = np.isfinite(rows).all(axis=1)
                if not finite.all():
                    image_id = ids[start : start + SLICE][wanted][~finite][0]
                    raise ValueError(
                        f"{self.features_path}: the features of image {image_id} have NaN or infinite values"
                    )
                yield images[wanted], rows
                bar.update(len(images))


def _read_captions(path: Path) -> tuple[dict[int, str], list[tuple[int, str]]]:
    """URL or file name by image id, and the captions with their image ids, of a COCO-format file."""
    content = files.read_json(path)
    urls: dict[int, str] = {}
    try:
        for image in content["images"]:
            if image["id"] in urls:
                raise ValueError(f"{path}: image {image['id']} is listed twice")
            url = image.get("coco_url") or image.get("flickr_url") or image.get("file_name") or ""
            urls[image["id"]] = " ".join(str(url).split())
        annotations = [(note["image_id"], note["caption"]) for note in content["annotations"]]
        numbers = [*urls, *(image_id for image_id, _ in annotations)]
        if not all(type(n) is int for n in numbers) or not all(type(text) is str for _, text in annotations):
            raise TypeError
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected COCO captions: images with a number id, annotations with a number image_id "
            "and a text caption"
        ) from error
    strangers = {image_id for image_id, _ in annotations} - urls.keys()
    if strangers:
        raise ValueError(f"{path}: has captions of {_some(strangers)} that its images do not list")
    if not annotations:
        raise ValueError(f"{path}: has no captions")
    return urls, annotations


@contextmanager
def _open_features(path: Path) -> Iterator[tuple[Array, Any]]:
    """Image ids (n,) int64 and features (n,D) that are read where they are sliced."""
    if path.suffix == ".npy":
        features, ids = _load_npy(path), _load_npy(path.with_name(f"{path.stem}_image_ids.npy"))
        yield _checked_features(path, ids, features)
    else:
        with coco.open_h5(path) as file:
            yield _checked_features(path, coco.dataset(file, "image_ids")[()], coco.dataset(file, "features"))


def _load_npy(path: Path) -> Array:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        loaded: Array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not a whole npy file: {error}") from error
    return loaded


def _checked_features(path: Path, ids: Array, features: Any) -> tuple[Array, Any]:
    matrix = features.ndim == 2 and features.shape[1] > 0 and features.dtype.kind in "fiu"
    if not matrix or ids.shape != features.shape[:1] or ids.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: expected features (n,D) of real numbers and image ids (n,) of integers, got "
            f"{features.shape} {features.dtype} and {ids.shape} {ids.dtype}"
        )
    distinct, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{path}: has features of {_some(distinct[counts > 1].tolist())} more than once")
    return ids, features


def _check_matched(captions_path: Path, features_path: Path, captioned: set[int], featured: set[int]) -> None:
    remedy = "; allow unmatched images (--allow-unmatched) to leave them out"
    if missing := captioned - featured:
        raise ValueError(
            f"{features_path}: no features of {_some(missing)} that {captions_path} has captions of{remedy}"
        )
    if missing := featured - captioned:
        raise ValueError(
            f"{captions_path}: no captions of {_some(missing)} that {features_path} has features of{remedy}"
        )


def _some(image_ids: set[int] | list[int]) -> str:
    shown = ", ".join(str(i) for i in sorted(image_ids)[:3])
    more = f" and {len(image_ids) - 3} more" if len(image_ids) > 3 else ""
    return f"image{'s' if len(image_ids) > 1 else ''} {shown}{more}"


# ---------------------------------------------------------------------------------------------------
# Making


def _vocabulary(
    train: Source, min_count: int | None, vocab_size: int | None, vocab: StrPath | None
) -> list[str]:
    """``idx_to_word``; the most frequent word first, equally frequent ones in the order of the alphabet."""
    if vocab is not None:
        return list(coco.read_vocabulary(vocab)["idx_to_word"])
    counts = Counter(word for _, caption in train.kept() for word in caption)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    if vocab_size is not None:
        return [*coco.SPECIAL, *ranked[: vocab_size - len(coco.SPECIAL)]]
    least = 5 if min_count is None else min_count
    return [*coco.SPECIAL, *(word for word in ranked if counts[word] >= least)]


def encode(caption: list[str], word_to_idx: dict[str, int]) -> Array:
    """At most 15 words as tokens (17,) int32: START, the words (UNK for unknown ones), END, NULLs."""
    null, start, end, unknown = (word_to_idx[special] for special in coco.SPECIAL)
    tokens = np.full(coco.MAX_WORDS + 2, null, np.int32)
    tokens[: len(caption) + 2] = [start, *(word_to_idx.get(word, unknown) for word in caption), end]
    return tokens


def _write_captions(
    path: Path, sources: dict[str, Source], word_to_idx: dict[str, int]
) -> dict[str, Prepared]:
    import h5py

    prepared = {}
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for split, source in sources.items():
            kept = source.kept()
            captions = np.stack([encode(caption, word_to_idx) for _, caption in kept])
            file[f"{split}_captions"] = captions
            file[f"{split}_image_idxs"] = np.array([image for image, _ in kept], np.int32)
            word_count = sum(len(caption) for _, caption in kept)
            prepared[split] = Prepared(
                images=len(source.image_ids),
                captions=len(kept),
                left_out=len(source.annotations) - len(kept),
                unknown=float(np.sum(captions == word_to_idx["<UNK>"]) / word_count),
            )
    with files.replacing(path) as beside:
        beside.write_bytes(content.getbuffer())
    return prepared


def _fit(train: Source, K: int, progress: bool) -> PCA:
    """Components of the training features, in slices of at least K images."""
    images, D = len(train.image_ids), train.width
    most = min(images, D)
    if K > most:
        raise ValueError(
            f"pca: expected at most {most} components for {images} train images with features {D} wide, "
            f"got {K}"
        )
    slices = (rows for _, rows in train.features(f"fitting {K} principal components", progress))
    return PCA.fit(_at_least(K, slices), K)


def _at_least(n: int, slices: Iterator[Array]) -> Iterator[Array]:
    """Join slices so that each has n rows or more; there are n rows in all."""
    waiting: list[Array] = []
    ready: Array | None = None
    for rows in slices:
        waiting.append(rows)
        if sum(len(part) for part in waiting) >= n:
            if ready is not None:
                yield ready
            ready, waiting = np.concatenate(waiting), []
    if ready is not None:
        yield np.concatenate([ready, *waiting])


def _write_features(path: Path, source: Source, projection: PCA | None, progress: bool) -> None:
    """The features in the order of the images, float32, contiguous on disk so that readers can map them.

    They come in another order, so HDF5 reserves their place and each row is written where it belongs.
    """
    import h5py

    D = source.width if projection is None else len(projection.components)
    with coco.new_h5(path) as file:
        reserve = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        reserve.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        reserve.set_obj_track_times(False)  # one input, one file
        space = h5py.h5s.create_simple((len(source.image_ids), D))
        offset = h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, reserve).get_offset()
    with files.naming(path.name), open(path, "r+b") as target:
        for images, rows in source.features(f"writing {path.name}", progress):
            features = rows if projection is None else projection.project(rows)
            for image, row in zip(images.tolist(), features.astype("<f4"), strict=True):
                target.seek(offset + image * row.nbytes)
                target.write(row.tobytes())
