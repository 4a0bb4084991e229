"""Set two results of the kernel benchmarks against each other and name what got slower.

``python -m bench.compare BEFORE AFTER``: directories with files of ``pytest bench --benchmark-json``, one of
each time that the benchmarks ran. A benchmark is slower where its fastest median now is above its slowest one
before: its change is beyond its spread. Exit code 1 if any is.
"""

import json
import statistics
from pathlib import Path
from typing import Annotated, NamedTuple

import typer


class Change(NamedTuple):
    """A benchmark in two results, in seconds."""

    name: str
    before: float  # medians of the medians
    after: float
    beyond_spread: bool  # no run was as fast, or as slow, as one of the others


def medians(directory: Path) -> dict[str, list[float]]:
    """The median of each benchmark in every run. Raises ``ValueError`` where there is none."""
    found: dict[str, list[float]] = {}
    for path in sorted(directory.glob("*.json")):
        for benchmark in json.loads(path.read_text())["benchmarks"]:
            found.setdefault(benchmark["fullname"], []).append(benchmark["stats"]["median"])
    if not found:
        raise ValueError(f"{directory}: no results of pytest-benchmark there")
    return found


def changes(before: dict[str, list[float]], after: dict[str, list[float]]) -> list[Change]:
    """The benchmarks that both results have, from the one that got slowest to the one that got fastest."""
    found = [
        Change(
            name,
            statistics.median(before[name]),
            statistics.median(runs),
            min(runs) > max(before[name]) or max(runs) < min(before[name]),
        )
        for name, runs in after.items()
        if name in before
    ]
    return sorted(found, key=lambda change: change.before / change.after)


def main(
    before: Annotated[Path, typer.Argument(help="Saved results.", exists=True, file_okay=False)],
    after: Annotated[Path, typer.Argument(help="New results.", exists=True, file_okay=False)],
) -> None:
    """Name what got slower, or faster, by more than its spread."""
    found = changes(medians(before), medians(after))
    if not found:
        raise typer.BadParameter(f"{before} and {after} have no benchmark in common")
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
