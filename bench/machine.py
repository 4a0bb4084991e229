"""What the benchmarks ran on: processor, libraries, captions, and the machine's own speeds."""

import importlib.metadata
import platform
from contextlib import closing
from pathlib import Path
from typing import Any

from fastrnn import backend
from fastrnn.bench import workload
from fastrnn.bench.race import SECONDS, Competitor
from fastrnn.bench.workload import CUBE_FLOPS, Task

LIBRARIES = ("numpy", "scipy", "numba", "cython", "torch", "jax", "onnxruntime")
CPUINFO = Path("/proc/cpuinfo")
TRIADS = {"memory": 2**30, "last cache": 2**24}  # bytes that they move


def describe() -> dict[str, str]:
    """What a reader needs to know of the machine and the software; no name of the machine."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in cpu.get("flags", "").split() if flag.startswith(("sse4", "avx", "fma", "amx"))]
    config = backend.config()
    model = cpu.get("model name", platform.processor() or platform.machine())
    return {
        "processor": f"{model}, {backend.physical_cores()} cores",
        "features": " ".join(sorted(flags)) or "not known",
        "instruction set": config["isa"],
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "libraries": ", ".join(f"{name} {version}" for name in LIBRARIES if (version := _version(name))),
        "BLAS": config["blas"],
        "captions": workload.captions(Task("train").V, Task("train").T)[1],
    }


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def roofs(threads: int) -> dict[str, float]:
    """FLOP/s of products, and bytes a second of STREAM's triad from memory and from the last cache."""
    found = {}
    for name, argument in {"products": "cube", **TRIADS}.items():
        with closing(Competitor(("roof", str(argument)), threads)) as process:
            process.ask(task=Task("product", threads=threads))
            process.reply()
            first = min(process.turn(3)[0])
            seconds = min(process.turn(max(10, round(4 * SECONDS / first)))[0])  # a roof is the best there is
        found[name] = (CUBE_FLOPS if argument == "cube" else float(argument)) / seconds
    return found


def stages(task: Task, backend_name: str, count: int = 20) -> dict[str, float]:
    """Seconds of each stage of a training iteration on a backend."""
    with closing(Competitor(("stages", backend_name), task.threads)) as process:
        process.ask(task=task)
        process.reply()
        process.turn(3)  # warm up
        process.ask(count=count)
        seconds: dict[str, Any] = process.reply()["seconds"]
        return seconds
