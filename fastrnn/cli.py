"""The ``fastrnn`` command: every user error is one line and exit code 2."""

import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from pydantic import ValidationError

import fastrnn
from fastrnn import backend, check, runs, training
from fastrnn.data import download_data, make_coco_size, make_shapes, prepare_data
from fastrnn.data.coco import CaptionData, Split, decode_captions, open_data
from fastrnn.data.download import URL
from fastrnn.distributed import connect, launched

app = typer.Typer(
    name="fastrnn",
    help="Train and run recurrent image captioners on CPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make and inspect data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
cache_app = typer.Typer(help="What Numba has compiled and kept.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

_IN_GRID = 48  # pictures that fastrnn sample draws at most
_DEFAULTS = training.Settings(data="")

Backend = Annotated[
    Literal["cython", "numba", "numpy"] | None,
    typer.Option(help="Kernels to compute with; by default the fastest installed."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads to compute with; by default one per available core.")
]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = list(sys.argv[1:] if args is None else args)
    if args is None:  # what is half done is cleared away
        signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what overflows is told in words
            code = app(given or ["--help"], standalone_mode=False) or 0
            if code == 128 + signal.SIGINT:
                print("fastrnn: interrupted", file=sys.stderr)
            return code
    except typer.TyperException as error:
        message = error.format_message()
        if isinstance(error.__cause__, ValidationError):  # Typer's checks, which may not tell what was given
            value = repr(error.__cause__.errors()[0]["input"])
            message = message.replace("Value error, ", "").removesuffix(".")
            message += "" if value in message else f", got {value}"
    except (OSError, ValueError, IndexError, ImportError, MemoryError, RuntimeError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {error.strerror}"
    except training.Stopped as stopped:
        print(f"fastrnn: {stopped}", file=sys.stderr)
        return 128 + stopped.signum
    if message:  # none after a help page
        print("fastrnn: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _version(asked: bool) -> None:
    if asked:
        print(fastrnn.__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Let a TOML file's settings take the place of the options' defaults."""
    if path is None:
        return None
    settings = training.read_config(path)
    options = {name.replace("-", "_"): value for name, value in settings.items()}
    if len(options) < len(settings):
        raise typer.BadParameter(f"{path}: has a setting twice, with - and with _")
    for name, value in settings.items():
        if isinstance(value, list | dict):
            raise typer.BadParameter(f"{path}: {name}: expected one value, got {value!r}")
    parameters = {str(parameter.name): parameter for parameter in context.command.params}
    known = parameters.keys() - {"config", "resume"}
    if unknown := options.keys() - known:
        raise typer.BadParameter(
            f"{path}: unknown settings {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}"
        )
    for name, value in options.items():
        if isinstance(value, bool) != (getattr(parameters[name], "is_flag", False)):
            expected = "a number or a text" if isinstance(value, bool) else "true or false"
            raise typer.BadParameter(f"{path}: {name}: expected {expected}, got {value!r}")
    context.default_map = options
    return path


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(help="Data directory: of 'fastrnn data', or with the files of the exercises."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory, a new one; by default runs/DATA-CELL-DATE-TIME.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out where it stopped, or begin it if it is not there yet. Other "
            "options take effect from there on; cell, sizes, data, rule and seed stay.",
        ),
    ] = False,
    cell: Annotated[Literal["rnn", "lstm"], typer.Option(help="Recurrent cell.")] = "lstm",
    hidden: Annotated[int, typer.Option(min=1, help="Hidden units.")] = _DEFAULTS.hidden,
    wordvec: Annotated[int, typer.Option(min=1, help="Numbers per word vector.")] = _DEFAULTS.wordvec,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Captions per iteration, of all ranks together.")
    ] = _DEFAULTS.batch_size,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = _DEFAULTS.epochs,
    lr: Annotated[float, typer.Option(min=0.0, help="Learning rate.")] = _DEFAULTS.lr,
    lr_decay: Annotated[
        float, typer.Option(min=0.0, help="Factor on the learning rate after each epoch.")
    ] = _DEFAULTS.lr_decay,
    schedule: Annotated[
        Literal["constant", "cosine"],
        typer.Option(help="How the learning rate goes on after the warm-up: as it is, or down to 0."),
    ] = "constant",
    warmup: Annotated[
        int, typer.Option(min=0, help="Iterations in which the learning rate rises, in equal steps.")
    ] = _DEFAULTS.warmup,
    clip_norm: Annotated[
        float | None, typer.Option(help="Scale gradients down to this norm, over all parameters together.")
    ] = None,
    dropout: Annotated[
        float, typer.Option(min=0.0, help="Probability to drop each number on its way to the scores.")
    ] = _DEFAULTS.dropout,
    dropout_words: Annotated[
        float, typer.Option(min=0.0, help="Probability to drop each number of a word vector.")
    ] = _DEFAULTS.dropout_words,
    update_rule: Annotated[
        Literal["sgd", "sgd_momentum", "rmsprop", "adam"], typer.Option(help="Optimiser.")
    ] = "adam",
    max_train: Annotated[
        int | None, typer.Option(min=1, help="Train on this many captions, chosen by the seed.")
    ] = None,
    bucket: Annotated[
        bool, typer.Option("--bucket", help="Minibatches of captions of about one length.")
    ] = _DEFAULTS.bucket,
    patience: Annotated[
        int | None, typer.Option(min=1, help="End after so many epochs without a better val score.")
    ] = None,
    score: Annotated[
        Literal["loss", "bleu"], typer.Option(help="What says which epoch is best: val loss or val BLEU-4.")
    ] = "loss",
    checkpoint_every: Annotated[
        int, typer.Option(min=1, help="Iterations between checkpoints; each epoch's end has one too.")
    ] = _DEFAULTS.checkpoint_every,
    keep: Annotated[int, typer.Option(min=1, help="How many checkpoints to keep.")] = _DEFAULTS.keep,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write events for TensorBoard into the run directory too.")
    ] = _DEFAULTS.tensorboard,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the parameters and of the order of captions.")
    ] = _DEFAULTS.seed,
    backend: Backend = None,
    threads: Threads = None,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed", help="Train with all MPI ranks; under mpiexec and the like that needs no saying."
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            callback=_read_config,
            is_eager=True,
            help="TOML file of these options, such as a run's config.toml; the command line has precedence.",
        ),
    ] = None,
) -> None:
    """Train a captioner; keep settings, metrics, checkpoints and the best and last model in a directory."""
    said = (field.name for field in fields(training.Settings) if _is_said(context, field.name))
    given = {name: context.params[name] for name in said}
    if data is None and not resume:
        raise ValueError("Missing option '--data'")
    if data is not None:
        given["data"] = str(data)
    if out is not None:
        run = out
    elif data is None or resume:
        raise ValueError("Missing option '--out': the run to go on with")
    else:
        run = Path("runs") / f"{data.resolve().name}-{cell}-{time.strftime('%Y%m%d-%H%M%S')}"
    ranks = connect() if distributed or launched() else None
    with nullcontext() if ranks is None else ranks.together():
        scored_by, best = training.train(run, resume=resume, ranks=ranks, **given)
        if ranks is None or ranks.rank == 0:
            with _pictures_may_lack(runs.LOSS_PICTURE):
                runs.draw_losses(run)
            told = f"val BLEU-4 {best:.3f}" if scored_by == "bleu" else f"val loss {best:.3f} per caption"
            print(f"best {told}; the run is in {run}: fastrnn evaluate {run}")


def _is_said(context: typer.Context, name: str) -> bool:
    """Whether an option has its value from the command line or a file."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


@contextmanager
def _pictures_may_lack(name: str) -> Iterator[None]:
    """Where a library to draw with is missing, say so and go on."""
    try:
        yield
    except ImportError as error:
        print(f"fastrnn: no {name}: {error}", file=sys.stderr)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    split: Annotated[Literal["train", "val"], typer.Option(help="Which images to caption.")] = "val",
    data: Annotated[
        Path | None, typer.Option(help="Data directory; by default the one that the run was trained on.")
    ] = None,
    backend: Backend = None,
    threads: Threads = None,
) -> None:
    """Caption a split's images with a run's best model and compare with all references by BLEU."""
    _compute_with(backend, threads)
    result = runs.evaluate(run, split, data)
    print(f"{result['images']} {split} images of {result['data']}")
    print(f"protocol: {result['protocol']}")
    for n in (1, 2, 3, 4):
        print(f"BLEU-{n}  {result[f'bleu_{n}']:.4f}")
    print(
        f"brevity penalty {result['brevity_penalty']:.4f} ({result['output_words']} words against "
        f"{result['reference_words']})"
    )
    print(f"written to {run / f'evaluation-{split}.json'}")


def _compute_with(backend: str | None, threads: int | None) -> None:
    if backend is not None:
        fastrnn.use_backend(backend)
    if threads is not None:
        fastrnn.set_num_threads(threads)


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Numbers or names of images in the split, or, for a model of the embedded data set, picture "
            "files; by default some of the split."
        ),
    ] = None,
    split: Annotated[Literal["train", "val"], typer.Option(help="Where to choose images from.")] = "val",
    count: Annotated[
        int, typer.Option(min=1, help=f"How many images, where none are named; {_IN_GRID} are drawn at most.")
    ] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice; another one, other images.")] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Data directory; by default the one that the run was trained on.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="PNG file for the pictures; by default captions.png in the run.")
    ] = None,
    backend: Backend = None,
    threads: Threads = None,
) -> None:
    """Caption some images with a run's best model; draw the pictures with their captions in a grid."""
    _compute_with(backend, threads)
    if out is not None and not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such directory")
    if out is not None and out.is_dir():
        raise IsADirectoryError(f"{out}: is a directory, expected the name of a PNG file")
    if out is not None and out.suffix.lower() != ".png":
        raise ValueError(f"out: expected a name that ends in .png, got {str(out)!r}")
    samples = runs.sample(run, images or (), split=split, count=count, seed=seed, data=data)
    for image, _, caption, true_caption in samples:
        print(f"{image}: {caption}")
        if true_caption:
            print(f"    true: {true_caption}")
    path = out or run / runs.CAPTIONS_PICTURE
    shown = samples[:_IN_GRID]
    with _pictures_may_lack(runs.CAPTIONS_PICTURE) if out is None else nullcontext():
        missing = runs.draw_captions(path, f"Captions by {run.resolve().name}", shown)
        if missing:
            print(
                f"{missing} of {len(shown)} pictures could not be reached or read; they are grey in the grid"
            )
        print(f"{'drawn' if shown == samples else f'the first {len(shown)} are drawn'} in {path}")


@app.command()
def info() -> None:
    """Show what computes: versions, backend, threads, BLAS."""
    backend.show_config()


@app.command()
def bench() -> None:
    """Race training and captions against PyTorch, JAX and plain NumPy, whoever is installed: a minute."""
    from fastrnn.bench import report

    try:
        for line in report.short():
            print(line, flush=True)
    except RuntimeError as error:
        print(f"fastrnn: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


@cache_app.command("clear")
def clear_cache() -> None:
    """Remove the kernels that Numba has compiled and kept."""
    count, where = backend.clear_cache()
    print(f"removed {count} compiled functions from {where}" if count else f"nothing is kept in {where}")


@app.command("check")
def check_kernels(
    backend: Annotated[
        Literal["cython", "numba", "numpy"] | None, typer.Option(help="Check this one only; by default all.")
    ] = None,
) -> None:
    """Compare with published values, and gradients with central differences, on every backend, in float64."""
    missed = 0
    for name in [backend] if backend else fastrnn.available_backends():
        with fastrnn.use_backend(name):
            print(f"backend {name}\n")
            print(f"{'':<27} {'published':>14} {'fastrnn':>14} {'error':>8} {'at most':>8}")
            for value in check.values():
                print(f"{value.name:<27} {value.published:>14.10f} {value.ours:>14.10f} {_verdict(value)}")
                missed += not value.holds
            print(f"\n{'gradient of':<27} {'with respect to':<29} {'error':>8} {'at most':>8}")
            for gradient in check.gradients():
                print(f"{gradient.name:<27} {gradient.of:<29} {_verdict(gradient)}")
                missed += not gradient.holds
            print()
    print(f"{missed} checks missed" if missed else "every check holds")
    if missed:
        raise typer.Exit(1)


def _verdict(compared: check.Value | check.Gradient) -> str:
    return f"{compared.error:>8.1e} {compared.bound:>8.0e} {'ok' if compared.holds else 'MISSED'}"


@data_app.command()
def prepare(
    out: Annotated[Path, typer.Argument(help="New data directory.")],
    train_captions: Annotated[Path, typer.Option(help="COCO-format JSON of the train captions.")],
    train_features: Annotated[
        Path, typer.Option(help="HDF5 (image_ids, features) or npy file (ids in NAME_image_ids.npy).")
    ],
    val_captions: Annotated[Path, typer.Option(help="COCO-format JSON of the val captions.")],
    val_features: Annotated[Path, typer.Option(help="The same for val.")],
    min_count: Annotated[
        int | None,
        typer.Option(
            help="Vocabulary: the words that occur at least this often in train; 5 if nothing else is said."
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(help="Vocabulary: the most frequent words, this many entries with the 4 special ones."),
    ] = None,
    vocab: Annotated[
        Path | None, typer.Option(help="Vocabulary: that of a JSON file such as coco2014_vocab.json.")
    ] = None,
    pca: Annotated[
        int | None, typer.Option(help="Project the features onto this many components, fitted on train.")
    ] = None,
    allow_unmatched: Annotated[
        bool, typer.Option(help="Leave out images without features, and features without captions.")
    ] = False,
) -> None:
    """Turn COCO-format captions and image features into a data set in the published layout."""
    prepared = prepare_data(
        out,
        train_captions,
        train_features,
        val_captions,
        val_features,
        min_count=min_count,
        vocab_size=vocab_size,
        vocab=vocab,
        pca=pca,
        allow_unmatched=allow_unmatched,
        progress=True,
    )
    for split, result in prepared.items():
        every = result.captions + result.left_out
        print(
            f"{split}: {result.images} images, {result.captions} captions, "
            f"{result.left_out} left out ({result.left_out / every:.1%}), {result.unknown:.1%} of words <UNK>"
        )
    print(f"the data set is in {out}: fastrnn train --data {out}")


@data_app.command("shapes")
def data_shapes(
    out: Annotated[Path, typer.Argument(help="New data directory.")],
    train: Annotated[int, typer.Option(min=1, max=1_000_000, help="Train pictures.")] = 5000,
    val: Annotated[int, typer.Option(min=1, max=1_000_000, help="Val pictures.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes; one seed, one data set.")] = 0,
) -> None:
    """Draw the embedded data set: pictures of coloured shapes, five captions each; nothing to download."""
    prepared = make_shapes(out, train=train, val=val, seed=seed, progress=True)
    for split, result in prepared.items():
        print(f"{split}: {result.images} pictures, {result.captions} captions")
    print(f"the data set is in {out}: fastrnn train --data {out}")


@data_app.command("download")
def data_download(
    out: Annotated[Path, typer.Argument(help="New data directory.")],
    url: Annotated[
        list[str] | None,
        typer.Option(help=f"Where the archive is, instead of {URL}; several are tried in turn."),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="Checksum of the archive, 64 digits; another archive is refused.")
    ] = None,
) -> None:
    """Fetch the archive that came with the exercises (over a gigabyte), and unpack its data set."""
    for difference in download_data(out, url or (URL,), sha256=sha256, progress=True):
        print(f"note: {difference}")
    print(f"the data set is in {out}: fastrnn train --data {out}")


@data_app.command("coco-size")
def data_coco_size(
    out: Annotated[Path, typer.Argument(help="New data directory.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Features 4,096 wide, as before a PCA (2 GB), instead of 512.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed; one seed, one data set.")] = 0,
) -> None:
    """Write a data set with the sizes of the published one, of made-up scenes, to try long runs on."""
    for split, (images, captions) in make_coco_size(out, raw=raw, seed=seed, progress=True).items():
        print(f"{split}: {images} images, {captions} captions")
    print(f"the data set is in {out}: fastrnn train --data {out}")


@data_app.command("info")
def data_info(directory: Annotated[Path, typer.Argument(help="Data directory.")]) -> None:
    """Describe a data set: splits, shapes, lengths, unknown words, examples."""
    data = open_data(directory)
    print(f"vocabulary  {len(data.idx_to_word)} words, {' '.join(data.idx_to_word[4:14])} ...")
    print(f"features    {data.input_dim} wide{', a PCA' if data.pca else ''}")
    for split in (data.train, data.val):
        print()
        _describe(data, split)


def _describe(data: CaptionData, split: Split) -> None:
    null, start, end, unknown = (data.word_to_idx[w] for w in ("<NULL>", "<START>", "<END>", "<UNK>"))
    is_word = ~np.isin(split.captions, (null, start, end))
    lengths = is_word.sum(axis=1)
    rate = np.sum(split.captions == unknown) / max(is_word.sum(), 1)
    print(f"{split.name:<11} {len(split)} captions {split.captions.shape} {split.captions.dtype}")
    print(f"images      {len(split.features)}, features {split.features.shape} {split.features.dtype}")
    print(f"words       {lengths.min()} to {lengths.max()}, {lengths.mean():.1f} on average")
    print(f"unknown     {rate:.1%} of the words are <UNK>")
    for i in range(min(3, len(split))):
        print(f"example     {split.urls[split.image_idxs[i]]}")
        print(f"            {decode_captions(split.captions[i], data.idx_to_word)}")
