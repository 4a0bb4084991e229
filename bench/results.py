"""What the benchmarks found, as it is kept in ``bench/results/``, and what was asked for."""

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from fastrnn import files
from fastrnn.bench import cases, compare, workload
from fastrnn.bench.race import CUBE, PLAIN, PYTORCH, Outcome, Ratio, Result, ratio
from fastrnn.bench.workload import CUBE_FLOPS, Task

TASKS = "tasks.json"
CYTHON, NUMBA, NUMPY = "fastrnn cython", "fastrnn numba", "fastrnn numpy"
ROWS = (8, 13, 25, 50, 100, 256)  # of the recurrent product


class Results(NamedTuple):
    """Everything that ``make bench`` measures but single kernels."""

    machine: dict[str, str]
    roofs: dict[str, dict[str, float]]  # by number of threads: FLOP/s and bytes a second
    outcomes: list[Outcome]
    memory: list[Outcome]  # raced in processes that did nothing before
    stages: dict[str, dict[str, float]]  # seconds by backend and stage

    def of(self, task: Task) -> Outcome | None:
        """The outcome of a task, if it was raced in."""
        return next((outcome for outcome in self.outcomes if outcome.task == task), None)

    def floor(self, outcome: Outcome) -> float:
        """Seconds that a task's products take at the machine's rate, or its bytes from the last cache."""
        bandwidth = self.roofs.get(str(outcome.task.threads), {}).get("last cache", float("inf"))
        return max(outcome.cost.flops / outcome.rate, outcome.cost.nbytes / bandwidth)

    def write(self, directory: Path) -> None:
        """Write ``tasks.json``. Raises ``OSError`` where it cannot be written."""
        files.write_text(directory / TASKS, json.dumps(self._asdict() | {
            name: [_to_json(outcome) for outcome in getattr(self, name)] for name in ("outcomes", "memory")
        }, indent=1) + "\n")  # fmt: skip

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read what :meth:`write` wrote."""
        found = json.loads((directory / TASKS).read_text())
        for name in ("outcomes", "memory"):
            found[name] = [_from_json(outcome) for outcome in found[name]]
        return cls(**found)


def _to_json(outcome: Outcome) -> dict[str, Any]:
    results = {name: result._asdict() for name, result in outcome.results.items()}
    return {
        "task": outcome.task._asdict(),
        "results": results,
        "skipped": outcome.skipped,
        "cost": outcome.cost._asdict(),
    }


def _from_json(outcome: dict[str, Any]) -> Outcome:
    results = {name: Result(**result) for name, result in outcome["results"].items()}
    return Outcome(Task(**outcome["task"]), results, outcome["skipped"], workload.Cost(**outcome["cost"]))


# ---------------------------------------------------------------------------------------------------
# Kernels under the roofline

BACKENDS = ("cython", "numba", "numpy")
ROOFED = (
    "lstm_forward", "lstm_backward", "rnn_forward", "rnn_backward", "vocab_loss", "affine_forward",
    "affine_backward", "lstm_step", "softmax_loss", "embedding_backward", "adam",
)  # fmt: skip


class Roofed(NamedTuple):
    """A kernel at N=100 in float32."""

    kernel: str
    intensity: float  # operations for each byte of inputs and outputs
    roof: float  # FLOP/s that the machine allows it, from its last cache
    speeds: dict[str, float]  # FLOP/s by backend


def median(times: dict[str, list[float]], kernel: str, size: str, dtype: str, backend: str) -> float | None:
    """Seconds of a benchmark, the median of all runs, from :func:`compare.medians`; None without any."""
    runs = times.get(f"bench/test_kernels.py::test_kernel[{kernel}-{size}-{dtype}-{backend}]")
    return statistics.median(runs) if runs else None


def roofs_of(results: Results, runs: list[compare.Run]) -> tuple[int, dict[str, float]]:
    """On how many threads the kernels ran, and the machine's limits on as many."""
    threads = runs[0].benchmarks[0]["extra_info"]["threads"]
    return threads, results.roofs[str(threads)]


def roofline(results: Results, runs: list[compare.Run]) -> list[Roofed]:
    """How near each kernel is to what the machine allows it (S. Williams et al., Roofline, 2009)."""
    _, roofs = roofs_of(results, runs)
    times, found = compare.medians(runs), []
    for kernel in ROOFED:
        case = cases.make_case(kernel, cases.BENCHMARKED["N100"], np.float32)
        operations, intensity = cases.flops(case), cases.flops(case) / cases.nbytes(case)
        seconds = {backend: median(times, kernel, "N100", "float32", backend) for backend in BACKENDS}
        speeds = {backend: operations / took for backend, took in seconds.items() if took}
        found.append(
            Roofed(kernel, intensity, min(intensity * roofs["last cache"], roofs["products"]), speeds)
        )
    return found


# ---------------------------------------------------------------------------------------------------
# Goals


