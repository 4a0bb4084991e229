"""A training run and the directory that keeps it: what the command line does, callable from Python.

A run directory holds ``config.toml`` (every setting, to be passed to ``--config`` again), ``metrics.jsonl``
(one line per iteration and one per epoch), ``best.safetensors`` (the model of the epoch with the lowest val
loss), ``last.safetensors`` and ``loss.png``; after an evaluation ``evaluation-SPLIT.json``; after sampling
``captions.png``.
"""

import json
import os
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import tomli_w
from tqdm.auto import tqdm

from fastrnn import backend, files
from fastrnn.arrays import Array
from fastrnn.captioning import CaptioningRNN
from fastrnn.data import shapes
from fastrnn.data.coco import CaptionData, Split, locate, open_data
from fastrnn.data.pca import PCA
from fastrnn.data.prepare import words
from fastrnn.files import StrPath
from fastrnn.images import fetch_image, placeholder_image, plot_captions, plot_losses
from fastrnn.metrics import BLEU_PROTOCOL, Bleu, corpus_bleu, load_bleu
from fastrnn.solver import CaptioningSolver

CONFIG, METRICS, BEST, LAST = "config.toml", "metrics.jsonl", "best.safetensors", "last.safetensors"
LOSS_PICTURE, CAPTIONS_PICTURE = "loss.png", "captions.png"
BATCH = 250  # captions or images at a time where nothing is learnt


@dataclass(frozen=True)
class Settings:
    """What decides a run, with the command line's defaults."""

    data: str  # the data directory
    cell: str = "lstm"
    hidden: int = 512
    wordvec: int = 256
    batch_size: int = 100
    epochs: int = 10
    lr: float = 1e-3
    lr_decay: float = 1.0
    update_rule: str = "adam"
    max_train: int | None = None
    seed: int = 0
    backend: str | None = None  # None: the automatic choice
    threads: int | None = None


def train(settings: Settings, run: StrPath) -> float:
    """Train a captioner and keep it in the new directory ``run``. Returns the lowest val loss per caption.

    Sets the process's backend and threads if asked to, and seeds NumPy's global generator.
    Raises ``FileExistsError`` where ``run`` holds something, and what opening the data and the solver raise.
    """
    if settings.backend is not None:
        backend.use_backend(settings.backend)
    if settings.threads is not None:
        backend.set_num_threads(settings.threads)
    settings = replace(
        settings,
        data=str(Path(settings.data).resolve()),
        backend=backend.current_backend(),
        threads=backend.get_num_threads(),
    )
    for name in ("lr", "lr_decay"):
        if not np.isfinite(getattr(settings, name)):
            raise ValueError(f"{name}: expected a finite number, got {getattr(settings, name)}")
    data = open_data(settings.data)
    data.train.check_features()
    data.val.check_features()
    rng = np.random.default_rng(settings.seed)
    if settings.max_train is not None:
        data = replace(data, train=data.train.subset(settings.max_train, rng))
    np.random.seed(settings.seed)
    model = CaptioningRNN(
        data.word_to_idx, data.input_dim, settings.wordvec, settings.hidden, settings.cell, np.float32
    )
    model.feature_pca = data.pca
    solver = CaptioningSolver(
        model,
        data,
        update_rule=settings.update_rule,
        optim_config={"learning_rate": settings.lr},
        lr_decay=settings.lr_decay,
        batch_size=settings.batch_size,
        num_epochs=settings.epochs,
        verbose=False,
        rng=rng,
    )
    config = tomli_w.dumps({name: value for name, value in asdict(settings).items() if value is not None})
    files.check_new_directory(run)
    run = Path(run)
    run.mkdir(parents=True, exist_ok=True)
    files.write_text(run / CONFIG, config)
    with (
        open(run / METRICS, "w", encoding="utf-8", buffering=1) as metrics,
        tqdm(total=settings.epochs * solver.iterations_per_epoch, unit="it", smoothing=0.05) as bar,
    ):
        record = _Record(run, data, metrics, bar)
        solver.on_step, solver.on_epoch = record.step, record.epoch
        solver.train()
    return record.best


