"""The race: whole tasks by fastrnn and by what a user would pick instead, on the same work.

``python -m fastrnn.bench.race --help`` tells the options. Competitors are processes of their own that take
turns, because idle thread pools in one process spin against the running one. Before anything is timed, all
answers must agree. Times are medians over all turns; a ratio is that of the medians, its spread the least and
the greatest that any two turns give.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

import fastrnn
from fastrnn.bench import workload
from fastrnn.bench.workload import Task

SECONDS = 0.12  # of a turn, about
PAUSE = 0.03  # seconds between turns, until the threads of the last one sleep
# For everybody. glibc hands large arrays back to the system, which clears them before they come again:
# PyTorch's iterations then take 27 ms in one process and 34 or 50 in the next; with this they take 26.
# OpenBLAS's threads would spin for a tenth of a second, in the next one's turn; for 2**22 cycles they may.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "OPENBLAS_THREAD_TIMEOUT": "22",
}


class Peer(NamedTuple):
    """Somebody who can compete: a module of :mod:`fastrnn.bench.peers` with its arguments."""

    name: str
    command: tuple[str, ...]
    kinds: Collection[str]  # of tasks
    needs: tuple[str, ...] = ()  # packages


OURS = {f"fastrnn {name}": name for name in ("cython", "numba", "numpy")}
PYTORCH = {f"PyTorch {mode}": mode for mode in ("padded", "packed", "live")}
BFLOAT16 = {f"PyTorch {mode} bfloat16": mode for mode in ("padded", "live")}
PLAIN = "plain NumPy"
CUBE = "cube"  # the machine's roof, raced with every task

_TRAINING = ("train", "forward", "epoch")
_ALL = (*_TRAINING, "layer", "ragged", "decode", "product")
_KINDS = {  # of PyTorch's modes; where there is one way only it is the padded one
    "padded": _ALL,
    "packed": (*_TRAINING, "layer", "ragged"),
    "live": _TRAINING,
}
PEERS = (
    *(Peer(name, ("ours", backend), _ALL) for name, backend in OURS.items()),
    *(Peer(name, ("pytorch", mode), _KINDS[mode], ("torch",)) for name, mode in PYTORCH.items()),
    *(
        Peer(name, ("pytorch", mode, "bfloat16"), ("train", "forward"), ("torch",))
        for name, mode in BFLOAT16.items()
    ),
    Peer("JAX", ("jax",), (*_TRAINING, "decode"), ("jax",)),
    Peer("ONNX Runtime", ("onnx",), ("forward", "decode"), ("onnx", "onnxruntime")),
    Peer(PLAIN, ("published",), (*_TRAINING, "decode", "product")),
)


def missing(peer: Peer) -> str | None:
    """Why a peer cannot compete here, or None."""
    if peer.name in OURS:
        try:
            with fastrnn.use_backend(OURS[peer.name]):
                fastrnn.backend.kernels()
        except ImportError as error:
            return str(error)
    absent = [package for package in peer.needs if importlib.util.find_spec(package) is None]
    return f"{', '.join(absent)} not installed: pip install 'fastrnn[race]'" if absent else None


class Failure(RuntimeError):
    """A competitor's process has ended."""

    def __init__(self, competitor: "Competitor", reason: str) -> None:
        super().__init__(reason)
        self.competitor = competitor


class Competitor:
    """A process that does tasks when it is its turn."""

    def __init__(self, command: Iterable[str], threads: int) -> None:
        variables = {
            f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")
        }
        variables |= ENVIRONMENT | {"VECLIB_MAXIMUM_THREADS": str(threads)}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fastrnn.bench.peers", str(threads), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | variables,
        )

    def ask(self, **request: Any) -> None:
        """Send a request, whose reply may take a while."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, as its reply will tell

    def reply(self) -> dict[str, Any]:
        """What it replies to the last request. Raises :class:`Failure` where it has ended."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or ["it ended"]
            raise Failure(self, f"{said[-1]} (exit code {self.process.returncode})")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def turn(self, count: int) -> tuple[list[float], int | None]:
        """Seconds of each of so many repetitions, and the most memory since the task started, in bytes."""
        self.ask(count=count)
        reply = self.reply()
        return reply["seconds"], reply["memory"]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
        self.errors.close()


class Result(NamedTuple):
    """What a competitor took for a task."""

    turns: list[float]  # the median of each turn, seconds
    memory: int | None  # bytes by which its process grew at most

    @property
    def median(self) -> float:
        """Seconds, of all turns."""
        return statistics.median(self.turns)


class Outcome(NamedTuple):
    """A task that was raced in."""

    task: Task
    results: dict[str, Result]
    skipped: dict[str, str]  # who could not compete, and why
    cost: workload.Cost

    @property
    def rate(self) -> float:
        """FLOP/s of the machine's roof in this race."""
        return workload.CUBE_FLOPS / self.results[CUBE].median


def joined(first: Outcome, again: Outcome) -> Outcome:
    """The turns of two races in one task, each in new processes: these differ more than turns do."""
    results = {
        name: result._replace(turns=result.turns + later.turns)
        if (later := again.results.get(name))
        else result
        for name, result in first.results.items()
    }
    return first._replace(results=results)


class Ratio(NamedTuple):
    """How many times as long one competitor took as another."""

    value: float  # of the medians
    low: float  # the least that any two turns give
    high: float


def ratio(results: dict[str, Result], name: str, to: str) -> Ratio:
    """How many times as long ``name`` took as ``to``."""
    one, other = results[name], results[to]
    least, greatest = min(one.turns) / max(other.turns), max(one.turns) / min(other.turns)
    return Ratio(one.median / other.median, least, greatest)


