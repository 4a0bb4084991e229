"""A training run and the directory that keeps it: what ``fastrnn train`` does, callable from Python.

A run directory holds ``config.toml`` (every setting, to be passed to ``--config`` again), ``metrics.jsonl``
(one line per iteration and one per epoch), ``checkpoints`` (to go on from), ``best.safetensors`` (the model
of the epoch with the lowest val loss, or the highest BLEU), ``last.safetensors`` (the newest model) and
``tensorboard`` if asked for.
"""

import fcntl
import json
import os
import signal
import threading
import time
import tomllib
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, TextIO

import numpy as np
import tomli_w
from pydantic import Field, TypeAdapter, ValidationError
from tqdm.auto import tqdm

from fastrnn import backend, files
from fastrnn.arrays import Array
from fastrnn.captioning import CaptioningRNN, Dropout
from fastrnn.checkpoint import State, checkpoint_path, checkpoints, load_checkpoint, save_checkpoint
from fastrnn.data.coco import CaptionData, open_data
from fastrnn.distributed import Ranks
from fastrnn.evaluation import bleu_of, captions_of, mean_loss
from fastrnn.files import StrPath
from fastrnn.metrics import load_bleu
from fastrnn.solver import CaptioningSolver, cosine, warm_up

CONFIG, METRICS, BEST, LAST = "config.toml", "metrics.jsonl", "best.safetensors", "last.safetensors"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"


Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Settings:
    """What decides a run, with the command line's defaults."""

    data: str  # the data directory
    cell: Literal["rnn", "lstm"] = "lstm"
    hidden: Count = 512
    wordvec: Count = 256
    batch_size: Count = 100  # of all ranks together
    epochs: Count = 10
    lr: Rate = 1e-3
    lr_decay: Rate = 1.0  # factor after each epoch
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0  # iterations in which the learning rate rises
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    dropout: Probability = 0.0  # of outputs
    dropout_words: Probability = 0.0
    update_rule: str = "adam"
    max_train: Count | None = None
    bucket: bool = False
    patience: Count | None = None  # epochs without a better val score
    score: Literal["loss", "bleu"] = "loss"
    checkpoint_every: Count = 1000  # iterations
    keep: Count = 2  # checkpoints
    tensorboard: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    backend: str | None = None  # None: the automatic choice
    threads: Count | None = None


# What a run that goes on cannot change: its state is of these, or its minibatches come from them.
_FIXED = ("cell", "hidden", "wordvec", "batch_size", "update_rule", "max_train", "bucket", "seed", "score")


