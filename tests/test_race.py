"""The race: answers are compared before anything is timed, and every competitor can start and do its task."""

import importlib.util
from typing import ClassVar

import numpy as np
import pytest

from fastrnn import backend
from fastrnn.bench import race, workload
from fastrnn.bench.race import BFLOAT16, CUBE, OURS, PEERS, PLAIN, Outcome, Peer, Result
from fastrnn.bench.workload import Task

SMALL = {"T": 4, "E": 6, "H": 8, "V": 30}
WITHOUT_EXTRAS = {*OURS, PLAIN}


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(race, "SECONDS", 0)


def names_of(kind, names):
    return [
        peer.name for peer in PEERS if kind in peer.kinds and peer.name in names and not race.missing(peer)
    ]


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_everybody_gives_the_same_answer(cell):
    """Those that need nothing but fastrnn's own dependencies, in every kind of task."""
    kinds = ["train", "forward", "epoch", "decode", "product"] + ["layer", "ragged"] * (cell == "lstm")
    tasks = [Task(kind, cell, 25, 1, **SMALL) for kind in kinds]
    outcomes = list(race.race(tasks, 2, WITHOUT_EXTRAS))
    assert [outcome.task for outcome in outcomes] == tasks
    for task, outcome in zip(tasks, outcomes, strict=True):
        assert list(outcome.results) == [*names_of(task.kind, WITHOUT_EXTRAS), CUBE]
        assert all(result.median > 0 and len(result.turns) == 2 for result in outcome.results.values())
        lines = list(race.report(outcome))
        assert lines[0].startswith(
            f"{task.kind} {cell.upper()} N=25, T=4, E=6, H=8, V=30, 1 thread: products "
        )
        assert len(lines) == len(outcome.results)
        assert "   1.00 (" in lines[1]


