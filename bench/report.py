"""Everything at once: races, roofs, stages, scaling and memory, with tables and pictures.

``python -m fastrnn.bench.report DIRECTORY`` measures and writes ``tasks.json`` there, then the pages;
``make bench`` calls it after pytest-benchmark, which writes ``kernels-*.json``. :func:`short` is what
``fastrnn bench`` prints.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from tqdm import tqdm

import fastrnn
from fastrnn import backend
from fastrnn.bench import compare, machine, page, pictures, race
from fastrnn.bench.race import PLAIN, PYTORCH, Outcome
from fastrnn.bench.results import CYTHON, NUMBA, NUMPY, ROWS, TOY, Results
from fastrnn.bench.workload import Task

NS = (25, 100, 256)
TURNS = 2  # in each of two rounds
SWEEPS = {"N": (10,), "T": (8, 32), "H": (256, 1024), "V": (4000, 10_000)}
STAGES = Task("train")
MEMORY = (Task("train"), Task("train", V=10_000))


class Group(NamedTuple):
    """Tasks on one number of threads, raced in by the same processes."""

    tasks: list[Task]
    names: Collection[str] | None  # None: everybody
    again: Collection[str] = ()  # who races a second time, in new processes, in tasks of goals


def _threads() -> int:
    """Two, as the goals say, where there are two cores."""
    return min(2, backend.physical_cores())


def groups() -> list[Group]:
    """What is raced in: the goals' tasks, then how the time grows with each size and falls with threads."""
    rivals, here, all_threads = {CYTHON, *PYTORCH}, _threads(), backend.physical_cores()
    threads = [n for n in range(1, all_threads + 1) if n & (n - 1) == 0 or n == all_threads]
    sweep = [Task("train", threads=here)._replace(**{size: n}) for size, ns in SWEEPS.items() for n in ns]
    kinds = [
        Task(kind, N=N, threads=here)
        for kind, N in (("forward", 100), ("epoch", 25), ("decode", 1), ("decode", 100))
    ]
    layers = [Task(kind, N=N, threads=here) for kind in ("layer", "ragged") for N in (25, 100)]
    products = {n: [Task("product", N=N, threads=n) for N in ROWS] for n in {1, here}}
    return [
        Group([*(Task("train", N=N, threads=here) for N in NS), *kinds], None, {*rivals, NUMBA, PLAIN}),
        Group(
            [*(Task("train", "rnn", N, here) for N in NS), *layers, TOY._replace(threads=here)],
            {*rivals, NUMPY},
            {*rivals, NUMPY},
        ),
        Group([Task("train", N=N, threads=1) for N in NS], rivals, rivals),
        *(Group(tasks, {CYTHON, PLAIN}, {CYTHON, PLAIN}) for tasks in products.values()),
        Group(sweep, rivals - {"PyTorch padded"}),
        *(Group([Task("train", threads=n)], rivals) for n in threads if n > here),
    ]


def _goals_tasks(group: Group) -> list[Task]:
    return [task for task in group.tasks if group.again and task.kind not in ("forward", "epoch")]


def measure() -> Results:
    """Measure it all, which takes some six minutes. Raises ``RuntimeError`` where an answer is wrong."""
    planned = groups()
    here = _threads()
    backends = fastrnn.available_backends()
    raced = sum(len(group.tasks) + len(_goals_tasks(group)) for group in planned)
    steps = raced + len(MEMORY) + len(backends) + 1
    with tqdm(total=steps, unit="task") as bar:

        def shown(task: str) -> None:
            bar.set_description_str(task)

        def outcomes(tasks: Collection[Task], names: Collection[str] | None) -> Iterator[Outcome]:
            for outcome in race.race(tasks, TURNS, names) if tasks else ():
                bar.update()
                shown(str(outcome.task))
                yield outcome

        found = []
        for group in planned:
            first = list(outcomes(group.tasks, group.names))
            later = {o.task: o for o in outcomes(_goals_tasks(group), group.again)}
            found += [race.joined(o, later[o.task]) if o.task in later else o for o in first]
        # Processes that did nothing before
        used = [
            o for task in MEMORY for o in outcomes([task._replace(threads=here)], {CYTHON, NUMPY, *PYTORCH})
        ]
        stages = {}
        for name in backends:
            shown(f"stages of the {name} backend")
            stages[name] = machine.stages(STAGES._replace(threads=here), name)
            bar.update()
        shown("the machine's roofs")
        roofs = {str(n): machine.roofs(n) for n in sorted({1, here, fastrnn.get_num_threads()})}
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