class Stopped(BaseException):
    """A signal ended training, after a checkpoint. Like ``KeyboardInterrupt`` it is no ``Exception``."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def train(
    run: StrPath, *, resume: bool = False, ranks: Ranks | None = None, **given: Any
) -> tuple[str, float]:
    """Train a captioner and keep it in the directory ``run``. Returns the best epoch's kind of score, and it.

    ``given`` are :class:`Settings`. ``run`` must be new or empty. With ``resume`` it may also be a run that
    was stopped: it goes on from its newest checkpoint with its own settings, but for those given, and to the
    last bit as if it had never been stopped, unless a setting is another. With ``ranks`` each of them calls
    this; only rank 0 reads and writes the run.

    Sets the process's backend and threads, by default the machine's cores by the ranks on it, and seeds
    NumPy's global generator. SIGINT, SIGTERM and SIGHUP let it finish the iteration, write a checkpoint and
    raise :class:`Stopped`; a second one does what it did before.

    Raises ``FileExistsError`` where ``run`` holds something and ``resume`` is not given, ``ValueError`` for
    impossible settings, those that this run cannot change, a loss that is not finite, or where another
    process trains in ``run``, and what opening the data and the solver raise.
    """
    run, first = Path(run), ranks is None or ranks.rank == 0
    with ExitStack() as stack:
        stored, saved = None, None
        if first and resume and (run / CONFIG).exists():
            stack.enter_context(_alone_in(run))
            stored, saved = _read(run)
        if ranks is not None:
            stored, saved = ranks.from_first((stored, saved))
        if stored is None and "data" not in given:
            raise ValueError(f"data: expected a data directory: {run} is no run to go on with")
        settings = _checked(given) if stored is None else _changed(stored, given)
        settings = _resolved(settings, given, ranks)
        data, rng = _data(settings, ranks)
        solver = _solver(settings, data, rng, ranks)
        record = _Record(run, settings, data, solver, saved)
        if first:
            if stored is None:
                if resume:  # killed before it had settings
                    files.remove_unfinished(run, CONFIG)
                _check_new(run)
                run.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_alone_in(run))
                _write_config(run, settings)
            record.open(stack)
            if stored is not None:
                _write_config(run, settings)
        with _signals(solver) as caught:
            record.train()
        if not record.finished:
            signum = caught[0] if caught else signal.SIGTERM  # another rank's
            raise Stopped(
                signum,
                f"stopped by {signal.Signals(signum).name} after iteration {solver.iteration}; "
                f"to go on: fastrnn train --out {run} --resume",
            )
        return settings.score, record.best


def _check_new(run: Path) -> None:
    try:
        files.check_new_directory(run)
    except FileExistsError as error:
        hint = "; --resume goes on with it" if (run / CONFIG).exists() else ""
        raise FileExistsError(f"{error}{hint}") from error


def _write_config(run: Path, settings: Settings) -> None:
    config = {name: value for name, value in asdict(settings).items() if value is not None}
    files.write_text(run / CONFIG, tomli_w.dumps(config))


def _read(run: Path) -> tuple[Settings, Any]:
    """The settings of a run, and its newest checkpoint that is whole, None where it never had one."""
    settings = _checked(read_config(run / CONFIG), f"{run / CONFIG}: ")
    damaged = []
    for path in checkpoints(run / CHECKPOINTS):
        try:
            return settings, load_checkpoint(path)
        except ValueError as error:
            damaged.append(str(error))
    if damaged:
        raise ValueError(f"{'; '.join(damaged)}: nothing is left to go on from, start another run")
    if (run / LAST).exists():
        raise ValueError(
            f"{run}: has a model but no checkpoint to go on from (removed, or of an older version); start "
            "another run"
        )
    return settings, None


def _checked(values: dict[str, Any], source: str = "") -> Settings:
    """Settings that are possible. Raises ``ValueError`` naming one that is not, after its source."""
    known = {field.name for field in fields(Settings)}
    if unknown := values.keys() - known:
        raise ValueError(f"{source}unknown settings {', '.join(sorted(unknown))}")
    try:
        return TypeAdapter(Settings).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        given = "" if first["type"] == "missing" else f", got {first['input']!r}"
        raise ValueError(f"{source}{name}: {first['msg'].lower()}{given}") from error


def _changed(stored: Settings, given: dict[str, Any]) -> Settings:
    """A run's settings with those given in their place. Raises ``ValueError`` for what cannot change."""
    for name in _FIXED:
        value = getattr(stored, name)
        if name in given and given[name] != value:
            raise ValueError(
                f"{name}: the run has {value!r} and cannot go on with {given[name]!r}; start another one"
            )
    return _checked(asdict(stored) | given)


def _resolved(settings: Settings, given: dict[str, Any], ranks: Ranks | None) -> Settings:
    """Settings with the data directory's whole path, and what really computes, which from here on does."""
    if settings.tensorboard:
        _tensorboard()
    if settings.backend is not None:
        backend.use_backend(settings.backend)
    threads = settings.threads if ranks is None else given.get("threads")
    if ranks is not None:
        ranks.check_same("settings", repr(settings))
        ranks.check_same("kernels", f"{backend.current_backend()} for {backend.instruction_set()}")
        threads = threads or ranks.threads_each()
    if threads is not None:
        backend.set_num_threads(threads)
    if ranks is not None and backend.current_backend() == "numba":
        with ranks.one_after_the_other_on_each_machine():  # the first compiles, the others find it
            backend.warmup()
    return replace(
        settings,
        data=str(Path(settings.data).resolve()),
        backend=backend.current_backend(),
        threads=backend.get_num_threads() if ranks is None else None,  # other ranks may have others
    )


