"""Pictures of what was measured: speed-ups, roofline, scaling and stages, as PNG files."""

from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import images
from fastrnn.bench import compare
from fastrnn.bench.race import BFLOAT16, CUBE, OURS, PLAIN, PYTORCH, ratio
from fastrnn.bench.results import BACKENDS, CYTHON, Results, roofline, roofs_of
from fastrnn.bench.workload import Task

SPEEDUP, ROOFLINE, SCALING, STAGES = "speedup.png", "roofline.png", "scaling.png", "stages.png"
BLUE, GREY, ORANGE, LIGHT = "#1f5fa8", "#7f8c99", "#d9822b", "#c5ccd3"
SIZES = {
    "N": "captions in a batch, N",
    "T": "steps, T",
    "H": "hidden units, H",
    "V": "words in the vocabulary, V",
}


def draw(results: Results, directory: Path) -> None:
    """Draw them all. Raises ``ImportError`` without matplotlib, ``OSError`` where one cannot be written."""
    _speedups(results, directory / SPEEDUP)
    _roofline(results, compare.read(directory), directory / ROOFLINE)
    _scaling(results, directory / SCALING)
    _stages(results, directory / STAGES)


def _threads(results: Results) -> int:
    """On how many threads the published sizes were raced in: two, where there are two cores."""
    return 2 if any(outcome.task.threads == 2 for outcome in results.outcomes) else 1


def _colour(name: str) -> str:
    if name in OURS:
        return BLUE
    return LIGHT if name in BFLOAT16 else ORANGE if name in PYTORCH else GREY


