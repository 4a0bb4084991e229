"""Pictures: reading them, preparing them for a network trained on ImageNet, and drawing what a run did.

Pillow and matplotlib (extra ``plot``) are imported where they are used.
"""

import io
import math
import textwrap
import time
import urllib.request
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastrnn import files
from fastrnn.arrays import Array
from fastrnn.files import StrPath

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of the RGB channels, from 0 to 1
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
MAX_BYTES = 32 << 20  # the largest file that image_from_url downloads
MAX_PIXELS = 50_000_000


# ---------------------------------------------------------------------------------------------------
# Reading and writing


def image_from_url(url: str, timeout: float = 10.0, placeholder: bool = False) -> Array | None:
    """Fetch a picture: (height,width,3) uint8. ``url`` begins with http, or is the path of a file.

    Gives up after ``timeout`` seconds and on files over 32 MiB. Then, and where what came is no picture, says
    so in a printed line and returns None, or :func:`placeholder_image` if asked to. Raises ``ImportError``
    without Pillow.
    """
    try:
        return fetch_image(url, timeout)
    except OSError as error:
        print(f"{url}: no picture: {error}")
        return placeholder_image() if placeholder else None


def fetch_image(url: str, timeout: float = 10.0) -> Array:
    """What :func:`image_from_url` returns, but raises ``OSError`` where that says there is no picture."""
    if not url.startswith(("http://", "https://")):
        return load_image(url)
    try:
        return _rgb(io.BytesIO(_download(url, timeout)))
    except ImportError:
        raise
    except Exception as error:  # servers and damaged pictures raise whatever they like
        raise OSError(error) from error