def _data(settings: Settings, ranks: Ranks | None) -> tuple[CaptionData, np.random.Generator]:
    """The data, all of it finite and the same for all ranks, and the generator that shuffles it."""
    data = open_data(settings.data)
    if settings.score == "bleu":  # rather now than after an epoch
        load_bleu()
    data.train.check_features()
    data.val.check_features()
    rng = np.random.default_rng(settings.seed)
    if settings.max_train is not None:
        data = replace(data, train=data.train.subset(settings.max_train, rng))
    if ranks is not None:
        ranks.check_same(f"data in {settings.data} (a checksum)", _fingerprint(data))
    return data, rng


def _fingerprint(data: CaptionData) -> str:
    """A checksum of all captions, and of the features of some images."""
    checksum = 0
    for split in (data.train, data.val):
        some = np.linspace(0, len(split.features) - 1, 64).astype(int)
        for array in (split.captions, split.image_idxs, split.features[some]):
            checksum = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, checksum)
    return f"{checksum:08x}"


def _solver(
    settings: Settings, data: CaptionData, rng: np.random.Generator, ranks: Ranks | None
) -> CaptioningSolver:
    np.random.seed(settings.seed)
    model = CaptioningRNN(
        data.word_to_idx, data.input_dim, settings.wordvec, settings.hidden, settings.cell, np.float32
    )
    model.feature_pca = data.pca
    dropout = Dropout(settings.dropout, settings.dropout_words, settings.seed)
    solver = CaptioningSolver(
        model,
        data,
        update_rule=settings.update_rule,
        optim_config={"learning_rate": settings.lr},
        lr_decay=settings.lr_decay,
        batch_size=settings.batch_size,
        num_epochs=settings.epochs,
        clip_norm=settings.clip_norm,
        dropout=dropout if dropout.outputs or dropout.words else None,
        bucket=settings.bucket,
        ranks=ranks,
        verbose=False,
        rng=rng,
    )
    iterations = settings.epochs * solver.iterations_per_epoch
    if settings.warmup >= iterations:
        raise ValueError(
            f"warmup: expected fewer than the {iterations} iterations of {settings.epochs} epochs, got "
            f"{settings.warmup}"
        )
    if settings.schedule == "cosine":
        solver.schedule = cosine(iterations - settings.warmup)
    if settings.warmup:
        solver.schedule = warm_up(settings.warmup, solver.schedule)
    return solver


