"""Looking at a training run: what the command line does with its directory, callable from Python.

To what training keeps there (:mod:`fastrnn.training`) come ``loss.png``, after an evaluation
``evaluation-SPLIT.json``, and after sampling ``captions.png``.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrnn import files
from fastrnn.arrays import Array
from fastrnn.captioning import CaptioningRNN
from fastrnn.data import shapes
from fastrnn.data.coco import MAX_WORDS, CaptionData, Split, locate, open_data
from fastrnn.data.pca import PCA
from fastrnn.evaluation import bleu_of, captions_of
from fastrnn.files import StrPath
from fastrnn.images import fetch_image, placeholder_image, plot_captions, plot_losses
from fastrnn.metrics import BLEU_PROTOCOL, Bleu, load_bleu
from fastrnn.training import BEST, CONFIG, METRICS, read_config

LOSS_PICTURE, CAPTIONS_PICTURE = "loss.png", "captions.png"


def evaluate(run: StrPath, split: str = "val", data: StrPath | None = None) -> dict[str, Any]:
    """Caption every image of a split with a run's best model, and compare with all references by BLEU.

    ``data`` is the data directory, by default the one that the run was trained on. Writes
    ``evaluation-SPLIT.json`` into the run and returns what it holds: protocol, figures and captions.
    Raises ``FileNotFoundError`` for what is missing, ``ValueError`` where model and data do not fit.
    """
    load_bleu()  # rather now than after all the captions
    run = Path(run)
    model, opened = _open(run, data)
    of_split, references = opened.split(split), opened.references(split)
    outputs = captions_of(model, of_split.features, opened.idx_to_word, progress=True)
    bleu = bleu_of(outputs, references)
    kind = "raw references"
    if not opened.has_raw_captions:
        kind = f"references of at most {MAX_WORDS} words, rare ones <UNK>, as the data set has them"
    result = {
        "protocol": f"{BLEU_PROTOCOL}; {kind}; greedy decoding",
        "data": str(opened.directory),
        "split": split,
        "images": len(outputs),
        **_figures(bleu),
        "captions": [
            {"image": url, "caption": " ".join(output)}
            for url, output in zip(of_split.urls, outputs, strict=True)
        ],
    }
    files.write_json(run / f"evaluation-{split}.json", result)
    return result


class Sample(NamedTuple):
    """What a model says of an image."""

    image: str  # its name in the data set, or the path that was given
    source: str  # the path or URL of the picture, empty where there is none
    caption: str
    true_caption: str  # empty for a picture of the user's own


def sample(
    run: StrPath,
    images: Sequence[int | str] = (),
    *,
    split: str = "val",
    count: int = 12,
    seed: int = 0,
    data: StrPath | None = None,
) -> list[Sample]:
    """Caption chosen images with a run's best model.

    ``images`` are numbers within a split or names as the data set has them; for the embedded data set they
    may be picture files too. Without any, ``count`` images of the split are drawn by ``seed``. ``data`` is
    the data directory, by default the one that the run was trained on.

    Raises ``ValueError`` for an image that is none of these, a count below 1 or a negative seed, ``OSError``
    for a file that is no picture, ``ImportError`` where such a file needs Pillow and it is missing, and what
    :func:`evaluate` raises but for references.
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    model, opened = _open(Path(run), data)
    of_split = opened.split(split)
    if images:
        chosen = [_find(image, opened, of_split) for image in images]
    else:
        chosen = sorted(np.random.default_rng(seed).permutation(len(of_split.features))[:count].tolist())
    numbers = [image for image in chosen if isinstance(image, int)]
    of_numbers = dict(zip(numbers, opened.true_captions(split, numbers), strict=True))
    features = [
        of_split.features[image] if isinstance(image, int) else shapes.features_of_file(image)
        for image in chosen
    ]
    samples = []
    for image, caption in zip(
        chosen, captions_of(model, np.stack(features), opened.idx_to_word), strict=True
    ):
        if isinstance(image, int):
            name = of_split.urls[image]
            source = locate(opened.directory, name)
            if source == name and "://" not in name:
                source = ""  # a file that is not in the data directory: one of this name elsewhere is another
            true_caption = of_numbers[image]
        else:
            name, source, true_caption = image, image, ""
        samples.append(Sample(name or str(image), source, " ".join(caption), true_caption))
    return samples


