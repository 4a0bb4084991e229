"""A competitor in a process of its own: ``python -m bench.peers MODULE [ARGUMENT]``.

Reads a task as JSON, answers with JSON; then each number that it reads is a turn of so many repetitions.
"""

import importlib
import json
import os
import sys

from bench.workload import Task


def main() -> None:
    """Serve one task."""
    module, *arguments = sys.argv[1:]
    task = Task(**json.loads(sys.stdin.readline()))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.threads])
    answer, run = importlib.import_module(f"bench.peers.{module}").start(task, *arguments)
    print(json.dumps({"answer": answer}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": run(int(line))}), flush=True)


main()