class Cell(NamedTuple):
    """A goal, and what was measured."""

    asked: float  # at least
    measured: Ratio | None  # None where somebody could not compete

    @property
    def missed(self) -> bool:
        """Whether the goal was missed."""
        return self.measured is not None and self.measured.value < self.asked


class Goal(NamedTuple):
    """A row of the table of goals, with a cell for each N."""

    what: str
    cells: dict[int, Cell]


def against(results: Results, task: Task, ours: str, theirs: Iterable[str]) -> Ratio | None:
    """How many times as long the fastest of them took as ours; None if nobody or ours was not there."""
    outcome = results.of(task)
    present = [name for name in theirs if outcome and name in outcome.results]
    if outcome is None or not present or ours not in outcome.results:
        return None
    return ratio(outcome.results, min(present, key=lambda name: outcome.results[name].median), ours)


def of_floor(results: Results, task: Task, name: str = CYTHON) -> Ratio | None:
    """Which fraction of its time somebody's products would take at the rate of the machine's roof."""
    measured = against(results, task, name, [CUBE])
    outcome = results.of(task)
    share = outcome.cost.flops / CUBE_FLOPS if outcome else 0.0
    return measured and Ratio(*(share * number for number in measured))


def _two_against_one(results: Results, task: Task) -> Ratio | None:
    one, two = (results.of(task._replace(threads=threads)) for threads in (1, 2))
    if not (one and two and CYTHON in one.results and CYTHON in two.results):
        return None
    before, after = one.results[CYTHON], two.results[CYTHON]
    return Ratio(
        before.median / after.median,
        min(before.turns) / max(after.turns),
        max(before.turns) / min(after.turns),
    )


TOY = Task("layer", N=3, threads=2, T=4, E=4, H=5, V=10)


def goals(results: Results) -> list[Goal]:
    """What the kernels were asked for at the published sizes, by captions, and what was measured."""

    def goal(what: str, asked: dict[int, float], measured: Callable[[int], Ratio | None]) -> Goal:
        return Goal(what, {N: Cell(least, measured(N)) for N, least in asked.items()})

    def train(N: int, threads: int = 2, cell: str = "lstm") -> Task:
        return Task("train", cell, N, threads)

    return [
        goal("Cython, LSTM training, 2 threads, against PyTorch's best mode", {25: 1.8, 100: 1.8, 256: 1.8},
             lambda N: against(results, train(N), CYTHON, PYTORCH)),
        goal("Cython, LSTM training, 1 thread, against PyTorch's best mode", {25: 1.65, 100: 1.65, 256: 1.65},
             lambda N: against(results, train(N, 1), CYTHON, PYTORCH)),
        goal("Cython, RNN training, 2 threads, against PyTorch's best mode", {25: 1.4, 100: 1.4, 256: 1.4},
             lambda N: against(results, train(N, 2, "rnn"), CYTHON, PYTORCH)),
        goal("Cython, LSTM training, 2 threads, against plain NumPy", {25: 3, 100: 3, 256: 3},
             lambda N: against(results, train(N), CYTHON, [PLAIN])),
        goal("Cython, LSTM training, 2 threads, floor / time", {25: 0.65, 100: 0.8, 256: 0.85},
             lambda N: of_floor(results, train(N))),
        goal("Cython, LSTM training, 2 threads against 1", {100: 1.85, 256: 1.85},
             lambda N: _two_against_one(results, train(N))),
        goal("Cython, LSTM layer, every position live, against PyTorch", {25: 1.1, 100: 1},
             lambda N: against(results, Task("layer", N=N, threads=2), CYTHON, PYTORCH)),
        goal("Cython, LSTM layer, lengths of real captions, against PyTorch", {25: 1.35, 100: 1.35},
             lambda N: against(results, Task("ragged", N=N, threads=2), CYTHON, PYTORCH)),
        goal("Cython, LSTM layer, H=5, against the NumPy backend", {3: 1},
             lambda N: against(results, TOY, CYTHON, [NUMPY])),
        goal("Cython, greedy captions, against plain NumPy", {1: 1.6},
             lambda N: against(results, Task("decode", N=N, threads=2), CYTHON, [PLAIN])),
        goal("Cython, greedy captions, against PyTorch", {100: 2.2},
             lambda N: against(results, Task("decode", N=N, threads=2), CYTHON, PYTORCH)),
        *(goal(f"Cython, recurrent product, {threads} thread{'s' * (threads > 1)}, against the cube's rate",
               dict.fromkeys(ROWS, 0.95),
               lambda N, threads=threads: of_floor(results, Task("product", N=N, threads=threads)))
          for threads in (1, 2)),
        goal("Numba, LSTM training, 2 threads, against plain NumPy", {25: 2, 100: 2, 256: 2},
             lambda N: against(results, train(N), NUMBA, [PLAIN])),
        goal("Numba, LSTM training, 2 threads, against PyTorch's best mode", {100: 1, 256: 1},
             lambda N: against(results, train(N), NUMBA, PYTORCH)),
    ]  # fmt: skip
