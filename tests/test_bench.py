"""Benchmarks: a wrong answer is never timed, and what became slower is named."""

import json
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

    def timed(function):
        raise AssertionError("timed")

    benchmark = SimpleNamespace(extra_info={}, __call__=timed)
    test_kernels.check(make_case("sgd", BENCHMARKED["toy"], "float64"), numpy_kernels, "toy")
    monkeypatch.setattr(numpy_kernels, "sgd", sgd)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_kernels.test_kernel(benchmark, "sgd", "toy", "float64", "numpy")


def times(directory, name, **environment):
    """Time the toy sgd in a process of its own; returns the file with the result."""
    path = directory / f"{name}.json"
    command = ["-m", "pytest", "bench", "-q", "-p", "slow", "-k", "sgd and toy and float32 and numpy"]
    options = ["--benchmark-enable", "--benchmark-max-time=0.05", f"--benchmark-json={path}"]
    environment = {"PYTHONPATH": str(directory), "PATH": "", **environment}
    result = subprocess.run(
        [sys.executable, *command, *options], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return path


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
    def result(**stats):
        return {"benchmarks": [{"fullname": name, "stats": s} for name, s in stats.items()]}

    def stats(q1, median, q3):
        return {"q1": q1, "median": median, "q3": q3}

    before = result(a=stats(9, 10, 11), b=stats(9, 10, 11), c=stats(9, 10, 11), gone=stats(1, 1, 1))
    after = result(a=stats(11, 12, 13), b=stats(11.5, 12, 13), c=stats(3, 4, 5), new=stats(1, 1, 1))
    assert compare.changes(before, after) == [
        compare.Change("a", 10, 12, False),
        compare.Change("b", 10, 12, True),
        compare.Change("c", 10, 4, True),
    ]


def test_results_that_have_nothing_in_common(tmp_path):
    path = tmp_path / "empty.json"
    path.write_text(json.dumps({"benchmarks": [], "machine_info": {}}))
    command = [sys.executable, "-m", "bench.compare", path, path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "no benchmark in common" in result.stderr
