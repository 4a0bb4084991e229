"""The race: answers are compared before anything is timed, and every competitor can start and do its task."""

import pytest

import fastrnn
from bench import race
from bench.workload import Task, batches, captions


@pytest.mark.parametrize("kind", ["train", "decode", "ragged", "product"])
def test_everybody_gives_the_same_answer(kind, monkeypatch):
    """Those that need nothing but fastrnn's own dependencies."""
    monkeypatch.setattr(race, "SECONDS", 0)
    monkeypatch.setattr(race.importlib.util, "find_spec", lambda name: None)
    task = Task(kind, "lstm", 3, 1)
    results = race.race(task, turns=2)
    names = [result.name for result in results]
    assert names[: len(fastrnn.available_backends())] == [
        f"fastrnn {name}" for name in fastrnn.available_backends()
    ]
    assert ("plain NumPy" in names) == (kind != "ragged")
    assert names[-1] == "cube"
    assert all(result.median > 0 for result in results)
    lines = list(race.report(task, results))
    assert len(lines) == len(results)
    assert lines[0].startswith(f"{kind} lstm N=3 threads=1: floor ")
    assert "1.00 (1.00 to 1.00)" in lines[1]


def test_a_wrong_answer_stops_the_race():
    task = Task("train", "lstm", 25, 2)
    race.check_answers(task, {"a": 70.0, "b": 70.001})
    with pytest.raises(RuntimeError, match=r"a answers 70.0, b 71.0"):
        race.check_answers(task, {"a": 70.0, "b": 71.0})
    with pytest.raises(RuntimeError, match="decode"):
        race.check_answers(task._replace(kind="decode"), {"a": [[1, 2]], "b": [[1, 3]]})


def test_captions_without_the_real_ones(monkeypatch, tmp_path):
    """Drawn to the same statistics: 10.2 words with a deviation of 1.8, distinct words as in real batches."""
    monkeypatch.setenv("FASTRNN_TEST_DATA", str(tmp_path))
    captions.cache_clear()
    batches.cache_clear()
    try:
        drawn = captions()
        words = (drawn > 2).sum(axis=1)
        assert abs(words.mean() - 10.2) < 0.3
        assert abs(words.std() - 1.8) < 0.2
        assert 1 <= words.min() <= words.max() <= 15
        assert drawn.max() < 1004
    finally:
        captions.cache_clear()
        batches.cache_clear()