def _download(url: str, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    content = bytearray()
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        while part := answer.read1(1 << 16):
            content += part
            if len(content) > MAX_BYTES:
                raise OSError(f"larger than {MAX_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise OSError(f"timed out after {timeout} seconds")
    return bytes(content)


def placeholder_image() -> Array:
    """A neutral grey picture (96,96,3) uint8 to stand where there is none."""
    return np.full((96, 96, 3), 224, np.uint8)


def load_image(filename: StrPath, size: int | None = None) -> Array:
    """Read a picture as (height,width,3) uint8, its shorter side resized to ``size`` pixels if given.

    What is transparent becomes white. Raises ``FileNotFoundError``, ``OSError`` naming the file if it is no
    whole picture or has over 50 million pixels, ``ImportError`` without Pillow.
    """
    if not Path(filename).is_file():
        raise FileNotFoundError(f"{filename}: no such file")
    try:
        return _rgb(filename, size)
    except ImportError:
        raise
    except Exception as error:  # damaged pictures raise whatever they like
        raise OSError(f"{filename}: not a readable picture: {error}") from error


def _rgb(file: Any, size: int | None = None) -> Array:
    Image = _pillow()
    with Image.open(file) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"larger than {MAX_PIXELS:,} pixels")
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        rgb = picture.convert("RGB")
    if size is not None:
        scale = size / min(rgb.size)
        rgb = rgb.resize((max(round(rgb.width * scale), 1), max(round(rgb.height * scale), 1)))
    array: Array = np.array(rgb)
    return array


def square_image(filename: StrPath, side: int) -> Array:
    """Read the middle of a picture, scaled to (side,side,3) uint8. Raises as :func:`load_image`."""
    picture = load_image(filename)
    height, width = picture.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    middle = _pillow().fromarray(picture[top : top + edge, left : left + edge])
    scaled: Array = np.array(middle.resize((side, side)))
    return scaled


def save_image(filename: StrPath, picture: Array) -> None:
    """Write a picture (height,width,3) uint8, in the format that the name's ending tells.

    Raises ``ImportError`` without Pillow.
    """
    _pillow().fromarray(picture).save(filename)


# ---------------------------------------------------------------------------------------------------
# Preparing for a network


def preprocess_image(img: ArrayLike) -> Array:
    """A picture (...,3) of 0..255 as float32 with ImageNet's mean subtracted and deviation divided out."""
    normalised: Array = (np.asarray(img, np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return normalised


def deprocess_image(img: ArrayLike, rescale: bool = False) -> Array:
    """Undo :func:`preprocess_image`: uint8; ``rescale`` stretches the values to the whole range first."""
    restored = np.asarray(img) * IMAGENET_STD + IMAGENET_MEAN
    if rescale:
        low, high = restored.min(), restored.max()
        restored = (restored - low) / max(high - low, np.finfo(np.float32).tiny)
    pixels: Array = np.clip(255 * restored, 0, 255).astype(np.uint8)
    return pixels


# ---------------------------------------------------------------------------------------------------
# Drawing


def plot_losses(
    path: StrPath, title: str, losses: Sequence[float], epochs: Sequence[tuple[int, float]]
) -> None:
    """Draw the loss of each iteration, smoothed and raw, and the val loss after some, as a PNG file.

    ``epochs`` holds (iteration, val loss). Raises ``ValueError`` without any loss, ``ImportError`` without
    matplotlib.
    """
    if not losses or not epochs:
        raise ValueError("losses: expected those of one epoch or more, got none")
    figure = new_figure(8, 4.5)
    from matplotlib.ticker import LogLocator, NullFormatter

    axes = figure.add_subplot()
    axes.plot(
        np.arange(1, len(losses) + 1),
        losses,
        color="tab:blue",
        alpha=0.4,
        linewidth=0.8,
        label="train, each iteration",
    )
    window = max(len(losses) // 50, 1)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(
        np.arange(len(smooth)) + (window + 1) / 2, smooth, color="tab:blue", label=f"train, mean of {window}"
    )
    axes.plot(
        *zip(*epochs, strict=True),
        color="tab:red",
        marker="o",
        markersize=4,
        label=f"val, after each epoch; best {min(loss for _, loss in epochs):.3f}",
    )
    axes.set_title(title, parse_math=False)
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss per caption (nats, logarithmic scale)")
    axes.set_xlim(left=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def plot_captions(
    path: StrPath,
    title: str,
    pictures: Sequence[Array],
    captions: Sequence[str],
    true_captions: Sequence[str],
) -> None:
    """Draw pictures (height,width,3) in a grid, below each its caption and a true one, as a PNG file.

    Raises ``ValueError`` without any picture, ``ImportError`` without matplotlib.
    """
    if not pictures:
        raise ValueError("pictures: expected one or more, got none")
    columns = min(len(pictures), 4)
    rows = math.ceil(len(pictures) / columns)
    texts = [
        (_wrapped(caption or "(no words)"), _wrapped(f"true: {true}") if true else "")
        for caption, true in zip(captions, true_captions, strict=True)
    ]
    lines = max(caption.count("\n") + true.count("\n") + 2 for caption, true in texts)
    width, side, line, margin = 2.6, 2.2, 0.14, 0.6  # inches: of a column, a picture, a line, and at the top
    height = side + line * (lines + 1.5)  # of a row
    figure = new_figure(columns * width, rows * height + margin)
    whole = rows * height + margin
    figure.suptitle(
        textwrap.fill(title, width=32 * columns, max_lines=2),
        parse_math=False,
        y=1 - 0.15 / whole,
        va="top",
        fontsize=11,
    )
    for i, (picture, (caption, true)) in enumerate(zip(pictures, texts, strict=True)):
        row, column = divmod(i, columns)
        bottom = whole - margin - row * height - side
        left = column * width + (width - side) / 2
        axes = figure.add_axes(
            (left / (columns * width), bottom / whole, side / (columns * width), side / whole)
        )
        axes.imshow(picture, interpolation="nearest" if max(picture.shape) < 200 else None)
        axes.set_anchor("S")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("0.8")
        across = {
            "x": (column + 0.5) / columns,
            "ha": "center",
            "va": "top",
            "parse_math": False,
            "fontsize": 8,
        }
        below = bottom - 0.4 * line
        figure.text(y=below / whole, s=caption, fontweight="bold", **across)
        figure.text(y=(below - line * (caption.count("\n") + 1)) / whole, s=true, color="0.4", **across)
    save_figure(figure, path)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, width=34, max_lines=4, placeholder=" ...")


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, sizes in inches. Raises ``ImportError`` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'fastrnn[plot]'") from error
    return Figure(figsize=(width, height), dpi=120)


def save_figure(figure: Any, path: StrPath) -> None:
    """Write a figure as a PNG file, whole or not at all. Raises ``OSError`` where it cannot be written."""
    with files.replacing(path) as beside, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of characters that the font does not have
        figure.savefig(beside, format="png", facecolor="white")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures need Pillow: pip install 'fastrnn[plot]'") from error
    return Image