class _Record:
    """Watches a solver: progress bar, metrics, models."""

    def __init__(self, run: Path, data: CaptionData, metrics: TextIO, bar: Any) -> None:
        self.run, self.data, self.metrics, self.bar = run, data, metrics, bar
        self.best = float("inf")
        self.seconds, self.tokens = 0.0, 0  # of training, without validation
        self.started = time.perf_counter()
        self.sizes: list[int] = []  # of this epoch's minibatches

    def step(self, solver: CaptioningSolver, captions: Array) -> None:
        """After an iteration."""
        now = time.perf_counter()
        self.seconds, self.started = self.seconds + now - self.started, now
        self.tokens += int(np.count_nonzero(captions[:, 1:] != self.data.word_to_idx["<NULL>"]))
        self.sizes.append(len(captions))
        iteration, loss = len(solver.loss_history), solver.loss_history[-1]
        self._check(loss, "loss", iteration)
        self._write(iteration=iteration, loss=loss)
        rate = self.tokens / self.seconds
        self.bar.set_postfix_str(f"loss {loss:.2f}, {rate:,.0f} tokens/s", refresh=False)
        self.bar.update()

    def epoch(self, solver: CaptioningSolver) -> None:
        """After an epoch: validate, and keep the model."""
        val_loss = mean_loss(solver.model, self.data.val)
        self._check(val_loss, "val loss", len(solver.loss_history))
        train_loss = float(np.average(solver.loss_history[-len(self.sizes) :], weights=self.sizes))
        self.sizes.clear()
        self._write(
            epoch=solver.epoch,
            iteration=len(solver.loss_history),
            train_loss=train_loss,
            val_loss=val_loss,
            tokens_per_second=round(self.tokens / self.seconds),
            seconds=round(self.seconds, 3),
        )
        solver.model.save(self.run / LAST)
        mark = ""
        if val_loss < self.best:
            self.best, mark = val_loss, ", the best so far"
            solver.model.save(self.run / BEST)
        (caption,) = _captions(solver.model, self.data.val.features[:1], self.data.idx_to_word)
        self.bar.write(
            f"epoch {solver.epoch}: train loss {train_loss:.3f}, val loss {val_loss:.3f} per caption{mark}\n"
            f"    it says of {self.data.val.urls[0]}: {' '.join(caption)}"
        )
        self.started = time.perf_counter()

    def _check(self, loss: float, name: str, iteration: int) -> None:
        if not np.isfinite(loss):
            raise ValueError(
                f"{self.run}: the {name} is {loss} at iteration {iteration}: lower the learning rate"
            )

    def _write(self, **values: float) -> None:
        with files.naming(self.run / METRICS):
            self.metrics.write(json.dumps(values, allow_nan=False) + "\n")


def mean_loss(model: CaptioningRNN, split: Split) -> float:
    """The loss per caption over a whole split."""
    total = 0.0
    for features, captions, _ in split.minibatches(BATCH):
        total += model.evaluate_loss(features, captions) * len(captions)
    return total / len(split)


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
    outputs = _captions(model, of_split.features, opened.idx_to_word, progress=True)
    bleu = corpus_bleu(outputs, [[words(text) for text in of_image] for of_image in references])
    result = {
        "protocol": f"{BLEU_PROTOCOL}; greedy decoding",
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
    for image, caption in zip(chosen, _captions(model, np.stack(features), opened.idx_to_word), strict=True):
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


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a TOML file. Raises ``FileNotFoundError``, or ``ValueError`` naming the file."""
    text = files.read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error


def _open(run: Path, data: StrPath | None) -> tuple[CaptioningRNN, CaptionData]:
    """A run's best model, and the data directory given or else trained on; they fit each other."""
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: no such run directory")
    if (run / METRICS).exists() and not (run / BEST).exists():
        raise FileNotFoundError(f"{run / BEST}: no such file: the training ended before its first epoch did")
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


def _captions(
    model: CaptioningRNN, features: Array, idx_to_word: list[str], progress: bool = False
) -> list[list[str]]:
    """The words of a caption for every image, without START, END and NULL."""
    captions = []
    with tqdm(total=len(features), unit="image", desc="captions", disable=not progress) as bar:
        for start in range(0, len(features), BATCH):
            for tokens in model.sample(features[start : start + BATCH]).tolist():
                caption = [idx_to_word[token] for token in tokens]
                ended = caption[: caption.index("<END>")] if "<END>" in caption else caption
                captions.append([word for word in ended if word not in ("<NULL>", "<START>")])
                bar.update()
    return captions
