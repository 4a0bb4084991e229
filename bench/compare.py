"""Set two results of the kernel benchmarks against each other and name what got slower.

``python -m fastrnn.bench.compare BEFORE AFTER``: directories with ``kernels-*.json``, one of each time that
pytest-benchmark ran. Exit code 1 if a benchmark got slower by more than its spread.
"""

import json
import statistics
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer


class Run(NamedTuple):
    """One file of pytest-benchmark."""

    processor: str
    benchmarks: list[dict[str, Any]]


class Change(NamedTuple):
    """A benchmark in two results, in seconds."""

    name: str
    before: float  # medians of the medians
    after: float
    beyond_spread: bool


def read(directory: Path) -> list[Run]:
    """Every run of a directory. Raises ``FileNotFoundError`` where there is none."""
    found = [json.loads(path.read_text()) for path in sorted(directory.glob("kernels-*.json"))]
    runs = [Run(run["machine_info"]["processor"], run["benchmarks"]) for run in found]
    if not any(run.benchmarks for run in runs):
        raise FileNotFoundError(f"{directory}: no results of the kernel benchmarks (kernels-*.json) there")
    return runs


def medians(runs: list[Run]) -> dict[str, list[float]]:
    """The median of each benchmark in every run, in seconds."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for benchmark in run.benchmarks:
            found.setdefault(benchmark["fullname"], []).append(benchmark["stats"]["median"])
    return found


def shifts(before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, float]:
    """By how much the benchmarks of a size took longer on the whole: the machine's doing, or everybody's."""
    found: dict[str, list[float]] = {}
    for name in after.keys() & before.keys():
        factor = statistics.median(after[name]) / statistics.median(before[name])
        found.setdefault(_size(name), []).append(factor)
    return {size: statistics.median_low(factors) for size, factors in sorted(found.items())}


def _size(name: str) -> str:
    return name.split("-")[1]  # test_kernel[KERNEL-SIZE-DTYPE-BACKEND]


def changes(before: dict[str, list[float]], after: dict[str, list[float]]) -> list[Change]:
    """The benchmarks that both results have, from the one that got slowest to the one that got fastest.

    A change is beyond the spread where the gap between the runs before and after, less the shift of all
    benchmarks of that size, is wider than the runs of either are apart, and than those of nine in ten
    benchmarks are: a few runs may agree by chance.
    """
    names = [name for name in after if name in before]
    spreads = {name: max(max(runs) / min(runs) for runs in (before[name], after[name])) for name in names}
    usual = float(np.quantile(list(spreads.values()), 0.9)) if spreads else 1.0
    common = shifts(before, after)

    def gap(name: str) -> float:
        then, now = before[name], [seconds / common[_size(name)] for seconds in after[name]]
        return max(min(now) / max(then), min(then) / max(now))

    found = [
        Change(
            name,
            statistics.median(before[name]),
            statistics.median(after[name]),
            gap(name) > max(spreads[name], usual),
        )
        for name in names
    ]
    return sorted(found, key=lambda change: change.before / change.after)


def main(
    before: Annotated[Path, typer.Argument(help="Saved results.", exists=True, file_okay=False)],
    after: Annotated[Path, typer.Argument(help="New results.", exists=True, file_okay=False)],
) -> None:
    """Name what got slower, or faster, by more than its spread."""
    try:
        runs_before, runs_after = read(before), read(after)
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error)) from error
    found = changes(medians(runs_before), medians(runs_after))
    if not found:
        raise typer.BadParameter(f"{before} and {after} have no benchmark in common")
    if runs_before[0].processor != runs_after[0].processor:
        print(f"{before} was measured on another machine ({runs_before[0].processor}): this tells little")
    for size, shift in shifts(medians(runs_before), medians(runs_after)).items():
        print(f"all benchmarks of size {size}: {shift:.2f} times as long")
    slower = [change for change in found if change.beyond_spread and change.after > change.before]
    faster = [change for change in found if change.beyond_spread and change.after < change.before]
    for word, some in (("slower", slower), ("faster", faster)):
        print(f"{word} beyond their spread: {len(some)} of {len(found)}")
        for change in some:
            print(
                f"  {change.name}: {change.before * 1e3:.3f} -> {change.after * 1e3:.3f} ms "
                f"({change.after / change.before:.2f} times)"
            )
    raise typer.Exit(1 if slower else 0)


if __name__ == "__main__":
    typer.run(main)