@pytest.mark.parametrize("package", ["torch", "jax", "onnxruntime"])
def test_a_competitor_of_the_extra_gives_the_same_answer(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'fastrnn[race]'")
    theirs = {peer.name for peer in PEERS if package in peer.needs}
    for cell in ("lstm", "rnn"):
        kinds = ["train", "forward", "epoch", "decode", "product"] + ["layer", "ragged"] * (cell == "lstm")
        tasks = [Task(kind, cell, 25, 1, **SMALL) for kind in kinds]
        for outcome in race.race(tasks, 1, {*theirs, "fastrnn numpy"}):
            assert outcome.results.keys() - {CUBE, "fastrnn numpy"} == set(
                names_of(outcome.task.kind, theirs)
            )
            assert not outcome.skipped


def test_who_is_not_installed_is_skipped_with_a_reason(monkeypatch):
    monkeypatch.setattr(race.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(backend, "available_backends", lambda: ("numpy",))
    (outcome,) = race.race([Task("forward", N=3, **SMALL)], 1)
    assert list(outcome.results) == ["fastrnn numpy", PLAIN, CUBE]
    of_this_kind = {peer.name for peer in PEERS if "forward" in peer.kinds}
    assert outcome.skipped.keys() == of_this_kind - outcome.results.keys()
    assert "'cython' is not part of this installation" in outcome.skipped["fastrnn cython"]
    assert outcome.skipped["ONNX Runtime"] == "onnx, onnxruntime not installed: pip install 'fastrnn[race]'"
    assert "  JAX                     skipped: jax not installed: pip install 'fastrnn[race]'" in race.report(
        outcome
    )


def test_who_fails_is_skipped_with_what_it_said(monkeypatch):
    broken = Peer("broken", ("no_such_module",), ("forward",))
    monkeypatch.setattr(race, "PEERS", (*PEERS, broken))
    (outcome,) = race.race([Task("forward", N=3, **SMALL)], 1, {"fastrnn numpy", "broken"})
    assert outcome.skipped == {
        "broken": "ModuleNotFoundError: No module named 'fastrnn.bench.peers.no_such_module' (exit code 1)"
    }


def test_who_fails_later_is_skipped_from_there_on(tmp_path, monkeypatch):
    """While it is timed, in the second of two tasks."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "from types import ModuleType\n"
        "module = sys.modules['fastrnn.bench.peers.failing'] = ModuleType('failing')\n"
        "def start(task):\n"
        "    from fastrnn.bench.peers import ours\n"
        "    answer, run = ours.start(task, 'numpy')\n"
        "    return answer, run if task.N == 3 else lambda count: 1 / 0\n"
        "module.start = start\n"
    )
    failing = Peer("failing", ("failing",), ("forward",))
    monkeypatch.setattr(race, "PEERS", (*PEERS, failing))
    tasks = [Task("forward", N=N, **SMALL) for N in (3, 4, 5)]
    outcomes = list(race.race(tasks, 1, {"fastrnn numpy", "failing"}))
    assert ["failing" in outcome.results for outcome in outcomes] == [True, False, False]
    assert [list(outcome.skipped) for outcome in outcomes] == [[], ["failing"], ["failing"]]
    assert outcomes[1].skipped["failing"].startswith("ZeroDivisionError")


def test_repetitions_are_counted_when_it_has_compiled(monkeypatch):
    """The first call takes a second, later ones a thousandth."""

    class Slow:
        calls: ClassVar = []

        def turn(self, count):
            self.calls.append(count)
            return [1.0 if len(self.calls) == 1 else 1e-3] * count, None

    monkeypatch.setattr(race, "SECONDS", 0.1)
    assert race._times({"slow": Slow()}, 2)["slow"].median == 1e-3
    assert Slow.calls == [1, 1, 100, 100, 100]


@pytest.mark.parametrize(
    "options", [{"kind": ["foo"]}, {"cell": ["gru"]}, {"only": ["foo"]}, {"kind": ["layer"], "cell": ["rnn"]}]
)
def test_unknown_options(options):
    with pytest.raises(race.typer.BadParameter, match=r"expected|lstm"):
        race.main(**({"kind": ["train"], "cell": ["lstm"], "n": [3], "threads": [1], "only": None} | options))


def test_fastrnn_itself_must_not_fail(monkeypatch):
    ours = Peer("fastrnn numpy", ("ours", "no such backend"), ("forward",))
    monkeypatch.setattr(race, "PEERS", (ours,))
    with pytest.raises(
        RuntimeError, match=r"fastrnn numpy, forward LSTM N=3.*ValueError: backend: expected one"
    ):
        list(race.race([Task("forward", N=3, **SMALL)], 1))


def test_a_wrong_answer_stops_the_race():
    task = Task("train")
    race.check_answers(task, {"a": 70.0, "b": 70.001})
    with pytest.raises(RuntimeError, match=r"a answers 70.0, b 71.0"):
        race.check_answers(task, {"a": 70.0, "b": 71.0})
    with pytest.raises(RuntimeError, match="decode"):
        race.check_answers(task._replace(kind="decode"), {"a": [[1, 2]], "b": [[1, 3]]})


def test_bfloat16_may_be_coarser():
    task, (coarse, _) = Task("train"), BFLOAT16
    race.check_answers(task, {"a": 70.0, coarse: 70.1})
    with pytest.raises(RuntimeError, match="bfloat16"):
        race.check_answers(task, {"a": 70.0, coarse: 71.0})


def test_a_ratio_and_its_spread():
    results = {"a": Result([1.0, 2.0, 3.0], None), "b": Result([4.0, 3.0, 5.0], None)}
    assert race.ratio(results, "b", "a") == (2.0, 1.0, 5.0)
    assert race.ratio(results, "a", "a") == (1.0, 1 / 3, 3.0)


def test_turns_of_two_rounds_are_joined():
    task, cost = Task("train"), workload.Cost(1.0, 1.0)
    first = Outcome(task, {"a": Result([1.0, 2.0], 7), "gone": Result([1.0], None)}, {}, cost)
    again = Outcome(task, {"a": Result([3.0, 4.0], 9)}, {"gone": "failed"}, cost)
    joined = race.joined(first, again)
    assert joined == (task, {"a": ([1.0, 2.0, 3.0, 4.0], 7), "gone": ([1.0], None)}, {}, cost)
    assert joined.results["a"].median == 2.5
    assert race.ratio(joined.results, "a", "gone") == (2.5, 1.0, 4.0)


def test_memory_is_that_of_the_task():
    """A million parameters more, with their gradients and Adam's state, are 16 MB more at least."""
    sizes = {"T": 4, "E": 6, "V": 30}
    tasks = [Task("train", N=3, H=H, **sizes) for H in (8, 500)]
    used = [next(race.race([task], 1, {"fastrnn numpy"})).results["fastrnn numpy"].memory for task in tasks]
    if None in used:
        pytest.skip("this system does not tell a process's peak memory")
    assert 16e6 < used[1] - used[0] < 100e6


def test_costs_of_tasks(monkeypatch):
    """Counted by hand for two captions of which one token is read twice."""
    captions = np.array([[1, 5, 2, 0], [1, 6, 7, 2]])
    monkeypatch.setattr(workload, "batches", lambda task: [(np.zeros((2, workload.D)), captions)])
    task = Task("forward", N=2, T=3, E=4, H=5, V=10)
    S, U = 5, 4  # START, 5 and START, 6, 7
    forward = 2 * (S * 5 * 20 + U * 4 * 20 + S * 5 * 10 + 2 * workload.D * 5)
    assert workload.cost(task).flops == forward
    assert workload.cost(task._replace(kind="train")).flops == 3 * forward - 2 * 2 * workload.D * 5
    assert workload.cost(task._replace(kind="product")).flops == 2 * 2 * 5 * 20
    assert workload.cost(task._replace(kind="layer")).flops == 3 * 2 * 6 * (4 + 5) * 20
    assert workload.cost(task._replace(kind="ragged")).flops == 3 * 2 * S * (4 + 5) * 20
    assert workload.cost(task._replace(kind="decode")).flops == 2 * 2 * (
        workload.D * 5 + 30 * (5 * 20 + 5 * 10)
    )
    assert Outcome(task, {CUBE: Result([2.0], None)}, {}, workload.cost(task)).rate == 2048**3


@pytest.mark.parametrize(("V", "T"), [(1004, 16), (5000, 16), (1004, 40)])
def test_captions_without_the_real_ones(monkeypatch, tmp_path, V, T):
    """Drawn to the same statistics: 10.2 words, deviation 1.8, or as many more as there are steps."""
    monkeypatch.setenv("FASTRNN_TEST_DATA", str(tmp_path))
    drawn, whose = workload.captions.__wrapped__(V, T)
    assert whose == "drawn to the statistics of COCO's"
    assert drawn.shape == (25_000, T + 1)
    words = (drawn > 2).sum(axis=1)
    assert abs(words.mean() / (10.2 * T / 16) - 1) < 0.03
    assert abs(words.std() / (1.8 * T / 16) - 1) < 0.1
    assert 1 <= words.min() <= words.max() <= T - 1
    assert (drawn[:, 0] == 1).all()
    assert (drawn == 2).sum() == len(drawn)
    assert drawn.max() == V - 1
    ends = np.argmax(drawn == 2, axis=1)
    assert ((drawn == 0).sum(axis=1) == T - ends).all()
    distinct = np.mean([len(np.unique(drawn[i : i + 100, :-1])) for i in range(0, 2000, 100)])
    assert V != 1004 or T != 16 or 260 < distinct < 420  # COCO's have 310 in a hundred captions
