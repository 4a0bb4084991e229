"""The published update rules: numbers, defaults, what changes in place and what does not."""

import numpy as np
import pytest

import fastrnn
from fastrnn import optim

RULES = {
    "sgd": fastrnn.sgd,
    "sgd_momentum": fastrnn.sgd_momentum,
    "rmsprop": fastrnn.rmsprop,
    "adam": fastrnn.adam,
}
STATE = {"sgd": (), "sgd_momentum": ("velocity",), "rmsprop": ("cache",), "adam": ("m", "v")}


@pytest.fixture(autouse=True)
def _every_backend(kernels):
    pass


def textbook(rule, w, dw, steps):
    """The rules as the exercises state them, with the default settings."""
    a = b = np.zeros_like(w)
    for t in range(1, steps + 1):
        if rule == "sgd":
            w = w - 1e-2 * dw
        elif rule == "sgd_momentum":
            a = 0.9 * a - 1e-2 * dw
            w = w + a
        elif rule == "rmsprop":
            a = 0.99 * a + 0.01 * dw**2
            w = w - 1e-2 * dw / (np.sqrt(a) + 1e-8)
        else:
            a = 0.9 * a + 0.1 * dw
            b = 0.999 * b + 0.001 * dw**2
            w = w - 1e-3 * (a / (1 - 0.9**t)) / (np.sqrt(b / (1 - 0.999**t)) + 1e-8)
    return w


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (200, 300)])
def test_three_steps_with_the_defaults(rule, shape, dtype, rng):
    w, dw = (np.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    expected = textbook(rule, w.astype(np.float64), dw.astype(np.float64), 3)
    config = None
    for _ in range(3):
        w, config = RULES[rule](w, dw, config)
    assert w.dtype == dtype
    np.testing.assert_allclose(
        w, expected, **{"rtol": 1e-5, "atol": 1e-6} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-14}
    )
    if rule == "adam":
        assert config["t"] == 3


def test_defaults_are_filled_in():
    w = np.ones(2)
    assert fastrnn.sgd(w, w)[1] == {"learning_rate": 1e-2}
    _, config = fastrnn.adam(w, w)
    assert {k: config[k] for k in ("learning_rate", "beta1", "beta2", "epsilon", "t")} == {
        "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "t": 1,
    }  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_in_place_but_for_adam(rule, rng):
    """Also for arrays that the kernels cannot take as they are."""
    for w in (
        rng.standard_normal((4, 6)),
        rng.standard_normal((6, 4)).T,
        rng.standard_normal((4, 6)).astype(">f8"),
    ):
        dw, before = rng.standard_normal((4, 6)), w.copy()
        next_w, _ = RULES[rule](w, dw)
        assert (next_w is w) == (rule != "adam")
        np.testing.assert_allclose(next_w, textbook(rule, before, dw, 1), rtol=1e-12)
        if rule == "adam":
            np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("rule", [name for name in RULES if STATE[name]])
def test_state_arrays_are_replaced_not_changed(rule, rng):
    w, dw = rng.standard_normal((2, 3, 4))
    config = {name: np.full((3, 4), 0.5) for name in STATE[rule]}
    held = dict(config)
    RULES[rule](w, dw, config)
    for name, array in held.items():
        assert config[name] is not array
        np.testing.assert_array_equal(array, 0.5)


def test_mixed_types(rng):
    w, dw = np.ones(3, np.float32), np.ones(3, np.float64)
    assert fastrnn.sgd(w, dw)[0] is w
    assert fastrnn.adam(w, dw)[0].dtype == np.float64


@pytest.mark.parametrize("rule", RULES)
def test_bad_input_changes_nothing(rule):
    w = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"dw: expected the shape of w \(2, 3\), got \(3, 2\)"):
        RULES[rule](w, np.ones((3, 2)))
    config = {name: np.ones(5) for name in STATE[rule]}
    if config:
        with pytest.raises(ValueError, match="expected the shape of w"):
            RULES[rule](w, np.ones((2, 3)), config)
    np.testing.assert_array_equal(w, 1)


@pytest.mark.parametrize("rule", [name for name in RULES if name != "adam"])
def test_what_cannot_change_in_place_is_refused(rule):
    frozen = np.ones(2)
    frozen.setflags(write=False)
    with pytest.raises(
        ValueError, match="w: expected an array that may be changed in place, got a read-only"
    ):
        RULES[rule](frozen, np.ones(2))
    with pytest.raises(TypeError, match="an array of int64"):
        RULES[rule](np.ones(2, np.int64), np.ones(2))


def test_every_rule_is_tested():
    assert set(optim.__all__) == set(RULES)
