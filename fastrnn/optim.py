"""First-order update rules with the published signature ``(w, dw, config=None) -> next_w, config``.

``w`` and ``dw`` are arrays of one shape. ``config`` is a dictionary of the rule's settings and its state;
missing settings are filled in. ``sgd``, ``sgd_momentum`` and ``rmsprop`` change ``w`` in place and return
it, ``adam`` returns a new array. State arrays in ``config`` are replaced, never changed in place, unless
``in_place=True`` says that nobody else holds them, nor ``w``: then a step makes no array of their size.

Every rule raises ``TypeError`` for arrays that are not of real numbers, ``ValueError`` where the shapes of
w, dw and the state differ.
"""

from typing import Any

import numpy as np

from fastrnn import backend
from fastrnn.arrays import Array, real, real_type

__all__ = ["adam", "rmsprop", "sgd", "sgd_momentum"]

Config = dict[str, Any]


def sgd(w: Array, dw: Array, config: Config | None = None, *, in_place: bool = False) -> tuple[Array, Config]:
    """Gradient descent: w -= learning_rate * dw, in place.

    Settings: ``learning_rate`` (1e-2).
    """
    config = _defaults(config, learning_rate=1e-2)
    new_w, dw = _in_place(w, dw)
    backend.kernels().sgd(new_w, dw, config["learning_rate"])
    return _into(w, new_w), config


def sgd_momentum(
    w: Array, dw: Array, config: Config | None = None, *, in_place: bool = False
) -> tuple[Array, Config]:
    """Gradient descent with momentum, in place.

    velocity = momentum * velocity - learning_rate * dw;  w += velocity.

    Settings: ``learning_rate`` (1e-2), ``momentum`` (0.9). State: ``velocity`` like w.
    """
    config = _defaults(config, learning_rate=1e-2, momentum=0.9)
    new_w, dw = _in_place(w, dw)
    velocity = _state("velocity", config, new_w, in_place)
    backend.kernels().sgd_momentum(new_w, dw, velocity, config["learning_rate"], config["momentum"])
    config["velocity"] = velocity
    return _into(w, new_w), config


def rmsprop(
    w: Array, dw: Array, config: Config | None = None, *, in_place: bool = False
) -> tuple[Array, Config]:
    """RMSProp (Tieleman and Hinton 2012), in place.

    cache = decay_rate * cache + (1 - decay_rate) * dw^2;  w -= learning_rate * dw / (sqrt(cache) + epsilon).

    Settings: ``learning_rate`` (1e-2), ``decay_rate`` (0.99), ``epsilon`` (1e-8). State: ``cache`` like w.
    """
    config = _defaults(config, learning_rate=1e-2, decay_rate=0.99, epsilon=1e-8)
    new_w, dw = _in_place(w, dw)
    cache = _state("cache", config, new_w, in_place)
    backend.kernels().rmsprop(
        new_w, dw, cache, config["learning_rate"], config["decay_rate"], config["epsilon"]
    )
    config["cache"] = cache
    return _into(w, new_w), config


def adam(
    w: Array, dw: Array, config: Config | None = None, *, in_place: bool = False
) -> tuple[Array, Config]:
    """Adam with bias correction (Kingma and Ba, ICLR 2015); w itself stays as it is.

    m = beta1 * m + (1 - beta1) * dw;  v = beta2 * v + (1 - beta2) * dw^2;
    next_w = w - learning_rate * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon).

    Settings: ``learning_rate`` (1e-3), ``beta1`` (0.9), ``beta2`` (0.999), ``epsilon`` (1e-8).
    State: ``m`` and ``v`` like w, and ``t``, the number of steps taken.
    """
    config = _defaults(config, learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, t=0)
    dtype = real_type(real("w", w), real("dw", dw))
    next_w = np.asarray(w, dtype, order="C") if in_place else np.array(w, dtype, order="C")
    dw = _gradient(dw, next_w)
    m, v = (_state(name, config, next_w, in_place) for name in ("m", "v"))
    config["t"] += 1
    backend.kernels().adam(
        next_w, dw, m, v, config["t"],
        config["learning_rate"], config["beta1"], config["beta2"], config["epsilon"],
    )  # fmt: skip
    config["m"], config["v"] = m, v
    return next_w, config


def _defaults(config: Config | None, **settings: float) -> Config:
    config = {} if config is None else config
    for name, value in settings.items():
        config.setdefault(name, value)
    return config


def _in_place(w: Array, dw: Array) -> tuple[Array, Array]:
    """w as the kernels want it (itself, if it is so already) and dw in its type."""
    if not isinstance(w, np.ndarray) or w.dtype.kind != "f":
        raise TypeError(f"w: expected an array of floats to change in place, got {_described(w)}")
    if not w.flags.writeable:
        raise ValueError("w: expected an array that may be changed in place, got a read-only one")
    new_w = np.asarray(w, real_type(w), order="C")
    return new_w, _gradient(dw, new_w)


def _gradient(dw: Array, w: Array) -> Array:
    gradient = real("dw", dw)
    if gradient.shape != w.shape:
        raise ValueError(f"dw: expected the shape of w {w.shape}, got {gradient.shape}")
    return np.asarray(gradient, w.dtype, order="C")


def _described(value: Any) -> str:
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _state(name: str, config: Config, w: Array, in_place: bool) -> Array:
    """A state array in w's type, zeros at the first step; a fresh copy unless it may be changed in place."""
    if config.get(name) is None:
        return np.zeros_like(w)
    state = real(name, config[name])
    if state.shape != w.shape:
        raise ValueError(f"config[{name!r}]: expected the shape of w {w.shape}, got {state.shape}")
    return np.asarray(state, w.dtype, order="C") if in_place else np.array(state, w.dtype, order="C")


def _into(w: Array, new_w: Array) -> Array:
    """Carry the result back into the caller's array where the kernel worked on a copy."""
    if new_w is not w:
        w[...] = new_w
    return w
