"""Benchmarks: a wrong answer is never timed, what became slower is named, and pages say what was measured."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import fastrnn
from fastrnn import backend, cli
from fastrnn.bench import cases, compare, machine, page, pictures, race, report, test_kernels
from fastrnn.bench.cases import BENCHMARKED, CASES, make_case
from fastrnn.bench.peers import stages
from fastrnn.bench.race import CUBE, PLAIN, Outcome, Result
from fastrnn.bench.results import NUMPY, Results, goals, of_floor
from fastrnn.bench.workload import CUBE_FLOPS, Cost, Task
from fastrnn.kernels import numpy_kernels

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "bench" / "results"


# ---------------------------------------------------------------------------------------------------
# Kernels


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    """A right one is."""

    def sgd(w, dw, learning_rate):
        w -= learning_rate * dw
        w[0, 0] *= 1.01

    benchmark = SimpleNamespace(extra_info={}, enabled=True)  # cannot be called: timing would be a TypeError
    test_kernels.check(make_case("sgd", BENCHMARKED["toy"], "float64"), numpy_kernels, "toy")
    monkeypatch.setattr(numpy_kernels, "sgd", sgd)
    with pytest.raises(AssertionError, match="w: off by"):
        test_kernels.test_kernel(benchmark, "sgd", "toy", "float64", "numpy")


@pytest.mark.parametrize("kernel", CASES)
def test_nothing_but_numbers_is_right(kernel, monkeypatch):
    """A kernel that leaves an output unwritten leaves NaN there."""
    name = next(iter(make_case(kernel, BENCHMARKED["toy"], "float64").outputs), None)
    if name is None:
        return  # the update rules have state only
    monkeypatch.setattr(numpy_kernels, kernel, lambda **arguments: 0.0)
    test_kernels.exact.cache_clear()
    with pytest.raises(AssertionError, match="off by nan"):
        test_kernels.check(make_case(kernel, BENCHMARKED["toy"], "float64"), numpy_kernels, "toy")
    test_kernels.exact.cache_clear()


def times(directory, name, kernels="sgd and toy and float32 and numpy"):
    """Time the toy sgd, or other kernels, in two processes; returns the directory with the results."""
    results = directory / name
    results.mkdir()
    for run in "12":
        command = ["-m", "pytest", "bench", "-q", "-p", "slow", "-k", kernels, "--benchmark-enable"]
        options = ["--benchmark-max-time=0.05", f"--benchmark-json={results}/kernels-{run}.json"]
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
    command = [sys.executable, "-m", "fastrnn.bench.compare", before, after]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    slower = result.stdout.partition("faster")[0]
    assert "slower beyond their spread: " in slower
    assert "of 2\n  bench/test_kernels.py::test_kernel[sgd-toy-float32-numpy]: " in slower

    saved = json.loads((before / "kernels-1.json").read_text())
    assert "node" not in saved["machine_info"]
    assert saved["machine_info"]["processor"] == machine.describe()["processor"]
    assert all("data" not in benchmark["stats"] for benchmark in saved["benchmarks"])
    assert all(benchmark["extra_info"]["first call, s"] > 0 for benchmark in saved["benchmarks"])


def test_changes_within_the_spread_are_none():
    """Runs of the same are up to a tenth apart, those of a lucky benchmark as well when they come again."""
    before = {f"a-toy-{i}": [10.0, 11.0] for i in range(5)} | {"lucky-toy": [10.0, 10.0], "gone-toy": [1.0]}
    after = {f"a-toy-{i}": [11.0, 10.0] for i in range(5)} | {"lucky-toy": [10.9, 10.9], "new-toy": [1.0]}
    after |= {"a-toy-0": [12.0, 13.0], "a-toy-1": [12.5, 13.0], "a-toy-2": [3.0, 3.2]}
    found = compare.changes(before, after)
    assert [change.name for change in found if change.beyond_spread] == ["a-toy-1", "a-toy-2"]
    assert found[0] == compare.Change("a-toy-1", 10.5, 12.75, True)
    assert found[-1] == compare.Change("a-toy-2", 10.5, 3.1, True)
    assert len(found) == 6


def test_what_all_benchmarks_of_a_size_share_is_the_machines():
    before = {f"a-{size}-{i}": [1.0, 1.01] for size in ("toy", "N25") for i in range(9)}
    after = {name: [1.2 * t if "toy" in name else t for t in times] for name, times in before.items()}
    after["a-toy-3"] = [1.8, 1.81]
    assert compare.shifts(before, after) == pytest.approx({"N25": 1.0, "toy": 1.2})
    assert [change.name for change in compare.changes(before, after) if change.beyond_spread] == ["a-toy-3"]


def test_results_of_another_machine_are_told(tmp_path, capsys):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        benchmark = {"fullname": "a-toy", "stats": {"median": 1.0}}
        run = {"machine_info": {"processor": name}, "benchmarks": [benchmark]}
        (tmp_path / name / "kernels-1.json").write_text(json.dumps(run))
    with pytest.raises(compare.typer.Exit):
        compare.main(tmp_path / "there", tmp_path / "here")
    assert "there was measured on another machine (there): this tells little" in capsys.readouterr().out


def test_results_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results of the kernel benchmarks"):
        compare.read(tmp_path)


def test_costs_of_kernels():
    """Counted by hand: three sequences of four, H=5, D=4, six distinct inputs, a vocabulary of 10."""
    size = BENCHMARKED["toy"]
    each = {kernel: make_case(kernel, size, "float32") for kernel in CASES}
    flops = {kernel: cases.flops(case) for kernel, case in each.items()}
    assert flops["lstm_forward"] == 2 * (6 * 4 * 20 + 12 * 5 * 20)
    assert flops["lstm_backward"] == 2 * flops["lstm_forward"]
    assert flops["rnn_forward"] == flops["lstm_forward"] / 4
    assert flops["lstm_step"] == 2 * 3 * 5 * 20
    assert flops["affine_backward"] == 2 * flops["affine_forward"] == 4 * 12 * 4 * 5
    assert flops["embedding_backward"] == 12 * 4
    live = np.count_nonzero(each["vocab_loss"].inputs["mask"])
    assert flops["vocab_loss"] == 6 * live * 5 * 10
    assert flops["softmax_loss"] == 5 * np.count_nonzero(each["softmax_loss"].inputs["mask"]) * 10
    assert flops["sgd"] == 2 * 10 * 4
    assert cases.nbytes(each["sgd"]) == 3 * 10 * 4 * 4  # w is read and written, dw read
    assert cases.nbytes(each["affine_forward"]) == 4 * (12 * 4 + 4 * 5 + 5 + 12 * 5)


# ---------------------------------------------------------------------------------------------------
# The report


def outcome(task, **seconds):
    results = {name.replace("_", " "): Result([s, s], 2**20) for name, s in seconds.items()}
    everybody = results | {CUBE: Result([0.05, 0.05], None)}
    return Outcome(task, everybody, {"JAX": "jax not installed"}, Cost(CUBE_FLOPS, 2e9))


def test_a_missed_goal_is_marked():
    """Met, just missed, and not measured."""
    tasks = [Task("train", N=N, threads=2) for N in (25, 100)]
    raced = [
        outcome(tasks[0], fastrnn_cython=10, PyTorch_live=18, PyTorch_padded=20, plain_NumPy=29),
        outcome(tasks[1], fastrnn_cython=10, PyTorch_live=18, PyTorch_packed=17.98, plain_NumPy=31),
    ]
    results = Results({}, {}, raced, [], {})
    training, *_, numba, _ = goals(results)
    assert training.cells[25].measured == (1.8, 1.8, 1.8)
    assert [training.cells[N].missed for N in (25, 100, 256)] == [False, True, False]
    assert numba.cells[25].measured is None
    lines = list(page.goal_table(results))
    first = next(line for line in lines if line.startswith("| Cython, LSTM training, 2 threads"))
    assert [cell.strip() for cell in first.split("|") if cell.strip()][1:] == [
        "**1.80** (1.80 to 1.80), asked 1.8",
        "**1.798** (1.80 to 1.80), asked 1.8 ✗",
        "not measured, asked 1.8",
    ]
    numpy = next(
        line for line in lines if line.startswith("| Cython, LSTM training, 2 threads, against plain NumPy")
    )
    assert "**2.90** (2.90 to 2.90), asked 3 ✗" in numpy
    assert "**3.10** (3.10 to 3.10), asked 3 |" in numpy
    marks = sum(line.count("✗") for line in lines[2:])
    assert lines[0].endswith(
        f"✗ marks the {marks} of {sum(len(goal.cells) for goal in goals(results))} that are missed."
    )


def test_the_floor_of_a_task():
    """The products or the memory traffic, whichever takes longer; a goal's are the products alone."""
    raced = outcome(Task("train", N=25, threads=2), fastrnn_cython=0.1)
    slow, fast = (Results({}, {"2": {"last cache": speed}}, [raced], [], {}) for speed in (20e9, 80e9))
    assert (slow.floor(raced), fast.floor(raced)) == (0.1, 0.05)
    assert of_floor(slow, raced.task).value == 0.5