class _Record:
    """Watches a solver: progress bar, metrics, models, checkpoints; ends training early."""

    _KEPT = ("epochs", "best", "best_epoch", "seconds", "tokens", "loss_sum", "captions")  # in checkpoints

    def __init__(
        self, run: Path, settings: Settings, data: CaptionData, solver: CaptioningSolver, saved: Any
    ) -> None:
        self.run, self.settings, self.data, self.solver = run, settings, data, solver
        self.ranks = solver.ranks
        self.writes = self.ranks is None or self.ranks.rank == 0
        self.fingerprint = _fingerprint(data)
        self.epochs = 0  # that were validated
        self.best, self.best_epoch = float("inf") if settings.score == "loss" else -1.0, 0
        self.seconds, self.tokens = 0.0, 0  # of training, without validation
        self.loss_sum, self.captions = 0.0, 0  # of this epoch
        self.saved_at: int | None = None  # the iteration of the newest checkpoint
        self.board: Any = None
        self.references = data.references("val") if settings.score == "bleu" else []
        if saved is not None:
            self._load(*saved)
        solver.on_step, solver.on_epoch = self.step, self.epoch

    def _load(self, state: State, notes: dict[str, Any]) -> None:
        if notes["fingerprint"] != self.fingerprint:
            raise ValueError(f"{self.data.directory}: the data are not those that the run began with")
        for name in _FIXED:
            then, now = notes["settings"][name], getattr(self.settings, name)
            if then != now:
                raise ValueError(f"{self.run / CONFIG}: {name} is {now!r}, in the checkpoint {then!r}")
        self.solver.load_state(*state)
        for name in self._KEPT:
            setattr(self, name, notes["record"][name])
        if self.settings.epochs < self.epochs:
            raise ValueError(f"epochs: the run has done {self.epochs}, got {self.settings.epochs}")
        self.saved_at = self.solver.iteration
        if self.settings.lr != notes["settings"]["lr"]:
            for config in self.solver.optim_configs.values():
                config["learning_rate"] = self.settings.lr * self.settings.lr_decay**self.solver.epoch

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or so many were without a better score that training ends early."""
        patience = self.settings.patience
        weary = patience is not None and self.epochs - self.best_epoch >= patience
        return self.epochs >= self.settings.epochs or weary

    def open(self, stack: ExitStack) -> None:
        """Make the directory ready to go on in: nothing in it is newer than the checkpoint or unfinished."""
        directory = self.run / CHECKPOINTS
        directory.mkdir(exist_ok=True)
        files.remove_unfinished(self.run, CONFIG, METRICS, BEST, LAST)
        files.remove_unfinished(directory, "*")
        newest = checkpoint_path(directory, self.solver.iteration)
        for path in checkpoints(directory):
            if path > newest:  # and not whole
                path.rename(path.with_suffix(".damaged"))
        if self.saved_at is not None:  # it may have been killed in between
            self.solver.model.save(self.run / LAST)
        path = self.run / METRICS
        files.write_text(path, "".join(self._lines(path)))
        self.metrics: TextIO = stack.enter_context(path.open("a", encoding="utf-8", buffering=1))
        if self.settings.tensorboard:
            self.board = stack.enter_context(_tensorboard()(self.run / TENSORBOARD, self.solver.iteration))

    def _lines(self, path: Path) -> Iterator[str]:
        """The metrics up to the checkpoint."""
        if not path.exists():
            return
        for line in files.read_text(path).splitlines(keepends=True):
            try:
                record = json.loads(line)
                if record["iteration"] <= self.solver.iteration and record.get("epoch", 0) <= self.epochs:
                    yield line
            except (ValueError, KeyError, TypeError):  # as the last one of a process that was killed
                continue

    def train(self) -> None:
        """Train until all is done or a signal came; what there is then is in the newest checkpoint."""
        solver, settings = self.solver, self.settings
        total = settings.epochs * solver.iterations_per_epoch
        with tqdm(
            total=total, initial=solver.iteration, unit="it", smoothing=0.05, disable=not self.writes
        ) as bar:
            self.bar = bar
            self.started = time.perf_counter()
            if self.finished and self.writes:
                more = "--epochs" if self.epochs >= settings.epochs else "--patience"
                bar.write(f"{self.epochs} epochs are done, nothing is left to do; {more} asks for more")
            if self.epochs < solver.epoch:  # a signal came while it was validated
                self.epoch(solver)
            solver.num_epochs = settings.epochs - solver.epoch
            if not self.finished and self.epochs == solver.epoch:
                solver.train()
            if not self.finished and self.saved_at != solver.iteration:
                self.checkpoint()

    def step(self, solver: CaptioningSolver, captions: Array) -> None:
        """After an iteration."""
        now = time.perf_counter()
        self.seconds, self.started = self.seconds + now - self.started, now
        self.tokens += int(np.count_nonzero(self.data.train.captions[solver.chosen, 1:]))  # NULL is 0
        loss = solver.loss_history[-1]
        self.loss_sum += loss * len(solver.chosen)
        self.captions += len(solver.chosen)
        figures = {"loss": loss, "learning_rate": float(solver.learning_rate or 0)}
        self._check("loss", loss)
        if solver.grad_norm is not None:
            figures["grad_norm"] = solver.grad_norm
            self._check("gradient norm", solver.grad_norm)
        self._write(iteration=solver.iteration, **figures)
        rate = self.tokens / self.seconds
        self.bar.set_postfix_str(f"loss {loss:.2f}, {rate:,.0f} tokens/s", refresh=False)
        self.bar.update()
        within = solver.position < solver.iterations_per_epoch  # else the epoch's end follows at once
        if within and solver.iteration % self.settings.checkpoint_every == 0:
            self.checkpoint()
            self.started = time.perf_counter()

    def epoch(self, solver: CaptioningSolver) -> None:
        """After an epoch: validate, and keep the model."""
        val_loss = mean_loss(solver.model, self.data.val, self.ranks, lambda: solver.stop, self.writes)
        if val_loss is None:
            solver.stop = True
            return
        self._check("val loss", val_loss)
        figures = {"train_loss": self.loss_sum / self.captions, "val_loss": val_loss}
        score = val_loss
        if self.settings.score == "bleu":
            outputs = captions_of(solver.model, self.data.val.features, self.data.idx_to_word, self.ranks)
            score = figures["val_bleu_4"] = bleu_of(outputs, self.references).bleu[3]
        self.epochs, self.loss_sum, self.captions = solver.epoch, 0.0, 0
        self._write(
            epoch=solver.epoch,
            iteration=solver.iteration,
            **figures,
            tokens_per_second=round(self.tokens / self.seconds),
            seconds=round(self.seconds, 3),
        )
        mark = ""
        if score < self.best if self.settings.score == "loss" else score > self.best:
            self.best, self.best_epoch, mark = score, solver.epoch, ", the best so far"
            if self.writes:
                solver.model.save(self.run / BEST)
        self.checkpoint()
        if self.writes:
            (caption,) = captions_of(solver.model, self.data.val.features[:1], self.data.idx_to_word)
            bleu = f", val BLEU-4 {score:.3f}" if self.settings.score == "bleu" else ""
            self.bar.write(
                f"epoch {solver.epoch}: train loss {figures['train_loss']:.3f}, val loss {val_loss:.3f} per "
                f"caption{bleu}{mark}\n"
                f"    it says of {self.data.val.urls[0]}: {' '.join(caption)}"
            )
            if self.finished and self.epochs < self.settings.epochs:
                measure = "BLEU-4" if bleu else "val loss"
                self.bar.write(f"no better {measure} for {self.settings.patience} epochs: the end")
        if self.finished:
            solver.stop = True
        self.started = time.perf_counter()

    def checkpoint(self) -> None:
        """Write the newest model and a checkpoint, and remove the oldest."""
        solver = self.solver
        for name, w in solver.model.params.items():
            self._check(name, float(np.isfinite(w).all() or np.nan), "has values that are not finite")
        self.saved_at = solver.iteration
        if not self.writes:
            return
        os.fsync(self.metrics.fileno())
        notes = {
            "settings": asdict(self.settings),
            "fingerprint": self.fingerprint,
            "record": {name: getattr(self, name) for name in self._KEPT},
        }
        directory = self.run / CHECKPOINTS
        save_checkpoint(checkpoint_path(directory, solver.iteration), solver.state(), notes)
        solver.model.save(self.run / LAST)
        for path in checkpoints(directory)[self.settings.keep :]:
            path.unlink()

    def _check(self, name: str, value: float, fault: str | None = None) -> None:
        """Raise ``ValueError`` where a number is not finite, telling where that was and how to go on."""
        if np.isfinite(value):
            return
        solver = self.solver
        params = [name for name, w in solver.model.params.items() if not np.isfinite(w).all()]
        message = (
            f"{self.run}: the {name} {fault or f'is {value}'} at iteration {solver.iteration}: lower the "
            "learning rate (--lr) or clip the gradients (--clip-norm)"
        )
        if params:
            message += f"; after it {', '.join(params)} have NaN or infinite values"
        if self.saved_at is not None:
            message += f"; the checkpoint of iteration {self.saved_at} is good, --resume goes on from there"
        else:
            message += "; there is no checkpoint yet, --resume begins again"
        raise ValueError(message)

    def _write(self, **values: float) -> None:
        if not self.writes:
            return
        with files.naming(self.run / METRICS):
            self.metrics.write(json.dumps(values, allow_nan=False) + "\n")
        if self.board is not None:
            for name, value in values.items():
                if name not in ("iteration", "epoch"):
                    self.board.add_scalar(name, value, values["iteration"])


def _tensorboard() -> Callable[[Path, int], Any]:
    """What opens a writer of events after so many iterations. Raises ``ImportError`` with the remedy."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoard events need tensorboardX: pip install 'fastrnn[tensorboard]'"
        ) from error
    return lambda directory, iteration: SummaryWriter(str(directory), purge_step=iteration + 1)


@contextmanager
def _alone_in(run: Path) -> Iterator[None]:
    """Hold the run directory. Raises ``ValueError`` where another process trains in it."""
    descriptor = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{run}: another process trains in it") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _signals(solver: CaptioningSolver) -> Iterator[list[int]]:
    """Signals that end processes stop the solver instead, and are listed; the second one does what it did."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield caught
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def stop(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        solver.stop = True
        restore()

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup has it
            signal.signal(signum, stop)
    try:
        yield caught
    finally:
        restore()


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a TOML file. Raises ``FileNotFoundError``, or ``ValueError`` naming the file."""
    text = files.read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error
