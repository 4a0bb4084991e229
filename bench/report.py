"""Everything at once: races, roofs, stages, scaling and memory, with tables and pictures.

``python -m fastrnn.bench.report DIRECTORY`` measures and writes ``tasks.json`` there, then the pages;
``make bench`` calls it after pytest-benchmark, which writes ``kernels-*.json``. :func:`short` is what
``fastrnn bench`` prints.
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from tqdm import tqdm

import fastrnn
from fastrnn.bench import compare, machine, page, pictures, race
from fastrnn.bench.race import OURS, PYTORCH, Outcome
from fastrnn.bench.results import CYTHON, NUMPY, ROWS, TOY, Results
from fastrnn.bench.workload import Task

NS = (25, 100, 256)
TURNS = 4
SWEEPS = {"N": (10,), "T": (8, 32), "H": (128, 256, 1024), "V": (4000, 10_000)}
STAGES = Task("train", threads=2)
MEMORY = (Task("train", N=100, threads=2), Task("train", N=100, threads=2, V=10_000))


class Group(NamedTuple):
    """Tasks on one number of threads, raced in by the same processes."""

    tasks: list[Task]
    names: Collection[str] | None  # None: everybody
    turns: int = TURNS


def groups() -> list[Group]:
    """What is raced in: the goals' tasks, then how the time grows with each size and falls with threads."""
    rivals, all_threads = {CYTHON, *PYTORCH}, machine.cores()
    threads = [n for n in range(1, all_threads + 1) if n & (n - 1) == 0 or n == all_threads]
    sweep = [Task("train", threads=2)._replace(**{size: n}) for size, ns in SWEEPS.items() for n in ns]
    kinds = [
        Task(kind, N=N, threads=2)
        for kind, N in (("forward", 100), ("epoch", 25), ("decode", 1), ("decode", 100))
    ]
    layers = [Task(kind, N=N, threads=2) for kind in ("layer", "ragged") for N in (25, 100)]
    products = {n: [Task("product", N=N, threads=n) for N in ROWS] for n in (1, 2)}
    every = [
        Group([*(Task("train", N=N, threads=2) for N in NS), *kinds], None),
        Group([*(Task("train", "rnn", N, 2) for N in NS), *layers, TOY], {*rivals, NUMPY}),
        Group([Task("train", N=N, threads=1) for N in NS], rivals),
        *(Group(tasks, {CYTHON}, 3) for tasks in products.values()),
        Group(sweep, rivals - {"PyTorch padded"}, 3),
        *(Group([Task("train", threads=n)], rivals, 3) for n in threads if n > 2),
    ]
    return [group for group in every if group.tasks[0].threads <= all_threads]


def measure() -> Results:
    """Measure it all, which takes some eight minutes. Raises ``RuntimeError`` where an answer is wrong."""
    planned = groups()
    memory = [task for task in MEMORY if task.threads <= machine.cores()]
    backends = fastrnn.available_backends()
    steps = sum(len(group.tasks) for group in planned) + len(memory) + len(backends) + 1
    with tqdm(total=steps, unit="task") as bar:

        def shown(task: str) -> None:
            bar.set_description_str(task)

        def outcomes(tasks: Iterable[Task], turns: int, names: Collection[str] | None) -> Iterator[Outcome]:
            tasks = list(tasks)
            shown(str(tasks[0]))
            for number, outcome in enumerate(race.race(tasks, turns, names), 1):
                bar.update()
                shown(str(tasks[min(number, len(tasks) - 1)]))
                yield outcome

        found = [o for group in planned for o in outcomes(group.tasks, group.turns, group.names)]
        # Processes that did nothing before
        used = [o for task in memory for o in outcomes([task], 1, {*OURS, *PYTORCH})]
        stages = {}
        for name in backends:
            shown(f"stages of the {name} backend")
            stages[name] = machine.stages(STAGES._replace(threads=min(STAGES.threads, machine.cores())), name)
            bar.update()
        shown("the machine's roofs")
        roofs = {str(n): machine.roofs(n) for n in (1, 2) if n <= machine.cores()}
        bar.update()
    return Results(machine.describe(), roofs, found, used, stages)


def short() -> Iterator[str]:
    """Training and one greedy caption by whoever is installed, at this machine's threads: under a minute."""
    for name, value in machine.describe().items():
        yield f"{name:<16} {value}"
    threads = fastrnn.get_num_threads()
    tasks = [
        Task("train", N=25, threads=threads),
        Task("train", N=100, threads=threads),
        Task("decode", N=1, threads=threads),
    ]
    names = {peer.name for peer in race.PEERS} - set(race.BFLOAT16)
    for outcome in race.race(tasks, 3, names):
        yield ""
        yield from race.report(outcome)


def main(
    directory: Annotated[
        Path,
        typer.Argument(help="Where kernels-*.json are and the results go.", exists=True, file_okay=False),
    ],
    readme: Annotated[
        Path | None, typer.Option(help="A README whose summary to renew.", dir_okay=False)
    ] = None,
    draw_only: Annotated[
        bool, typer.Option(help="Write pages and pictures of what was measured before.")
    ] = False,
) -> None:
    """Measure whole tasks; write JSON, tables and pictures beside kernels-*.json of pytest-benchmark."""
    compare.read(directory)  # before it takes minutes
    if not draw_only:
        measure().write(directory)
    results = Results.read(directory)
    pictures.draw(results, directory)
    page.write(results, directory, readme)


if __name__ == "__main__":
    typer.run(main)
