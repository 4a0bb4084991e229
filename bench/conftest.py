"""What pytest-benchmark's JSON says of the machine, and leaves out."""

import os

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "22")  # before NumPy comes; fastrnn/bench/race.py tells why

from fastrnn.bench import machine


def pytest_benchmark_update_machine_info(config, machine_info):
    """Processor, libraries, BLAS; not the machine's name."""
    machine_info.pop("node", None)
    machine_info.update(machine.describe())


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Statistics stay, the thousands of single times go."""
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
