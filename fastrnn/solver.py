"""The training loop."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastrnn import optim
from fastrnn.arrays import Array, real_type, views_of_one
from fastrnn.captioning import Dropout
from fastrnn.data.coco import CaptionData, read_ahead, sample_coco_minibatch
from fastrnn.distributed import Ranks

AGREEMENT_EVERY = 100  # iterations; ranks compare their parameters
_OURS = (optim.sgd, optim.sgd_momentum, optim.rmsprop, optim.adam)


class CaptioningSolver:
    """Trains any model that has ``params`` and ``loss(features, captions) -> loss, grads``.

    ``data`` is either what :func:`fastrnn.load_coco_data` returns, and minibatches are drawn with replacement
    from NumPy's global generator as published, or what :func:`fastrnn.open_data` returns, and epochs are true
    epochs shuffled by ``rng``.

    Published settings: ``update_rule`` ("sgd"; a name in :mod:`fastrnn.optim`), ``optim_config`` ({}; the
    rule's settings), ``lr_decay`` (1.0; factor on the learning rate after each epoch), ``batch_size`` (100),
    ``num_epochs`` (10), ``print_every`` (10 iterations), ``verbose`` (True). Beyond these:

    - ``rng``: a ``numpy.random.Generator`` or a seed.
    - ``schedule``: a function of the iteration, counted from 0, whose value is a factor on the learning rate
      of that iteration, such as :func:`cosine`. ``optim_config`` must have a learning rate then.
    - ``clip_norm``: gradients whose norm, over all parameters together, is greater are scaled down to it
      (Pascanu et al., ICML 2013).
    - ``dropout``: a :class:`fastrnn.captioning.Dropout`, whose ``iteration`` and ``first`` each step sets.
    - ``bucket``: minibatches of captions of about one length (:meth:`fastrnn.data.Split.epoch`).
    - ``ranks``: the processes to train with (:func:`fastrnn.distributed.connect`). Each computes its share of
      every minibatch of ``batch_size`` captions; all hold the same parameters.
    - ``on_step``, called after each iteration with the solver and this rank's captions of the minibatch, and
      ``on_epoch``, called after each epoch with the solver.

    ``dropout``, ``bucket`` and ``ranks`` want the data of ``open_data``; ``dropout`` and ``ranks`` a model
    whose ``loss`` takes what that of :class:`fastrnn.CaptioningRNN` does.

    The arrays in ``model.params`` that a step has made are the solver's: later steps update them, and the
    state of the rule, in place. Copy what you want to keep.

    Attributes: ``loss_history`` (one number per iteration), ``iteration`` (how many there were), ``epoch``,
    ``chosen`` (n,) (which captions made the last minibatch, of all ranks, with ``open_data``),
    ``position`` (minibatches of the epoch that are done, with ``open_data``), ``learning_rate`` and
    ``grad_norm`` (of the last step; the norm before clipping, None without), ``optim_configs`` (settings and
    state of the rule per parameter), ``update_rule`` (the function), ``stop`` (set it, and ``train`` returns
    after the iteration, with ranks after the next; called again it goes on); ``best_val_acc``,
    ``best_params``, ``train_acc_history`` and ``val_acc_history`` exist for compatibility and stay as they
    are.

    Raises ``ValueError`` for an unknown setting or update rule, a batch_size or print_every below 1, a
    clip_norm that is not above 0, or settings that do not fit each other.
    """

    def __init__(self, model: Any, data: Mapping[str, Any] | CaptionData, **kwargs: Any) -> None:
        self.model = model
        self.data = data
        update_rule = kwargs.pop("update_rule", "sgd")
        self.optim_config: dict[str, Any] = kwargs.pop("optim_config", {})
        self.lr_decay: float = kwargs.pop("lr_decay", 1.0)
        self.batch_size: int = kwargs.pop("batch_size", 100)
        self.num_epochs: int = kwargs.pop("num_epochs", 10)
        self.print_every: int = kwargs.pop("print_every", 10)
        self.verbose: bool = kwargs.pop("verbose", True)
        self.rng = np.random.default_rng(kwargs.pop("rng", None))
        self.schedule: Callable[[int], float] | None = kwargs.pop("schedule", None)
        self.clip_norm: float | None = kwargs.pop("clip_norm", None)
        self.dropout: Dropout | None = kwargs.pop("dropout", None)
        self.bucket: bool = kwargs.pop("bucket", False)
        self.ranks: Ranks | None = kwargs.pop("ranks", None)
        self.on_step: Callable[[CaptioningSolver, Array], None] | None = kwargs.pop("on_step", None)
        self.on_epoch: Callable[[CaptioningSolver], None] | None = kwargs.pop("on_epoch", None)
        if kwargs:
            raise ValueError(f"unrecognized arguments: {', '.join(map(repr, kwargs))}")
        if not callable(getattr(optim, update_rule, None)):
            known = ", ".join(map(repr, optim.__all__))
            raise ValueError(f"update_rule: expected the name of a rule such as {known}, got {update_rule!r}")
        for name in ("batch_size", "print_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        self.update_rule = getattr(optim, update_rule)
        self._check_what_fits()
        self._reset()

    def _check_what_fits(self) -> None:
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm: expected a number above 0, got {self.clip_norm}")
        if self.schedule is not None and "learning_rate" not in self.optim_config:
            raise ValueError("optim_config: expected a learning_rate for the schedule to scale")
        if not isinstance(self.data, CaptionData):
            for name in ("dropout", "bucket", "ranks"):
                if getattr(self, name):
                    raise ValueError(f"{name}: expected data of open_data with it, got a dictionary")
        if self.ranks is not None and self.update_rule not in _OURS:
            raise ValueError(f"update_rule: expected a rule of fastrnn with ranks, got {self.update_rule}")

    def _reset(self) -> None:
        """Forget all that training has done, but for the model's parameters."""
        self.epoch = self.iteration = self.position = 0
        self.stop = self._all_stop = False
        self.chosen = np.arange(0)
        self.best_val_acc = 0
        self.best_params: dict[str, Array] = {}
        self.loss_history: list[float] = []
        self.train_acc_history: list[float] = []
        self.val_acc_history: list[float] = []
        self.learning_rate: float | None = None
        self.grad_norm: float | None = None
        self.optim_configs = {name: dict(self.optim_config) for name in self.model.params}
        self._updated: dict[str, Array] = {}
        self._before_epoch = self.rng.bit_generator.state
        self._epoch: list[Array] = []
        self._batches: Iterator[tuple[Array, Array, Array]] | None = None
        if self.ranks is not None:
            self._share_memory()

    def _share_memory(self) -> None:
        """Parameters and gradients become views of one array each, the parameters those of rank 0."""
        assert self.ranks is not None
        params = self.model.params
        dtype, shapes = real_type(*params.values()), [w.shape for w in params.values()]
        self._all_params, views = views_of_one(dtype, *shapes)
        for name, view in zip(params, views, strict=True):
            view[...] = params[name]
            self._updated[name] = params[name] = view
        self._all_grads, views = views_of_one(dtype, *shapes)
        self._grads = dict(zip(params, views, strict=True))
        self.ranks.broadcast(self._all_params)

    @property
    def iterations_per_epoch(self) -> int:
        """How many minibatches make an epoch."""
        if isinstance(self.data, CaptionData):
            return -(-len(self.data.train) // self.batch_size)
        return max(len(self.data["train_captions"]) // self.batch_size, 1)

    def _minibatch(self) -> tuple[Array, Array]:
        """Features and captions, of which each rank gets its share."""
        if not isinstance(self.data, CaptionData):
            captions, features, _ = sample_coco_minibatch(self.data, self.batch_size, split="train")
            return features, captions
        train, ranks = self.data.train, self.ranks
        if self.position == self.iterations_per_epoch:
            self.position, self._batches = 0, None
        if self._batches is None:
            self._before_epoch = self.rng.bit_generator.state
            self._epoch = train.epoch(self.batch_size, self.rng, bucket=self.bucket)
            rest = self._epoch[self.position :]
            shares = rest if ranks is None else [chosen[ranks.share(len(chosen))] for chosen in rest]
            self._batches = read_ahead(train.read, shares)
        try:
            features, captions, _ = next(self._batches)
        except BaseException:  # interrupted, or not readable: the next call begins with this minibatch again
            self.rng.bit_generator.state, self._batches = self._before_epoch, None
            raise
        self.chosen = self._epoch[self.position]
        self.position += 1
        return features, captions

    def _step(self) -> None:
        """One iteration: draw a minibatch, compute the gradient, update every parameter."""
        features, captions = self._minibatch()
        loss, grads = self._loss(features, captions)
        self.loss_history.append(loss)
        if self.clip_norm is not None:
            self.grad_norm = clip(grads, self.clip_norm)
        for name in self.model.params:
            self._update(name, grads[name])
        self.iteration += 1
        if self.ranks is not None and self.iteration % AGREEMENT_EVERY == 0:
            self.ranks.check_agreement(self._all_params, self.iteration)
        if self.on_step is not None:
            self.on_step(self, captions)

    def _update(self, name: str, grad: Array) -> None:
        """One step of the update rule for one parameter."""
        w, config = self.model.params[name], self.optim_configs[name]
        # What an earlier step returned is the solver's own, and so is its state.
        own = {"in_place": True} if w is self._updated.get(name) and self.update_rule in _OURS else {}
        unscaled = config.get("learning_rate")
        if self.schedule is not None:
            config["learning_rate"] = self.schedule(self.iteration) * config["learning_rate"]
        next_w, config = self.update_rule(w, grad, config, **own)
        self.learning_rate = config.get("learning_rate")
        if self.schedule is not None:
            config["learning_rate"] = unscaled
        self.optim_configs[name] = config
        self.model.params[name] = self._updated[name] = next_w

    def _loss(self, features: Array, captions: Array) -> tuple[float, dict[str, Array]]:
        """Loss and gradients of the whole minibatch, from this rank's share of it."""
        count = len(self.chosen)
        options: dict[str, Any] = {}
        if self.dropout is not None:
            options["dropout"] = replace(
                self.dropout,
                iteration=self.iteration,
                first=0 if self.ranks is None else self.ranks.share(count).start,
            )
        if self.ranks is None:
            loss, grads = self.model.loss(features, captions, **options)
            return loss, grads
        loss = 0.0
        if len(captions):
            loss, _ = self.model.loss(features, captions, count=count, into=self._grads, **options)
        else:
            self._all_grads.fill(0)
        self.ranks.sum(self._all_grads)
        losses_and_stops = np.array([loss, self.stop], np.float64)
        self.ranks.sum(losses_and_stops)
        self._all_stop = bool(losses_and_stops[1])
        return float(losses_and_stops[0]), self._grads

    def check_accuracy(self, X: Any, y: Any, num_samples: int | None = None, batch_size: int = 100) -> float:
        """0.0, as published: captions have no accuracy. ``fastrnn evaluate`` computes their BLEU."""
        return 0.0

    def train(self) -> None:
        """Train for ``num_epochs`` epochs; called again, go on from there.

        An epoch that was begun counts as one of them, and its rest comes first.
        """
        iterations, done = self.num_epochs * self.iterations_per_epoch, self.position
        if done == self.iterations_per_epoch:  # in the state of an epoch's last on_step
            self._end_epoch()
        while done < iterations:
            self._step()
            done += 1
            if self.verbose and (done - 1) % self.print_every == 0:
                print(f"(Iteration {done} / {iterations}) loss: {self.loss_history[-1]:f}")
            if done % self.iterations_per_epoch == 0:
                self._end_epoch()
            if self.stop if self.ranks is None else self._all_stop:
                self.stop = self._all_stop = False
                return

    def _end_epoch(self) -> None:
        self.epoch += 1
        self.position, self._batches = 0, None
        for config in self.optim_configs.values():
            config["learning_rate"] *= self.lr_decay
        if self.on_epoch is not None:
            self.on_epoch(self)
        if self.ranks is not None:
            self._all_stop = self._all_stop or self.ranks.any(self.stop)

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """All that going on takes: arrays, and what can be written as JSON.

        The arrays are those that the next steps change: write them to a file, or copy them.
        Raises ``ValueError`` with the data of ``load_coco_data``, whose minibatches come from NumPy's global
        generator.
        """
        if not isinstance(self.data, CaptionData):
            raise ValueError("data: expected data of open_data to keep a state of, got a dictionary")
        within = 0 < self.position < self.iterations_per_epoch
        arrays = {f"params.{name}": w for name, w in self.model.params.items()}
        arrays["loss_history"] = np.array(self.loss_history, np.float64)
        settings: dict[str, dict[str, Any]] = {}
        for name, config in self.optim_configs.items():
            settings[name] = {
                key: value for key, value in config.items() if not isinstance(value, np.ndarray)
            }
            arrays |= {f"optim.{name}.{key}": config[key] for key in config.keys() - settings[name].keys()}
        return arrays, {
            "epoch": self.epoch,
            "iteration": self.iteration,
            "position": self.position,
            "generator": self._before_epoch if within else self.rng.bit_generator.state,
            "update_rule": self.update_rule.__name__,
            "optim_configs": settings,
        }

    def load_state(self, arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken: the next step is the one that would have come then.

        Raises ``ValueError`` where the state is that of another model, update rule or generator.
        """
        params = self.model.params
        shapes = {
            name.removeprefix("params."): a.shape for name, a in arrays.items() if name[:7] == "params."
        }
        if shapes != {name: w.shape for name, w in params.items()}:
            raise ValueError(f"state: expected parameters of the model's shapes, got {shapes}")
        if plain["update_rule"] != self.update_rule.__name__:
            raise ValueError(
                f"state: expected that of the update rule {self.update_rule.__name__!r}, got "
                f"{plain['update_rule']!r}"
            )
        self.rng.bit_generator.state = plain["generator"]
        self._reset()
        self.epoch, self.iteration, self.position = plain["epoch"], plain["iteration"], plain["position"]
        self.loss_history = arrays["loss_history"].tolist()
        self.optim_configs = {name: dict(settings) for name, settings in plain["optim_configs"].items()}
        for name, array in arrays.items():
            kind, _, key = name.partition(".")
            if kind == "params" and self.ranks is not None:
                params[key][...] = array
            elif kind == "params":
                self._updated[key] = params[key] = array.copy()
            elif kind == "optim":
                parameter, _, setting = key.partition(".")
                self.optim_configs[parameter][setting] = array.copy()


def cosine(iterations: int) -> Callable[[int], float]:
    """A schedule: half a cosine from 1 at iteration 0 to 0 after so many (Loshchilov, Hutter, ICLR 2017)."""
    return lambda iteration: 0.5 * (1 + math.cos(math.pi * min(iteration / iterations, 1)))


def warm_up(iterations: int, then: Callable[[int], float] | None = None) -> Callable[[int], float]:
    """A schedule: rises in equal steps to 1 over so many iterations, then follows another, or stays at 1."""

    def factor(iteration: int) -> float:
        if iteration < iterations:
            return (iteration + 1) / iterations
        return 1.0 if then is None else then(iteration - iterations)

    return factor


def clip(grads: Mapping[str, Array], norm: float) -> float:
    """Scale gradients, in place, so that the norm of all together is at most ``norm``; returns what it was.

    Where it is not finite they stay as they are.
    """
    total = math.sqrt(sum(_sum_of_squares(grad) for grad in grads.values()))
    if norm < total < math.inf:
        for grad in grads.values():
            grad *= grad.dtype.type(norm / total)
    return total


def _sum_of_squares(array: Array) -> float:
    """By einsum, always in one order: BLAS has one for each number of threads. Blocks, then in float64."""
    flat = array.reshape(-1)
    whole = len(flat) // 4096 * 4096
    blocks = flat[:whole].reshape(-1, 4096)
    for dtype in (flat.dtype, np.dtype(np.float64)):  # squares may be too large for float32
        with np.errstate(over="ignore"):
            sums = np.einsum("ij,ij->i", blocks, blocks, dtype=dtype, casting="same_kind")
            rest = np.einsum("i,i->", flat[whole:], flat[whole:], dtype=dtype)
        total = float(sums.sum(dtype=np.float64) + rest)
        if math.isfinite(total):
            break
    return total
