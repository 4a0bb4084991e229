"""Markdown of what was measured: the results' own page, and the part of it that the README shows."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fastrnn import files
from fastrnn.bench import compare
from fastrnn.bench.cases import BENCHMARKED, CASES
from fastrnn.bench.pictures import ROOFLINE, SCALING, SPEEDUP, STAGES
from fastrnn.bench.race import BFLOAT16, CUBE, Outcome, Ratio, ratio
from fastrnn.bench.results import BACKENDS, CYTHON, ROWS, Cell, Results, goals, median, roofline

PAGE = "README.md"
BEGIN, END = "<!-- written by make bench -->", "<!-- to here -->"
MISSED = "✗"


def write(results: Results, directory: Path, readme: Path | None) -> None:
    """Write the page, and renew what stands between the marks of a README.

    Raises ``ValueError`` for a README without marks, ``OSError`` where something cannot be written.
    """
    files.write_text(directory / PAGE, "\n".join(page(results, compare.read(directory))) + "\n")
    if readme is not None:
        renew(readme, summary(results, directory.resolve().relative_to(readme.resolve().parent)))


def renew(readme: Path, shown: Iterable[str], mark: str = BEGIN) -> None:
    """Write lines between two marks of a page. Raises ``ValueError`` where it has none."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(mark)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme}: expected a line {mark!r} and after it a line {END!r}")
    files.write_text(readme, "\n".join([f"{before}{begin}", *shown, f"{end}{after}"]))


def summary(results: Results, directory: Path) -> Iterator[str]:
    """What the README shows: pictures and goals."""
    yield f"Measured on {results.machine['processor']}; {results.machine['system']}."
    yield ""
    for name, text in PICTURES.items():
        yield f"![{text}]({(directory / name).as_posix()})"
        yield ""
    yield from goal_table(results)


