"""Files that are never left half-written: written beside their final place, then moved there."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

StrPath = str | os.PathLike[str]


@contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    Where the block raises, the new file goes and ``path`` stays as it was.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such directory")
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with naming(target):
            yield beside
            with open(beside, "rb+") as written:
                os.fsync(written.fileno())
            os.replace(beside, target)
            _sync(target.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _sync(directory: Path) -> None:
    """Let a directory's entries reach the disk, so that a renamed file is there after a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(directory: Path, *names: str) -> None:
    """Remove what :func:`replacing` left of files of these names, or patterns, where it was killed."""
    for name in names:
        for path in directory.glob(f".{name}.????????"):
            path.unlink(missing_ok=True)


@contextmanager
def naming(path: StrPath) -> Iterator[None]:
    """Name the file in the ``OSError`` of a failed write, which tells none, or the one beside it."""
    try:
        yield
    except OSError as error:
        hidden = str(error.filename).startswith(os.fspath(Path(path).with_name(f".{Path(path).name}.")))
        if error.errno is None or (error.filename is not None and not hidden):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def check_new_directory(path: StrPath) -> None:
    """Raise ``FileExistsError`` unless there is nothing at ``path``, or only an empty directory."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path}: exists already and is not an empty directory")


@contextmanager
def new_directory(out: StrPath) -> Iterator[Path]:
    """A directory to fill that becomes ``out`` when the block ends well and vanishes otherwise.

    Raises ``FileExistsError`` as :func:`check_new_directory`.
    """
    check_new_directory(out)
    out = Path(out).resolve()
    existing = next(parent for parent in out.parents if parent.is_dir())
    beside = existing / f".{out.name}.{uuid.uuid4().hex[:8]}"
    beside.mkdir()
    try:
        yield beside
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(beside, out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def write_text(path: StrPath, text: str) -> None:
    """Write a UTF-8 text file."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def read_text(path: StrPath) -> str:
    """Read a UTF-8 text file.

    Raises ``FileNotFoundError``, or ``ValueError`` naming the file if it is no such text.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a UTF-8 text file: {error}") from error


def write_json(path: StrPath, value: Any) -> None:
    """Write a JSON file for machines and people."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: StrPath) -> Any:
    """Read a JSON file. Raises ``FileNotFoundError``, or ``ValueError`` naming the file if it is no JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error


def write_tensors(path: StrPath, arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> None:
    """Write arrays and text beside them as a safetensors file; one content, one file."""
    from safetensors.numpy import save

    native = {name: np.ascontiguousarray(a, a.dtype.newbyteorder("=")) for name, a in arrays.items()}
    content = save(native, metadata)
    size = int.from_bytes(content[:8], "little")  # of the header, whose metadata come in any order
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with replacing(path) as beside:
        beside.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def read_tensors(path: StrPath) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read what :func:`write_tensors` wrote.

    Raises ``FileNotFoundError``, or ``ValueError`` naming the file if it is no whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