def test_every_goal_belongs_to_a_task_that_is_raced_in():
    """On a machine with two cores or more."""
    raced = {task for group in report.groups() for task in group.tasks}
    fake = [
        outcome(task, **{name.replace(" ", "_"): 1.0 for name in (*race.OURS, *race.PYTORCH, PLAIN)})
        for task in raced
    ]
    cells = [cell for goal in goals(Results({}, {}, fake, [], {})) for cell in goal.cells.values()]
    if backend.physical_cores() >= 2:
        assert all(cell.measured for cell in cells)


@pytest.fixture
def small(monkeypatch):
    """A report in seconds: small sizes, one repetition."""
    monkeypatch.setattr(race, "SECONDS", 0)
    monkeypatch.setattr(machine, "TRIADS", {"memory": 2**20, "last cache": 2**16})
    sizes = {"T": 4, "E": 6, "H": 8, "V": 30}
    groups = [
        report.Group([Task("train", N=25, **sizes), Task("forward", N=5, **sizes)], {*race.OURS, PLAIN}),
        report.Group([Task("train", N=25, threads=2, **sizes)], {*race.OURS, PLAIN}, {NUMPY, PLAIN}),
    ]
    monkeypatch.setattr(report, "groups", lambda: groups[: backend.physical_cores()])
    monkeypatch.setattr(report, "MEMORY", (Task("train", N=5, **sizes),))
    monkeypatch.setattr(report, "STAGES", Task("train", N=5, **sizes))


