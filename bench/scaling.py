"""What several machines would give: compute and messages measured here, and a model of both.

``python -m fastrnn.bench.scaling docs/scaling.md`` measures, and writes tables between the page's marks.
An iteration of P machines with n captions each is thought to take::

    compute(n) + 2 log2(P) latency + (P - 1)/P bytes (2 / bandwidth + 1 / summing)

where an Allreduce scatters the sums and gathers them again (Thakur, Rabenseifner and Gropp, IJHPCA 19, 2005).
"""

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import fastrnn
from fastrnn import backend
from fastrnn.bench import machine, workload
from fastrnn.bench.page import renew, table
from fastrnn.bench.workload import Task

MARK = "<!-- written by python -m fastrnn.bench.scaling docs/scaling.md -->"
SHARES = (1, 4, 12, 25, 50, 100, 200, 400)  # captions of a machine
MACHINES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NETWORKS = {  # bytes a second at four fifths of the wire's, and seconds from one process to another: assumed
    "10 Gb/s": (1e9, 50e-6),
    "100 Gb/s": (1e10, 5e-6),
}
CAPTIONS = 400_135  # of an epoch
EACH, TOGETHER = 100, 400  # captions of a machine; of all machines

ALLREDUCE = """
import json, sys, time
import numpy as np
from fastrnn.distributed import connect
ranks = connect()
array, seconds = np.zeros(int(sys.argv[1]), np.float32), []
for _ in range(60):
    ranks.any(False)
    started = time.perf_counter()
    ranks.sum(array)
    seconds.append(time.perf_counter() - started)
if ranks.rank == 0:
    print(json.dumps(sorted(seconds[10:])[25]))
"""


def compute(N: int, seconds: float = 3.0) -> float:
    """Seconds of a training iteration of N captions: gradients and Adam, on all cores."""
    task = Task("train", N=N, threads=backend.physical_cores())
    solver = fastrnn.CaptioningSolver(
        workload.model(task),
        workload.data(task.V, task.T),
        update_rule="adam",
        optim_config={"learning_rate": 1e-3},
        batch_size=N,
        verbose=False,
    )
    np.random.seed(workload.SEED)
    for _ in range(5):
        solver._step()
    return _median(solver._step, seconds)


def allreduce(ranks: int, size: int) -> float:
    """Seconds of an Allreduce of so many float32 numbers over the loopback."""
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if mpiexec is None:
        raise FileNotFoundError("mpiexec: not found; pip install 'fastrnn[mpi]' mpich")
    command = [mpiexec, "-n", str(ranks), sys.executable, "-c", ALLREDUCE, str(size)]
    measured: float = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return measured


def summing(size: int) -> float:
    """Bytes a second of adding one array of so many float32 numbers to another, on one core."""
    a, b = np.zeros(size, np.float32), np.ones(size, np.float32)
    return a.nbytes / _median(lambda: np.add(a, b, out=a), 0.5)


def _median(call: Callable[[], object], seconds: float) -> float:
    measured: list[float] = []
    started = time.perf_counter()
    while len(measured) < 5 or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        call()
        measured.append(time.perf_counter() - before)
    return float(np.median(measured))


def message(nbytes: int, machines: int, bandwidth: float, latency: float, sums: float) -> float:
    """The model's seconds of an Allreduce."""
    moved = (machines - 1) / machines * nbytes
    return 2 * math.log2(machines) * latency + moved * (2 / bandwidth + 1 / sums)


def lines(progress: Callable[[str], None]) -> Iterator[str]:
    """Markdown of what was measured and what the model makes of it."""
    size = sum(w.size for w in workload.model(Task("train")).params.values())
    times = {}
    for N in SHARES:
        progress(f"iterations of {N} captions")
        times[N] = compute(N)
    progress("messages")
    sums = summing(size)
    over_loopback = {ranks: allreduce(ranks, size) for ranks in (2, 4)}
    cores = backend.physical_cores()

    processor = machine.describe()["processor"]
    yield f"Measured on {processor}, {backend.current_backend()} kernels, {cores} threads, float32."
    yield ""
    yield "| captions of a machine | " + " | ".join(map(str, SHARES)) + " |"
    yield "|---|" + "---:|" * len(SHARES)
    yield "| iteration, ms | " + " | ".join(f"{1e3 * times[N]:.1f}" for N in SHARES) + " |"
    yield "| tokens per second | " + " | ".join(f"{N * _tokens() / times[N]:,.0f}" for N in SHARES) + " |"
    yield ""
    yield (
        f"The message is {4e-6 * size:.1f} MB ({size:,} gradients). Over the loopback an Allreduce takes "
        f"{1e3 * over_loopback[2]:.1f} ms with 2 ranks and {1e3 * over_loopback[4]:.1f} with 4 on the same "
        f"cores; one core adds {1e-9 * sums:.1f} GB/s."
    )
    for title, share in (
        (f"{EACH} captions on each machine", lambda machines: EACH),
        (f"{TOGETHER} captions on all machines together", lambda machines: TOGETHER / machines),
    ):
        yield ""
        yield f"**{title}**"
        yield ""
        header = ["machines"]
        for network in NETWORKS:
            header += [f"{network}: ms", "times as fast", "seconds an epoch"]
        yield from table(header, _predicted(times, 4 * size, sums, share))


def _tokens() -> float:
    """Predicted words of a caption, END included."""
    every, _ = workload.captions(Task("train").V, Task("train").T)
    return float(np.count_nonzero(every[:, 1:]) / len(every))


def _predicted(
    times: dict[int, float], nbytes: int, sums: float, share: Callable[[int], float]
) -> Iterator[list[str]]:
    def iteration(machines: int, network: str) -> float:
        # between the measured numbers of captions, a straight line
        seconds = float(np.interp(share(machines), list(times), list(times.values())))
        return seconds + (message(nbytes, machines, *NETWORKS[network], sums) if machines > 1 else 0)

    for machines in MACHINES:
        cells = [str(machines)]
        for network in NETWORKS:
            seconds = iteration(machines, network)
            captions = share(machines) * machines
            alone = share(1) / iteration(1, network)
            cells += [
                f"{1e3 * seconds:.1f}",
                f"{captions / seconds / alone:.1f}",
                f"{CAPTIONS / captions * seconds:.0f}",
            ]
        yield cells


def main(
    page: Annotated[Path, typer.Argument(help="Where the tables go, between marks.", dir_okay=False)],
) -> None:
    """Measure iterations and messages here, and write what the model makes of them into a page."""
    renew(page, lines(lambda doing: print(f"measuring {doing}", flush=True)), mark=MARK)


if __name__ == "__main__":
    typer.run(main)