def _find(image: int | str, data: CaptionData, split: Split) -> int | str:
    """The number of an image in a split, or the path of a picture whose features can be computed."""
    given = str(image)
    if given in split.urls:
        return split.urls.index(given)
    if given.isdecimal() and len(given) < 10 and int(given) < len(split.features):
        return int(given)
    if os.path.isfile(given):
        if (data.directory / shapes.SCENES).exists() and data.input_dim == shapes.WIDTH:
            return given
        raise ValueError(
            f"images: {given} is a new picture: features of it can be had for the embedded data set only; "
            f"{data.directory} is another"
        )
    raise ValueError(
        f"images: expected a number below {len(split.features)}, a name in the {split.name} split such as "
        f"{split.urls[0]!r}, or a picture file, got {given!r}"
    )


def draw_losses(run: StrPath) -> Path:
    """Draw the losses in a run's metrics as ``loss.png`` and return its path.

    Raises ``FileNotFoundError`` without metrics, ``ValueError`` for damaged or empty ones, ``ImportError``
    without matplotlib (extra ``plot``).
    """
    run = Path(run)
    try:
        records = [json.loads(line) for line in files.read_text(run / METRICS).splitlines()]
        losses = [record["loss"] for record in records if "loss" in record]
        epochs = [(record["iteration"], record["val_loss"]) for record in records if "epoch" in record]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{run / METRICS}: not the metrics of a run: {error!r}") from error
    plot_losses(run / LOSS_PICTURE, run.resolve().name, losses, epochs)
    return run / LOSS_PICTURE


def draw_captions(path: StrPath, title: str, samples: Sequence[Sample]) -> int:
    """Draw the samples' pictures with their captions in a grid, a PNG file.

    Pictures that cannot be reached within ten seconds, or read, become grey; returns how many these are.
    Raises ``ValueError`` without any sample, ``ImportError`` without matplotlib and Pillow (extra ``plot``).
    """
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(_picture, [sample.source for sample in samples]))
    plot_captions(
        path,
        title,
        [placeholder_image() if picture is None else picture for picture in pictures],
        [sample.caption for sample in samples],
        [sample.true_caption for sample in samples],
    )
    return sum(picture is None for picture in pictures)


def _picture(source: str) -> Array | None:
    """A picture at a URL or in a file, with few enough pixels to keep many; None where there is none."""
    try:
        picture = fetch_image(source)
    except OSError:
        return None
    every = -(-max(picture.shape[:2]) // 600)
    return picture[::every, ::every]


def _figures(bleu: Bleu) -> dict[str, float]:
    return {f"bleu_{n}": round(value, 4) for n, value in enumerate(bleu.bleu, 1)} | {
        "brevity_penalty": round(bleu.brevity_penalty, 4),
        "output_words": bleu.output_words,
        "reference_words": bleu.reference_words,
    }


def _open(run: Path, data: StrPath | None) -> tuple[CaptioningRNN, CaptionData]:
    """A run's best model, and the data directory given or else trained on; they fit each other."""
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: no such run directory")
    if (run / METRICS).exists() and not (run / BEST).exists():
        raise FileNotFoundError(
            f"{run / BEST}: no such file: the training ended before its first epoch did, or it was removed; "
            f"a training goes on by fastrnn train --out {run} --resume"
        )
    model = CaptioningRNN.load(run / BEST)
    opened = open_data(data if data is not None else _trained_on(run))
    _check_fit(run / BEST, model, opened)
    return model, opened


def _trained_on(run: Path) -> str:
    data = read_config(run / CONFIG).get("data")
    if not isinstance(data, str):
        raise ValueError(f"{run / CONFIG}: expected the data directory as data = '...', got {data!r}")
    return data


def _check_fit(path: Path, model: CaptioningRNN, data: CaptionData) -> None:
    if model.word_to_idx != data.word_to_idx:
        raise ValueError(f"{path}: the model's vocabulary is not that of {data.directory}")
    width = len(model.params["W_proj"])
    if width != data.input_dim:
        raise ValueError(
            f"{path}: the model takes features {width} wide, those of {data.directory} are {data.input_dim}"
        )
    if not _same(model.feature_pca, data.pca):
        raise ValueError(
            f"{path}: the model's features were made by another PCA than those of {data.directory}"
        )


def _same(a: PCA | None, b: PCA | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.components.shape == b.components.shape and np.allclose(a.components, b.components, atol=1e-4)