def test_the_whole_report(small, tmp_path, capsys):
    """Measured, written, read, drawn, and shown by a README between its marks."""
    (tmp_path / "slow.py").touch()
    directory = times(tmp_path, "results", "adam and N100 and float32")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    report.main(directory, readme)
    results = Results.read(directory)
    assert [o.task.kind for o in results.outcomes][:2] == ["train", "forward"]
    assert set(results.stages) == set(fastrnn.available_backends())
    assert all(
        {"lstm_forward", "vocab_loss", "adam", stages.REST} <= of.keys() for of in results.stages.values()
    )
    assert all(of["lstm_forward"] > 0 and of[stages.REST] > 0 for of in results.stages.values())
    assert results.roofs["1"]["products"] > 1e8
    lines = (directory / page.PAGE).read_text().splitlines()
    assert any(
        line.startswith("**forward LSTM N=5, T=4, E=6, H=8, V=30, 1 thread**, floor ") for line in lines
    )
    for name in (pictures.SPEEDUP, pictures.ROOFLINE, pictures.SCALING, pictures.STAGES):
        with Image.open(directory / name) as picture:
            assert picture.width > 600
        assert any(f"]({name})" in line for line in lines)
    shown = readme.read_text()
    assert shown.startswith(f"before\n{page.BEGIN}\nMeasured on ")
    assert shown.endswith(f"\n{page.END}\nafter\n")
    assert "](results/roofline.png)" in shown
    assert "old" not in shown


