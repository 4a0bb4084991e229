"""Set two results of ``pytest bench --benchmark-json`` against each other and name what got slower.

``python -m bench.compare BEFORE AFTER``. A benchmark is slower where the fastest quarter of its rounds now
takes longer than the slowest quarter did before: its change is beyond its spread. Exit code 1 if any is.
"""

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer


class Change(NamedTuple):
    """A benchmark in two results, in seconds."""

    name: str
    before: float
    after: float
    beyond_spread: bool  # the quartiles of its rounds do not overlap


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """The benchmarks that both results have, from the one that got slowest to the one that got fastest."""
    stats = {b["fullname"]: b["stats"] for b in before["benchmarks"]}
    common = [
        (b["fullname"], stats[b["fullname"]], b["stats"])
        for b in after["benchmarks"]
        if b["fullname"] in stats
    ]
    found = [
        Change(name, old["median"], new["median"], new["q1"] > old["q3"] or new["q3"] < old["q1"])
        for name, old, new in common
    ]
    return sorted(found, key=lambda change: change.before / change.after)


def main(
    before: Annotated[Path, typer.Argument(help="Saved result.", exists=True, dir_okay=False)],
    after: Annotated[Path, typer.Argument(help="New result.", exists=True, dir_okay=False)],
) -> None:
    """Name what got slower, or faster, by more than its spread."""
    results = [json.loads(path.read_text()) for path in (before, after)]
    found = changes(*results)
    if not found:
        raise typer.BadParameter(f"{before} and {after} have no benchmark in common")
    machines = [result["machine_info"].get("cpu", {}).get("brand_raw") for result in results]
    if machines[0] != machines[1]:
        print(f"different machines: {machines[0]} and {machines[1]}")
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
