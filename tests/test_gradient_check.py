"""The published gradient checkers, on functions whose slope is known."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from fastrnn import gradient_check


def test_of_a_number(rng, capsys):
    x = rng.standard_normal((2, 3))
    before = x.copy()
    gradient = gradient_check.eval_numerical_gradient(lambda x: np.sum(x**3), x)
    np.testing.assert_allclose(gradient, 3 * x**2, rtol=1e-8)
    np.testing.assert_array_equal(x, before)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    assert printed[0].startswith("(0, 0) ")
    gradient_check.eval_numerical_gradient(lambda x: 0.0, x, verbose=False)
    assert capsys.readouterr().out == ""


def test_of_an_array(rng):
    """Also where f returns the very array that it was given, or a view of it."""
    x, df = rng.standard_normal((2, 3, 2))
    np.testing.assert_allclose(
        gradient_check.eval_numerical_gradient_array(lambda x: x, x, df), df, rtol=1e-8
    )
    gradient = gradient_check.eval_numerical_gradient_array(lambda x: np.sin(x).T, x, df.T)
    np.testing.assert_allclose(gradient, np.cos(x) * df, rtol=1e-8)


def test_the_input_is_restored_when_f_fails():
    x = np.ones(3)
    with pytest.raises(ZeroDivisionError):
        gradient_check.eval_numerical_gradient_array(lambda x: 1 // 0, x, 1)
    np.testing.assert_array_equal(x, 1)


def test_of_blobs_and_nets(rng):
    blob = lambda array: SimpleNamespace(vals=array, diffs=rng.standard_normal(array.shape))  # noqa: E731
    a, b = blob(rng.standard_normal((2, 3))), blob(rng.standard_normal((2, 3)))
    output = blob(np.empty((2, 3)))

    def product(a, b, output):
        output.vals[...] = a.vals * b.vals

    expected = [b.vals * output.diffs, a.vals * output.diffs]
    net = SimpleNamespace(forward=lambda: product(a, b, output))
    for got in (
        gradient_check.eval_numerical_gradient_blobs(product, (a, b), output),
        gradient_check.eval_numerical_gradient_net(net, (a, b), output),
    ):
        for gradient, wanted in zip(got, expected, strict=True):
            np.testing.assert_allclose(gradient, wanted, rtol=1e-7)


def test_sparse(rng, capsys):
    x = rng.standard_normal((3, 4))
    gradient_check.grad_check_sparse(lambda x: np.sum(x**2), x, 2 * x, num_checks=5)
    gradient_check.grad_check_sparse(lambda x: np.sum(x**2), x, 3 * x, num_checks=1)
    errors = [float(e) for e in re.findall(r"relative error: (\S+)", capsys.readouterr().out)]
    assert len(errors) == 6
    assert max(errors[:5]) < 1e-7
    np.testing.assert_allclose(errors[5], 0.2, rtol=1e-6)