def test_a_readme_without_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="expected a line '<!-- written by make bench -->'"):
        page.renew(readme, ["a"])
    assert readme.read_text() == "nothing"


def test_the_readme_shows_what_was_measured():
    """Nobody typed a figure: the pages are those of the results that are kept."""
    results = Results.read(COMMITTED)
    readme = (ROOT / "README.md").read_text()
    shown = readme.partition(page.BEGIN)[2].partition(page.END)[0]
    assert shown.strip() == "\n".join(page.summary(results, Path("bench/results"))).strip()
    assert (COMMITTED / page.PAGE).read_text() == "\n".join(
        page.page(results, compare.read(COMMITTED))
    ) + "\n"


def test_the_short_report(monkeypatch, capsys):
    monkeypatch.setattr(race, "SECONDS", 0)
    monkeypatch.setattr(race.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench"]) == 0
    shown = capsys.readouterr().out
    assert "processor" in shown
    assert "train LSTM N=25, " in shown
    assert "decode LSTM N=1, " in shown
    assert "JAX                     skipped: jax not installed: pip install 'fastrnn[race]'" in shown


def test_scaling(tmp_path, monkeypatch):
    """The page's figures are those of the model, worked out by hand for some cells."""
    from fastrnn.bench import scaling

    monkeypatch.setattr(scaling, "compute", lambda N: 0.004 + 0.0005 * N)
    monkeypatch.setattr(scaling, "allreduce", lambda ranks, size: 0.001 * ranks)
    monkeypatch.setattr(scaling, "summing", lambda size: 1e10)
    page = tmp_path / "scaling.md"
    page.write_text(f"before\n{scaling.MARK}\nold\n<!-- to here -->\nafter\n")
    scaling.main(page)
    text = page.read_text()
    assert text.startswith(f"before\n{scaling.MARK}\nMeasured on ")
    assert text.endswith("\n<!-- to here -->\nafter\n")
    assert "old" not in text
    assert "takes 2.0 ms with 2 ranks and 4.0 with 4" in text
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| 4 |")]
    nbytes = 4 * sum(w.size for w in scaling.workload.model(Task("train")).params.values())
    for row, share in zip(rows, (100, 100), strict=True):  # 4 machines: 100 each, or 400 by 4
        seconds = 0.054 + 4 * 50e-6 + 0.75 * nbytes * (2 / 1e9 + 1 / 1e10)
        alone = 0.054 / 100 if row is rows[0] else (0.004 + 0.2) / 400
        assert float(row[1]) == round(1e3 * seconds, 1)
        assert float(row[2]) == round(4 * share / seconds * alone, 1)
        assert float(row[3]) == round(400_135 / (4 * share) * seconds)


def test_the_measurements_of_scaling():
    from fastrnn.bench import scaling

    assert 0 < scaling.compute(2, seconds=0.01) < 5
    assert scaling.summing(1000) > 0
    pytest.importorskip("mpi4py")
    assert 0 < scaling.allreduce(2, 1000) < 1


def test_feeding(tmp_path, capsys, monkeypatch):
    from fastrnn.bench import feeding
    from fastrnn.data import prepare_data
    from tests.datasets import write_coco

    prepare_data(tmp_path / "data", **write_coco(tmp_path / "coco"), min_count=1)
    feeding.main(tmp_path / "data")
    alone, trained, memory = capsys.readouterr().out.splitlines()[-3:]
    assert alone.startswith("kernels alone: ")
    assert "an epoch of training: " in trained
    if Path("/proc/self/status").exists():
        assert 10 < float(memory.split()[2].replace(",", "")) < 2000
    epoch = feeding.epoch

    def wrong(data, run):
        rate, memory, losses = epoch(data, run)
        return rate, memory, [loss + 1e-9 for loss in losses]

    monkeypatch.setattr(feeding, "epoch", wrong)
    with pytest.raises(RuntimeError, match="other losses on the same minibatches"):
        feeding.main(tmp_path / "data")