def race(tasks: Iterable[Task], turns: int, names: Collection[str] | None = None) -> Iterator[Outcome]:
    """Let everybody, or those of these names, do task after task in turns, all on one number of threads.

    Raises ``RuntimeError`` where answers differ, or where fastrnn itself fails.
    """
    tasks = list(tasks)
    (threads,) = {task.threads for task in tasks}
    wanted = [
        peer
        for peer in PEERS
        if (names is None or peer.name in names) and any(task.kind in peer.kinds for task in tasks)
    ]
    skipped = {peer.name: reason for peer in wanted if (reason := missing(peer))}
    wanted = [peer for peer in wanted if peer.name not in skipped]
    wanted.append(Peer(CUBE, ("roof",), _ALL))
    with ExitStack() as stack:
        processes = {peer.name: Competitor(peer.command, threads) for peer in wanted}
        for process in processes.values():
            stack.callback(process.close)
        for task in tasks:
            racing = {
                p.name: processes[p.name] for p in wanted if task.kind in p.kinds and p.name not in skipped
            }
            for process in racing.values():
                process.ask(task=task)
            answers, results = {}, None
            while results is None:
                try:
                    for name, process in racing.items():
                        if name not in answers:
                            answers[name] = process.reply()["answer"]
                    check_answers(task, {name: answers[name] for name in racing if name != CUBE})
                    results = _times(racing, turns)
                except Failure as failure:
                    (name,) = (name for name, process in racing.items() if process is failure.competitor)
                    if name in OURS or name == CUBE:
                        raise RuntimeError(f"{name}, {task}: {failure}") from failure
                    skipped[name] = str(failure)
                    del racing[name]
            of_this_kind = {p.name for p in PEERS if task.kind in p.kinds}
            absent = {name: reason for name, reason in skipped.items() if name in of_this_kind}
            yield Outcome(task, results, absent, workload.cost(task))


def _times(racing: dict[str, Competitor], turns: int) -> dict[str, Result]:
    """Raises :class:`Failure` where a competitor ends."""
    counts = {}
    for name, one in racing.items():
        one.turn(1)  # which may compile
        (second,), _ = one.turn(1)
        counts[name] = max(1, round(SECONDS / second))
        if counts[name] > 1:
            one.turn(counts[name])  # warm up
    times: dict[str, list[float]] = {name: [] for name in racing}
    memory = {}
    order = list(racing)
    for _ in range(turns):
        for name in order:
            time.sleep(PAUSE)
            seconds, memory[name] = racing[name].turn(counts[name])
            times[name].append(statistics.median(seconds))
        order = order[1:] + order[:1]  # so that nobody always follows the same one
    return {name: Result(turns, memory[name]) for name, turns in times.items()}


def check_answers(task: Task, answers: dict[str, Any]) -> None:
    """Raise ``RuntimeError`` unless all answers agree with the first."""
    first = next(iter(answers), None)
    for other in answers:
        a, b = np.array(answers[first]), np.array(answers[other])
        words = task.kind == "decode"  # where a tie may fall either way
        tolerance = 5e-3 if BFLOAT16.keys() & {first, other} else 1e-4
        if not (np.mean(a == b) > 0.98 if words else np.allclose(a, b, rtol=tolerance)):
            raise RuntimeError(f"{task}: {first} answers {answers[first]}, {other} {answers[other]}")


def report(outcome: Outcome) -> Iterator[str]:
    """Lines of a table: times, how many times the first's, and how much the products alone would take."""
    task, results, skipped, cost = outcome
    floor = cost.flops / outcome.rate
    raced = [name for name in results if name != CUBE]
    yield f"{task}: products {floor * 1e3:.2f} ms at {outcome.rate / 1e9:.0f} GFLOP/s"
    for name in raced:
        median, times = results[name].median, ratio(results, name, raced[0])
        yield (
            f"  {name:<23} {median * 1e3:9.2f} ms   {times.value:5.2f} ({times.low:.2f} to {times.high:.2f})"
            f"   products/time {floor / median:.2f}"
        )
    for name, reason in skipped.items():
        yield f"  {name:<23} skipped: {reason}"


def main(
    kind: Annotated[list[str], typer.Option(help=f"One or several of {', '.join(_ALL)}.")] = ["train"],  # noqa: B006
    cell: Annotated[list[str], typer.Option(help="lstm or rnn.")] = ["lstm"],  # noqa: B006
    n: Annotated[list[int], typer.Option(help="Captions in a batch.")] = [25, 100, 256],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="Threads, for everybody.")] = [2],  # noqa: B006
    turns: Annotated[int, typer.Option(min=2, help="Turns of each competitor.")] = 7,
    only: Annotated[list[str] | None, typer.Option(help="Competitors; by default everybody.")] = None,
) -> None:
    """Race fastrnn against PyTorch, JAX, ONNX Runtime and plain NumPy at the published sizes."""
    for name, given, known in (
        ("--kind", kind, _ALL),
        ("--cell", cell, ("lstm", "rnn")),
        ("--only", only or [], [peer.name for peer in PEERS]),
    ):
        if unknown := [value for value in given if value not in known]:
            raise typer.BadParameter(f"{name}: expected {', '.join(known)}, got {unknown[0]!r}")
    if "rnn" in cell and {"layer", "ragged"} & {*kind}:
        raise typer.BadParameter("--kind: layer and ragged are tasks of the lstm, got --cell rnn")
    for of in threads:
        for outcome in race([Task(k, c, N, of) for k in kind for c in cell for N in n], turns, only):
            for line in report(outcome):
                print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)
