"""What reading data costs: an epoch of ``fastrnn train`` against its kernels on minibatches in memory.

``fastrnn data coco-size DATA; python -m fastrnn.bench.feeding DATA`` takes some minutes and prints tokens per
second of both, and the most anonymous memory that training had at a time.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import fastrnn
from fastrnn import training

BATCHES = 300  # minibatches in memory
TURNS = 3  # before the epoch, and after it


def kernels_alone(data: Path, settings: training.Settings) -> tuple[list[float], list[float]]:
    """Tokens per second of gradients and updates, turn by turn, and the losses of the turn before these.

    Model and minibatches are those that training begins with.
    """
    opened = fastrnn.open_data(data)
    np.random.seed(settings.seed)
    model = fastrnn.CaptioningRNN(
        opened.word_to_idx, opened.input_dim, settings.wordvec, settings.hidden, settings.cell
    )
    solver = fastrnn.CaptioningSolver(
        model, opened, update_rule="adam", optim_config={"learning_rate": settings.lr}, verbose=False
    )
    chosen = opened.train.epoch(settings.batch_size, np.random.default_rng(settings.seed))[:BATCHES]
    batches = [opened.train.read(each)[:2] for each in chosen]
    tokens = sum(np.count_nonzero(captions[:, 1:]) for _, captions in batches)
    rates = []
    for _ in range(1 + TURNS):
        waiting = iter(batches)
        solver._minibatch = lambda waiting=waiting: next(waiting)
        started = time.perf_counter()
        for _ in batches:
            solver._step()
        rates.append(tokens / (time.perf_counter() - started))
    return rates[1:], solver.loss_history[: len(batches)]


def epoch(data: Path, run: Path) -> tuple[float, float, list[float]]:
    """Tokens per second of an epoch, the most anonymous memory in bytes (NaN: not known), and all losses."""
    command = [sys.executable, "-m", "fastrnn", "train", "--data", data, "--out", run, "--epochs", "1"]
    process = subprocess.Popen(list(map(str, command)))
    status, most = Path(f"/proc/{process.pid}/status"), float("nan")
    while process.poll() is None:
        lines = status.read_text().splitlines() if status.exists() else []
        for line in lines:
            if line.startswith("RssAnon:"):
                most = np.fmax(most, 1024.0 * int(line.split()[1]))
        time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f"fastrnn train ended with {process.returncode}")
    lines = [json.loads(line) for line in (run / training.METRICS).read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return float(lines[-1]["tokens_per_second"]), float(most), losses


def main(data: Annotated[Path, typer.Argument(help="Data directory.", file_okay=False, exists=True)]) -> None:
    """Print what reading the data costs."""
    settings = training.Settings(str(data))
    with tempfile.TemporaryDirectory() as directory:
        before, expected = kernels_alone(data, settings)
        trained, memory, losses = epoch(data, Path(directory) / "run")
        after, _ = kernels_alone(data, settings)
    if losses[: len(expected)] != expected:
        raise RuntimeError("training and the kernels alone have other losses on the same minibatches")
    alone = before + after
    print(f"{fastrnn.get_num_threads()} threads each, the same losses in {len(expected)} iterations")
    print(f"kernels alone: {np.median(alone):,.0f} tokens/s ({min(alone):,.0f} to {max(alone):,.0f})")
    print(f"an epoch of training: {trained:,.0f} tokens/s, {trained / np.median(alone):.1%} of that")
    print(f"anonymous memory: {memory / 1e6:,.0f} MB at most")


if __name__ == "__main__":
    typer.run(main)
