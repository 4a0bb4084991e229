"""Benchmarks: a wrong answer is never timed, and what became slower is named."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import compare, test_kernels
from bench.cases import BENCHMARKED, make_case
from fastrnn.kernels import numpy_kernels

ROOT = Path(__file__).parents[1]


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    """A right one is."""

    def sgd(w, dw, learning_rate):
        w -= learning_rate * dw
        w[0, 0] *= 1.01

    benchmark = SimpleNamespace(extra_info={}, enabled=True)  # cannot be called: timing would be a TypeError
    test_kernels.check(make_case("sgd", BENCHMARKED["toy"], "float64"), numpy_kernels, "toy")
    monkeypatch.setattr(numpy_kernels, "sgd", sgd)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_kernels.test_kernel(benchmark, "sgd", "toy", "float64", "numpy")


def times(directory, name):
    """Time the toy sgd in two processes of their own; returns the directory with the results."""
    results = directory / name
    results.mkdir()
    for run in "12":
        command = ["-m", "pytest", "bench", "-q", "-p", "slow", "-k", "sgd and toy and float32 and numpy"]
        options = [
            "--benchmark-enable",
            "--benchmark-max-time=0.05",
            f"--benchmark-json={results}/{run}.json",
        ]
        result = subprocess.run(
            [sys.executable, *command, *options],
            env=os.environ | {"PYTHONPATH": str(directory)},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
    return results


def test_a_kernel_that_became_slower_is_named(tmp_path):
    """One of the two that are timed."""
    plugin = tmp_path / "slow.py"
    plugin.touch()
    before = times(tmp_path, "before")
    plugin.write_text(
        "import time\n"
        "from fastrnn.kernels import numpy_kernels\n"
        "fast = numpy_kernels.sgd\n"
        "numpy_kernels.sgd = lambda *a, **k: (time.sleep(0.002), fast(*a, **k))[1]\n"
    )
    after = times(tmp_path, "after")

    def compared(one, other):
        command = [sys.executable, "-m", "bench.compare", one, other]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    result = compared(before, after)
    assert result.returncode == 1
    slower = result.stdout.partition("faster")[0]
    assert "slower beyond their spread: " in slower
    assert "of 2\n  bench/test_kernels.py::test_kernel[sgd-toy-float32-numpy]: " in slower


def test_changes_within_the_spread_are_none():
    before = {"a": [9.0, 10.0, 11.0], "b": [9.0, 10.0, 11.0], "c": [9.0, 10.0, 11.0], "gone": [1.0]}
    after = {"a": [11.0, 12.0, 13.0], "b": [11.5, 12.0, 13.0], "c": [3.0, 4.0, 5.0], "new": [1.0]}
    assert compare.changes(before, after) == [
        compare.Change("a", 10, 12, False),
        compare.Change("b", 10, 12, True),
        compare.Change("c", 10, 4, True),
    ]


def test_results_that_are_none(tmp_path):
    (tmp_path / "1.json").write_text(json.dumps({"benchmarks": []}))
    with pytest.raises(ValueError, match="no results of pytest-benchmark there"):
        compare.medians(tmp_path)
