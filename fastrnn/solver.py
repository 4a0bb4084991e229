"""The training loop."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fastrnn import optim
from fastrnn.arrays import Array
from fastrnn.data.coco import CaptionData, Split, sample_coco_minibatch


class CaptioningSolver:
    """Trains any model that has ``params`` and ``loss(features, captions) -> loss, grads``.

    ``data`` is either what :func:`fastrnn.load_coco_data` returns, and minibatches are drawn with replacement
    from NumPy's global generator as published, or what :func:`fastrnn.open_data` returns, and epochs are true
    epochs shuffled by ``rng``.

    Published settings: ``update_rule`` ("sgd"; a name in :mod:`fastrnn.optim`), ``optim_config`` ({}; the
    rule's settings), ``lr_decay`` (1.0; factor on the learning rate after each epoch), ``batch_size`` (100),
    ``num_epochs`` (10), ``print_every`` (10 iterations), ``verbose`` (True). Beyond these: ``rng`` (a
    ``numpy.random.Generator`` or a seed), ``on_step``, called after each iteration
    with the solver and the captions of the minibatch, and ``on_epoch``, called after each epoch with the
    solver.

    The arrays in ``model.params`` that a step has made are the solver's: later steps update them, and the
    state of the rule, in place. Copy what you want to keep.

    Attributes: ``loss_history`` (one number per iteration), ``epoch``, ``optim_configs`` (settings and state
    of the rule per parameter), ``update_rule`` (the function); ``best_val_acc``, ``best_params``,
    ``train_acc_history`` and ``val_acc_history`` exist for compatibility and stay as they are.

    Raises ``ValueError`` for an unknown setting or update rule, or a batch_size or print_every below 1.
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
        self._reset()

    def _reset(self) -> None:
        """Forget all that training has done, but for the model's parameters."""
        self.epoch = 0
        self.best_val_acc = 0
        self.best_params: dict[str, Array] = {}
        self.loss_history: list[float] = []
        self.train_acc_history: list[float] = []
        self.val_acc_history: list[float] = []
        self.optim_configs = {name: dict(self.optim_config) for name in self.model.params}
        self._updated: dict[str, Array] = {}
        self._rule_is_ours = self.update_rule in (optim.sgd, optim.sgd_momentum, optim.rmsprop, optim.adam)
        self._batches: Iterator[tuple[Array, Array]] | None = None

    @property
    def iterations_per_epoch(self) -> int:
        """How many minibatches make an epoch."""
        if isinstance(self.data, CaptionData):
            return -(-len(self.data.train) // self.batch_size)
        return max(len(self.data["train_captions"]) // self.batch_size, 1)

    def _minibatch(self) -> tuple[Array, Array]:
        if isinstance(self.data, CaptionData):
            if self._batches is None:
                self._batches = self._true_epochs(self.data.train)
            return next(self._batches)
        captions, features, _ = sample_coco_minibatch(self.data, self.batch_size, split="train")
        return features, captions

    def _true_epochs(self, train: Split) -> Iterator[tuple[Array, Array]]:
        """Minibatches of one shuffled epoch after the other."""
        while True:
            for features, captions, _ in train.minibatches(self.batch_size, self.rng):
                yield features, captions

    def _step(self) -> None:
        """One iteration: draw a minibatch, compute the gradient, update every parameter."""
        features, captions = self._minibatch()
        loss, grads = self.model.loss(features, captions)
        self.loss_history.append(loss)
        for name, w in self.model.params.items():
            # What an earlier step returned is the solver's own, and so is its state.
            own = {"in_place": True} if w is self._updated.get(name) and self._rule_is_ours else {}
            next_w, self.optim_configs[name] = self.update_rule(
                w, grads[name], self.optim_configs[name], **own
            )
            self.model.params[name] = self._updated[name] = next_w
        if self.on_step is not None:
            self.on_step(self, captions)

    def check_accuracy(self, X: Any, y: Any, num_samples: int | None = None, batch_size: int = 100) -> float:
        """0.0, as published: captions have no accuracy. ``fastrnn evaluate`` computes their BLEU."""
        return 0.0

    def train(self) -> None:
        """Train for ``num_epochs`` epochs; called again, go on from there."""
        iterations = self.num_epochs * self.iterations_per_epoch
        for iteration in range(1, iterations + 1):
            self._step()
            if self.verbose and (iteration - 1) % self.print_every == 0:
                print(f"(Iteration {iteration} / {iterations}) loss: {self.loss_history[-1]:f}")
            if iteration % self.iterations_per_epoch == 0:
                self.epoch += 1
                for config in self.optim_configs.values():
                    config["learning_rate"] *= self.lr_decay
                if self.on_epoch is not None:
                    self.on_epoch(self)
