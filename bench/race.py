"""The race: whole tasks by fastrnn and by what a user would pick instead, on the same work.

``python -m bench.race --help`` tells the options. Competitors are processes of their own that take turns,
because idle thread pools in one process spin against the running one. Before anything is timed, all answers
must agree. Times are medians over all turns; a ratio is that of the medians, its spread the quartiles of the
ratios of single turns.
"""

import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

import fastrnn
from bench.workload import DECODED, STEPS, D, E, H, Task, V, batches

TORCH = {f"PyTorch {mode}": ["pytorch", mode] for mode in ("padded", "packed", "live")}
CUBE = "cube"
SECONDS = 0.4  # of a turn


def competitors(task: Task) -> dict[str, list[str]]:
    """Name and module with arguments of everybody who can do a task; PyTorch only where it is installed."""
    ours = {f"fastrnn {name}": ["ours", name] for name in fastrnn.available_backends()}
    torch = dict(TORCH) if importlib.util.find_spec("torch") else {}
    if torch and task.kind in ("decode", "product"):
        torch = {"PyTorch": ["pytorch", "padded"]}
    if task.kind in ("layer", "ragged"):
        torch.pop("PyTorch live", None)
    published = {} if task.kind in ("layer", "ragged") else {"plain NumPy": ["published"]}
    return ours | torch | published


class Competitor:
    """A process that does a task when it is its turn."""

    def __init__(self, task: Task, command: list[str]) -> None:
        threads = {f"{library}_NUM_THREADS": str(task.threads) for library in ("OMP", "OPENBLAS", "MKL")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.peers", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads,
        )
        self.answer = self._ask(json.dumps(task._asdict()))["answer"]

    def _ask(self, line: str) -> Any:
        assert self.process.stdin and self.process.stdout  # noqa: PT018
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(map(str, self.process.args))} ended")  # type: ignore[arg-type]
        return json.loads(answer)

    def turn(self, count: int) -> list[float]:
        """Seconds of each of so many repetitions."""
        seconds: list[float] = self._ask(str(count))["seconds"]
        return seconds

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


class Result(NamedTuple):
    """What a competitor took for a task, in seconds."""

    name: str
    median: float
    turns: list[float]  # the median of each turn


def race(task: Task, turns: int) -> list[Result]:
    """Let everybody do a task in turns. Raises ``RuntimeError`` where the answers differ."""
    with ExitStack() as stack:
        everybody = {}
        for name, command in {**competitors(task), CUBE: ["cube"]}.items():
            everybody[name] = Competitor(task, command)
            stack.callback(everybody[name].close)
        check_answers(task, {name: one.answer for name, one in everybody.items() if name != CUBE})
        counts = {}
        for name, one in everybody.items():
            one.turn(2)  # warm up
            counts[name] = max(3, round(SECONDS / min(one.turn(3))))
        times: dict[str, list[list[float]]] = {name: [] for name in everybody}
        for _ in range(turns):
            for name, one in everybody.items():
                time.sleep(0.05)  # until the pools of the last one sleep
                times[name].append(one.turn(counts[name]))
    return [
        Result(name, statistics.median(itertools.chain(*of)), [statistics.median(turn) for turn in of])
        for name, of in times.items()
    ]


def check_answers(task: Task, answers: dict[str, Any]) -> None:
    """Raise ``RuntimeError`` unless all answers agree with the first."""
    first, *others = answers
    for other in others:
        a, b = np.array(answers[first]), np.array(answers[other])
        words = task.kind == "decode"  # where a tie may fall either way
        if not (np.mean(a == b) > 0.98 if words else np.allclose(a, b, rtol=1e-4)):
            raise RuntimeError(f"{task}: {first} answers {answers[first]}, {other} {answers[other]}")


def floor_flops(task: Task) -> float:
    """Floating-point operations of a task's live, de-duplicated products."""
    m = 4 if task.cell == "lstm" else 1
    if task.kind == "product":
        return 2.0 * task.N * H * m * H
    if task.kind == "decode":
        return 2.0 * task.N * (D * H + DECODED * (H * m * H + H * V))
    if task.kind == "layer":
        return 3 * 2.0 * task.N * STEPS * (E + H) * m * H
    live, distinct = [], []
    for _, captions in batches(task.N):
        alive = captions[:, 1:] != 0
        live.append(np.sum(alive))
        distinct.append(len(np.unique(captions[:, :-1][alive])))
    S, U = np.mean(live), np.mean(distinct)
    if task.kind == "ragged":
        return 3 * 2.0 * S * (E + H) * m * H
    return 3 * 2.0 * (S * H * m * H + U * E * m * H + S * H * V) + 2 * 2.0 * task.N * D * H


def report(task: Task, results: list[Result]) -> Iterator[str]:
    """Lines of a table: times, ratios to the first competitor, and how near it is to the floor."""
    *raced, cube = results
    ours = raced[0]
    rate = 2 * 2048**3 / cube.median
    floor = floor_flops(task) / rate
    yield (
        f"{task.kind} {task.cell} N={task.N} threads={task.threads}: floor {floor * 1e3:.2f} ms at "
        f"{rate / 1e9:.0f} GFLOP/s"
    )
    for one in raced:
        ratios = [theirs / mine for theirs, mine in zip(one.turns, ours.turns, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        yield (
            f"  {one.name:<18} {one.median * 1e3:9.2f} ms   {one.median / ours.median:5.2f} "
            f"({low:.2f} to {high:.2f})   floor/time {floor / one.median:.2f}"
        )


def main(
    kind: Annotated[list[str], typer.Option(help="train, layer, ragged, decode or product.")] = ["train"],  # noqa: B006
    cell: Annotated[list[str], typer.Option(help="lstm or rnn.")] = ["lstm"],  # noqa: B006
    n: Annotated[list[int], typer.Option(help="Captions in a batch.")] = [25, 100, 256],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="Threads, for everybody.")] = [2],  # noqa: B006
    turns: Annotated[int, typer.Option(help="Turns of each competitor.")] = 7,
) -> None:
    """Race fastrnn against PyTorch and plain NumPy at the published sizes."""
    if not importlib.util.find_spec("torch"):
        print("without PyTorch, which is not installed: pip install 'fastrnn[race]'")
    for task in (Task(k, c, N, t) for k in kind for c in cell for t in threads for N in n):
        for line in report(task, race(task, turns)):
            print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)
