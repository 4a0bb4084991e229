"""A competitor in a process of its own: ``python -m fastrnn.bench.peers THREADS MODULE [ARGUMENT]``.

Reads lines of JSON and answers each with one: ``{"task": [...]}`` starts a task and gives its answer,
``{"count": n}`` does it so many times and gives the seconds of each, and the bytes by which the process was
larger at most than before the task started (null where the system does not tell).
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import sys
from pathlib import Path

from fastrnn.bench import workload

STATUS = Path("/proc/self/status")


def memory(label: str) -> int | None:
    """Bytes of this process now (VmRSS), or at most since :func:`forget_peak` (VmHWM)."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(label)), None)


def forget_peak() -> None:
    """Give back what is free, and let the peak begin anew."""
    gc.collect()
    if STATUS.exists():
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Serve tasks until there is no more input."""
    threads, module, *arguments = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):  # before any library counts the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    peer = importlib.import_module(f"fastrnn.bench.peers.{module}")
    run = before = None
    for line in sys.stdin:
        request = json.loads(line)
        if "task" in request:
            run = None  # and all that it holds
            task = workload.Task(*request["task"])
            workload.batches(task)
            forget_peak()
            before = memory("VmRSS")
            answer, run = peer.start(task, *arguments)
            reply = {"answer": answer}
        else:
            seconds, peak = run(request["count"]), memory("VmHWM")
            reply = {"seconds": seconds, "memory": None if None in (peak, before) else peak - before}
        print(json.dumps(reply), flush=True)


main()