PICTURES = {
    SPEEDUP: "How many times as fast as plain NumPy everybody trains an LSTM captioner",
    ROOFLINE: "Kernels under the machine's roofline",
    SCALING: "Time of a training iteration by sizes and threads, fastrnn and PyTorch",
}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table, numbers to the right."""
    yield f"| {' | '.join(header)} |"
    yield f"|---|{'---:|' * (len(header) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _spread(measured: Ratio) -> str:
    return f"{measured.value:.2f} ({measured.low:.2f} to {measured.high:.2f})"


# ---------------------------------------------------------------------------------------------------
# Goals


def goal_table(results: Results) -> Iterator[str]:
    """Every goal of the compiled kernels at the published sizes."""
    found = goals(results)
    missed = sum(cell.missed for goal in found for cell in goal.cells.values())
    every = sum(len(goal.cells) for goal in found)
    yield (
        "Measured, the least and greatest that any two turns give, and the least value that was asked for;"
        f" {MISSED} marks the {missed} of {every} that are missed."
    )
    yield ""
    sizes, rows = {25, 100, 256}, set(ROWS)
    for some in (
        [goal for goal in found if goal.cells.keys() <= sizes],
        [goal for goal in found if goal.cells.keys() == rows],
        [goal for goal in found if not goal.cells.keys() <= sizes | rows],
    ):
        counts = sorted({N for goal in some for N in goal.cells})
        yield from table(
            ["times as fast", *(f"N={N}" for N in counts)],
            ([goal.what, *(_cell(goal.cells.get(N)) for N in counts)] for goal in some),
        )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.measured is None:
        return f"not measured, asked {cell.asked:g}"
    value, low, high = cell.measured
    digits = 3 if cell.missed and round(value, 2) >= cell.asked else 2  # no goal looks met that is not
    mark = f" {MISSED}" if cell.missed else ""
    return f"**{value:.{digits}f}** ({low:.2f} to {high:.2f}), asked {cell.asked:g}{mark}"


# ---------------------------------------------------------------------------------------------------
# The page


def page(results: Results, kernels: list[compare.Run]) -> Iterator[str]:
    """Lines of the page with everything."""
    yield "# Results of the benchmarks"
    yield ""
    yield "Written by `make bench`, which measures all of this anew; `docs/performance.md` says how and why."
    yield ""
    yield from table(["", ""], ([name, value.replace("|", "/")] for name, value in results.machine.items()))
    yield "## Goals"
    yield ""
    yield from goal_table(results)
    yield "## Whole tasks"
    yield ""
    yield (
        "Median of all turns; how many times as long as fastrnn's Cython kernels it took, and the least and"
        " greatest that any two turns give; and which fraction of the time is the floor: the task's live,"
        " de-duplicated products at the rate of NumPy's BLAS on cubes of 2,048, measured in the same turns,"
        " or the arrays that it cannot do without, from the last cache. bfloat16 computes something coarser,"
        " and comes last."
    )
    yield ""
    for outcome in results.outcomes:
        yield from _outcome(outcome, results.floor(outcome))
    yield f"![{PICTURES[SPEEDUP]}]({SPEEDUP})"
    yield ""
    yield f"![{PICTURES[SCALING]}]({SCALING})"
    yield ""
    yield from _roofs(results, kernels)
    yield from _stages(results)
    yield from _memory(results)
    yield from _kernels(kernels)


def _outcome(outcome: Outcome, floor: float) -> Iterator[str]:
    task, results, skipped, _ = outcome
    yield f"**{task}**, floor {1e3 * floor:.2f} ms at {outcome.rate / 1e9:.0f} GFLOP/s"
    yield ""
    names = [name for name in results if name != CUBE and name not in BFLOAT16]
    names += [name for name in results if name in BFLOAT16]
    first = CYTHON if CYTHON in results else next(iter(names), CUBE)
    yield from table(
        ["", "ms", "times as long", "floor / time"],
        (
            [
                name,
                f"{1e3 * results[name].median:.2f}",
                _spread(ratio(results, name, first)),
                f"{floor / results[name].median:.2f}",
            ]
            for name in names
        ),
    )
    for name, reason in skipped.items():
        yield f"{name} skipped: {reason}"
        yield ""


def _roofs(results: Results, runs: list[compare.Run]) -> Iterator[str]:
    yield "## The machine's limits"
    yield ""
    yield "Products of 2,048-cubes by NumPy's BLAS, and STREAM's triad over 1 GiB and over 16 MiB."
    yield ""
    yield from table(
        ["threads", "products, GFLOP/s", "memory, GB/s", "last cache, GB/s"],
        ([n, *(f"{speed / 1e9:.1f}" for speed in of.values())] for n, of in results.roofs.items()),
    )
    yield (
        "What each kernel reaches at N=100 in float32, and which part that is of what its operations for each"
        " byte allow, data coming from the last cache. What fits into the cores' own may exceed it."
    )
    yield ""
    yield from table(
        ["", "FLOP/byte", "roof, GFLOP/s", *(f"{backend}, GFLOP/s" for backend in BACKENDS)],
        (
            [
                f"`{kernel}`",
                f"{intensity:.1f}",
                f"{roof / 1e9:.0f}",
                *(f"{s / 1e9:.1f} ({s / roof:.2f})" if (s := speeds.get(b)) else "none" for b in BACKENDS),
            ]
            for kernel, intensity, roof, speeds in roofline(results, runs)
        ),
    )
    yield f"![{PICTURES[ROOFLINE]}]({ROOFLINE})"
    yield ""


def _stages(results: Results) -> Iterator[str]:
    yield "## A training iteration, stage by stage"
    yield ""
    yield "LSTM, N=100; milliseconds, medians."
    yield ""
    every = list(dict.fromkeys(stage for of in results.stages.values() for stage in of))
    rows = [
        [
            f"`{s}`" if "_" in s or s == "adam" else s,
            *(f"{1e3 * of.get(s, 0):.2f}" for of in results.stages.values()),
        ]
        for s in every
    ]
    rows.append(["together", *(f"{1e3 * sum(of.values()):.2f}" for of in results.stages.values())])
    yield from table(["", *results.stages], rows)
    yield f"![Where the time of a training iteration goes]({STAGES})"
    yield ""


def _memory(results: Results) -> Iterator[str]:
    yield "## Memory"
    yield ""
    yield (
        "By how many MiB a process that trains is larger at its peak than before it had a model: parameters,"
        " Adam's state, gradients, activations and scratch."
    )
    yield ""
    names = [name for name in results.memory[0].results if name != CUBE] if results.memory else []
    tasks = [outcome.task for outcome in results.memory]

    def used(outcome: Outcome, name: str) -> str:
        nbytes = outcome.results[name].memory if name in outcome.results else None
        return "not known" if nbytes is None else f"{nbytes / 2**20:.0f}"

    yield from table(
        ["", *map(str, tasks)], ([name, *(used(o, name) for o in results.memory)] for name in names)
    )


def _kernels(runs: list[compare.Run]) -> Iterator[str]:
    times = compare.medians(runs)
    apart = [max(each) / min(each) - 1 for each in times.values()]
    half, most = np.quantile(apart, [0.5, 0.9])
    yield "## Single kernels"
    yield ""
    yield (
        f"How many times as fast as the NumPy reference, by medians of {len(runs)} runs of"
        " pytest-benchmark; Cython, then Numba. The times of a benchmark in these runs are"
        f" {half:.0%} apart or less for half of them, {most:.0%} for nine in ten. The files `kernels-*.json`"
        " have every figure."
    )
    yield ""

    def speedups(kernel: str, size: str, dtype: str) -> str:
        *ours, reference = (median(times, kernel, size, dtype, backend) for backend in BACKENDS)
        return ", ".join(
            "none" if own is None or reference is None else f"{reference / own:.1f}" for own in ours
        )

    for dtype in ("float32", "float64"):
        sizes = [size for size in BENCHMARKED if median(times, "adam", size, dtype, "numpy") is not None]
        rows = ([f"`{kernel}`", *(speedups(kernel, size, dtype) for size in sizes)] for kernel in CASES)
        yield from table([dtype, *sizes], rows)
    yield "Milliseconds of a call in the steady state, at N100 in float32, and of a process's first call, at"
    yield "toy size, which compiles or loads what was compiled:"
    yield ""
    first = {b["fullname"]: b["extra_info"]["first call, s"] for run in runs[:1] for b in run.benchmarks}

    def milliseconds(kernel: str, backend: str) -> str:
        steady = median(times, kernel, "N100", "float32", backend)
        if steady is None:
            return "none"
        began = first.get(f"bench/test_kernels.py::test_kernel[{kernel}-toy-float32-{backend}]")
        return f"{1e3 * steady:.3f}" + (f", {1e3 * began:.2f}" if began is not None else "")

    yield from table(
        ["", *BACKENDS], ([f"`{k}`", *(milliseconds(k, backend) for backend in BACKENDS)] for k in CASES)
    )
