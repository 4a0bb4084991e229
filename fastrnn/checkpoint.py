"""Checkpoints: the state of a training in a safetensors file, to go on as if it had never stopped.

A file holds the tensors ``params.NAME``, ``optim.NAME.KEY`` (the update rule's state) and ``loss_history``,
and as text what is no array: epoch, iteration and position, the generator that shuffles, the update rule's
settings, and notes of whoever saved it. It appears whole or not at all.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import files
from fastrnn.arrays import Array
from fastrnn.files import StrPath

_FORMAT = "fastrnn.checkpoint 1"
_NAME = re.compile(r"iteration-(\d{9})\.safetensors")

State = tuple[dict[str, Array], dict[str, Any]]  # as CaptioningSolver.state returns it


def save_checkpoint(path: StrPath, state: State, notes: dict[str, Any] | None = None) -> None:
    """Write a state (:meth:`fastrnn.CaptioningSolver.state`) and notes, which JSON can hold.

    Raises ``ValueError`` for parameters that are not finite, from which nobody could go on, and ``OSError``
    where the file cannot be written; what was there before stays then.
    """
    arrays, plain = state
    for name, array in arrays.items():
        if name.startswith("params.") and not np.isfinite(array).all():
            raise ValueError(f"{name}: has NaN or infinite values at iteration {plain['iteration']}")
    texts = {"state": plain, "notes": notes or {}}
    metadata = {
        name: json.dumps(value, default=lambda value: value.tolist()) for name, value in texts.items()
    }
    files.write_tensors(path, arrays, {"format": _FORMAT, **metadata})


def load_checkpoint(path: StrPath) -> tuple[State, dict[str, Any]]:
    """The state and the notes of a checkpoint.

    Raises ``FileNotFoundError``, or ``ValueError`` naming the file if it is no whole checkpoint.
    """
    arrays, metadata = files.read_tensors(path)
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path}: expected a checkpoint saved as {_FORMAT!r}, got {metadata.get('format')!r}"
        )
    return (arrays, json.loads(metadata["state"])), json.loads(metadata["notes"])


def checkpoint_path(directory: Path, iteration: int) -> Path:
    """The file of a run's checkpoint after so many iterations."""
    return directory / f"iteration-{iteration:09}.safetensors"


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a directory, which need not exist, the newest first."""
    found = [path for path in directory.glob("*") if _NAME.fullmatch(path.name)]
    return sorted(found, reverse=True)
