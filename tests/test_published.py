"""The published inputs, outputs and gradient checks of the exercises: ``fastrnn check`` on every backend."""

import inspect
import itertools
import json
import re

import numpy as np
import pytest

import fastrnn
from fastrnn import backend, check, cli, layers


@pytest.fixture(autouse=True)
def _every_backend(kernels):
    np.random.seed(231)


def test_values():
    compared = list(check.values())
    assert len(compared) == len(check.PUBLISHED) + 3  # decoding's kernels beside the layers
    assert check.PUBLISHED.keys() <= {value.name for value in compared}
    for value in compared:
        assert value.holds, value


def test_gradients():
    compared = list(check.gradients())
    assert len(compared) == 48
    for gradient in compared:
        assert gradient.holds, gradient


@pytest.mark.parametrize(
    ("N", "T", "V", "p", "low", "high"),
    [(100, 1, 10, 1.0, 2.25, 2.35), (100, 10, 10, 1.0, 22.9, 23.1), (5000, 10, 10, 0.1, 2.2, 2.4)],
)
def test_temporal_softmax_loss(N, T, V, p, low, high):
    x = 0.001 * np.random.randn(N, T, V)
    y = np.random.randint(V, size=(N, T))
    mask = np.random.rand(N, T) <= p
    loss, _ = fastrnn.temporal_softmax_loss(x, y, mask)
    assert low <= loss <= high


# ---------------------------------------------------------------------------------------------------
# The checks themselves


def test_the_values_are_those_that_were_published(real_data):
    """Against another record of them."""
    path = real_data.parent / "published_values.json"
    if not path.exists():
        pytest.skip("no published_values.json beside the real data")
    published = json.loads(path.read_text())
    step, loss = published["lstm_step_forward"], published["captioning_loss"]
    assert check.PUBLISHED == {
        "rnn_step_forward": published["rnn_step_forward"]["next_h"],
        "rnn_forward": published["rnn_forward"]["h"],
        "word_embedding_forward": published["word_embedding_forward"]["out"],
        "lstm_step_forward, h": step["next_h"],
        "lstm_step_forward, c": step["next_c"],
        "lstm_forward": published["lstm_forward"]["h"],
        "CaptioningRNN.loss, rnn": loss["rnn"]["loss"],
        "CaptioningRNN.loss, lstm": loss["lstm"]["loss"],
    }
    for value in check.values():
        if value.name.startswith("CaptioningRNN"):
            assert value.bound * value.published < loss["max_abs_error"]
        elif "decoding" not in value.name:
            assert value.bound == published[value.name.split(",")[0]]["max_rel_error"]
    published_bounds = {
        name.removesuffix("_backward"): of["max"]
        for name, of in published["gradient_checks"].items()
        if name != "what"
    }
    published_bounds["CaptioningRNN, rnn"] = published_bounds.pop("captioning_rnn")
    ours = {gradient.name: gradient.bound for gradient in check.gradients()}
    assert {name: ours[name] for name in published_bounds} == published_bounds


def test_the_command(capsys):
    name = fastrnn.current_backend()
    state = np.random.get_state()[1].copy()
    assert cli.main(["check", "--backend", name]) == 0
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    out = capsys.readouterr().out
    assert f"backend {name}\n" in out
    assert re.search(r"rnn_step_forward +0.9985435300 +0.99854353\d\d +\d\.\de-\d\d +1e-08 ok\n", out)
    assert re.search(r"CaptioningRNN, lstm +W_vocab +\d\.\de-\d\d +5e-06 ok\n", out)
    assert out.count(" ok\n") == 59
    assert out.endswith("every check holds\n")


def test_a_wrong_gradient_is_told(capsys, monkeypatch):
    right = layers.lstm_step_backward

    def wrong(*arguments):
        dx, *others = right(*arguments)
        return dx * (1 + 1e-5), *others

    monkeypatch.setattr(layers, "lstm_step_backward", wrong)
    assert cli.main(["check"]) == 1
    out = capsys.readouterr().out
    backends = len(fastrnn.available_backends())
    assert len(re.findall(r"lstm_step +x .* MISSED\n", out)) == backends
    assert out.count("MISSED") == backends
    assert out.endswith(f"{backends} checks missed\n")


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, _ in inspect.getmembers(backend.Kernels, inspect.isfunction)
        if name not in (*fastrnn.optim.__all__, "make_work", "pack") and not name.startswith("_")
    ],
)
def test_a_kernel_that_gives_nan_is_told(name, monkeypatch):
    right = getattr(backend.kernels(), name)

    def poisoned(*arguments):
        result = right(*arguments)
        outputs = [
            a for a in arguments if isinstance(a, np.ndarray) and a.flags.writeable and a.dtype == float
        ]
        outputs[-1][...] = np.nan
        return result

    monkeypatch.setattr(backend.kernels(), name, poisoned)
    every = itertools.chain(check.values(), check.gradients())
    assert any(np.isnan(row.error) and not row.holds for row in every)