def _speedups(results: Results, path: Path) -> None:
    """Bars of speed-ups over plain NumPy, with the least and greatest that any two turns give."""
    threads = _threads(results)
    raced = [
        o
        for N in (25, 100, 256)
        if (o := results.of(Task("train", N=N, threads=threads))) and PLAIN in o.results
    ]
    figure = images.new_figure(4 * max(len(raced), 1) + 1.6, 4.2)
    for column, (task, of, *_) in enumerate(raced):
        axes = figure.add_subplot(1, len(raced), column + 1)
        names = sorted(of.keys() - {CUBE}, key=lambda name: of[name].median, reverse=True)
        speeds = [ratio(of, PLAIN, name) for name in names]
        values = [speed.value for speed in speeds]
        whiskers = [[s.value - s.low for s in speeds], [s.high - s.value for s in speeds]]
        axes.barh(
            names, values, color=[_colour(name) for name in names], xerr=whiskers, error_kw={"elinewidth": 1}
        )
        for row, (name, speed) in enumerate(zip(names, speeds, strict=True)):
            axes.text(
                speed.high,
                row,
                f"  {speed.value:.1f}, {of[name].median * 1e3:.0f} ms",
                va="center",
                fontsize=8,
            )
        axes.set_xlim(0, 1.35 * max(speed.high for speed in speeds))
        axes.set_title(f"N={task.N}", fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("times as fast as plain NumPy", fontsize=9)
    figure.suptitle(
        f"A training iteration of an LSTM captioner, {threads} threads (bfloat16 computes something coarser)",
        fontsize=11,
    )
    figure.tight_layout()
    images.save_figure(figure, path)


def _roofline(results: Results, runs: list[compare.Run], path: Path) -> None:
    """Kernels at N=100 in float32, by operations for each byte that they must move."""
    threads, roofs = roofs_of(results, runs)
    figure = images.new_figure(9.5, 5.5)
    axes = figure.add_subplot()
    intensity = np.geomspace(0.1, 1000, 200)
    for name, style in (("memory", "-"), ("last cache", "--")):
        roof = np.minimum(intensity * roofs[name], roofs["products"]) / 1e9
        label = f"{name}, {roofs[name] / 1e9:.0f} GB/s; products, {roofs['products'] / 1e9:.0f} GFLOP/s"
        axes.plot(intensity, roof, style, color="black", linewidth=1.2, label=label)
    colours = [f"C{i}" for i in range(10)] + ["black"]
    markers = dict(zip(BACKENDS, "osx", strict=True))
    for roofed, colour in zip(roofline(results, runs), colours, strict=True):
        speeds = [speed / 1e9 for speed in roofed.speeds.values()]
        axes.plot([roofed.intensity] * len(speeds), speeds, color=colour, linewidth=0.6)
        for backend, speed in zip(roofed.speeds, speeds, strict=True):
            style = "full" if backend == "cython" else "none"
            axes.plot(roofed.intensity, speed, markers[backend], color=colour, markersize=6, fillstyle=style)
        axes.plot([], [], "o", color=colour, label=roofed.kernel)
    for backend, marker in markers.items():
        axes.plot(
            [], [], marker, color=GREY, fillstyle="full" if marker == "o" else "none", label=f"by {backend}"
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations for each byte of inputs and outputs (FLOP/byte)",
        ylabel="GFLOP/s",
    )
    axes.set_title(f"Kernels at N=100, float32, {threads} threads, under this machine's roofs", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    figure.tight_layout()
    images.save_figure(figure, path)


def _scaling(results: Results, path: Path) -> None:
    """Time of a training iteration by each size, and by threads."""
    figure = images.new_figure(12, 6.5)
    centre = Task("train", threads=_threads(results))
    panels: list[tuple[str, str, list[Task]]] = []
    trained = [o.task for o in results.outcomes if o.task.kind == "train" and o.task.cell == "lstm"]
    for size, label in SIZES.items():
        others = centre._replace(**{size: 0})
        panels.append((size, label, [t for t in trained if t._replace(**{size: 0}) == others]))
    panels.append(
        ("threads", "threads", [t for t in trained if t._replace(threads=centre.threads) == centre])
    )
    for number, (size, label, tasks) in enumerate(panels, 1):
        axes = figure.add_subplot(2, 3, number)
        tasks.sort(key=lambda task: getattr(task, size))
        lines: dict[str, list[Any]] = {"fastrnn cython": [], "PyTorch, packed or live": []}
        for task in tasks:
            of = results.of(task).results  # type: ignore[union-attr]
            best = [of[name].median for name in ("PyTorch packed", "PyTorch live") if name in of]
            for name, seconds in zip(
                lines, (of[CYTHON].median if CYTHON in of else None, min(best, default=None)), strict=True
            ):
                if seconds is not None:
                    lines[name].append((getattr(task, size), 1e3 * seconds))
        for (name, points), colour in zip(lines.items(), (BLUE, ORANGE), strict=True):
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=name)
        ticks = [getattr(task, size) for task in tasks]
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="ms an iteration")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
        axes.minorticks_off()
        low, high = axes.get_ylim()
        ticks = [
            tick
            for power in range(5)
            for tick in (10**power, 2 * 10**power, 5 * 10**power)
            if low <= tick <= high
        ]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
        axes.grid(alpha=0.3)
    axes = figure.add_subplot(2, 3, 6)
    axes.axis("off")
    axes.legend(*figure.axes[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.suptitle(
        f"An LSTM's training iteration: N=100, T=16, H=512, V=1004, {centre.threads} threads, one varied",
        fontsize=11,
    )
    figure.tight_layout()
    images.save_figure(figure, path)


def _stages(results: Results, path: Path) -> None:
    """Stacked bars of the stages that take a fiftieth of the time or more."""
    figure = images.new_figure(9.5, 0.7 * len(results.stages) + 1.7)
    axes = figure.add_subplot()
    whole = max(sum(of.values()) for of in results.stages.values())
    every = dict.fromkeys(stage for of in results.stages.values() for stage in of)
    large = [stage for stage in every if any(of.get(stage, 0) > whole / 50 for of in results.stages.values())]
    backends = list(reversed(results.stages))
    left = np.zeros(len(backends))
    shown = {stage: [results.stages[b].get(stage, 0) for b in backends] for stage in large}
    shown["all else"] = [
        sum(results.stages[b].values()) - sum(of[i] for of in shown.values()) for i, b in enumerate(backends)
    ]
    for number, (stage, seconds) in enumerate(shown.items()):
        widths = 1e3 * np.array(seconds)
        axes.barh(backends, widths, left=left, label=stage, color=f"C{number}")
        left += widths
    axes.set_title("Where the time of a training iteration goes", fontsize=11)
    axes.set_xlabel(f"ms (LSTM, N=100, {_threads(results)} threads)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    figure.tight_layout()
    images.save_figure(figure, path)
