"""Reading pictures, and preparing them for a convolutional network trained on ImageNet.

Pillow (extra ``plot``) is imported where it is used.
"""

import io
import urllib.request
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastrnn.arrays import Array
from fastrnn.files import StrPath

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of the RGB channels, from 0 to 1
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
MAX_BYTES = 32 << 20  # the largest file that image_from_url downloads


def image_from_url(url: str, timeout: float = 10.0) -> Array | None:
    """Download a picture: (height,width,3) uint8, or None with a printed word where that fails.

    Gives up after ``timeout`` seconds without an answer and on files over 32 MiB.
    """
    Image = _pillow()
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            content = answer.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
        with Image.open(io.BytesIO(content)) as picture:
            rgb: Array = np.array(picture.convert("RGB"))
            return rgb
    except Exception as error:  # servers and damaged pictures raise whatever they like
        print(f"{url}: no picture: {error}")
        return None


def load_image(filename: StrPath, size: int | None = None) -> Array:
    """Read a picture as (height,width,3) uint8, its shorter side resized to ``size`` pixels if given.

    Raises ``FileNotFoundError``, or ``OSError`` for a file that is no picture.
    """
    Image = _pillow()
    with Image.open(filename) as picture:
        rgb = picture.convert("RGB")
    if size is not None:
        scale = size / min(rgb.size)
        rgb = rgb.resize((max(round(rgb.width * scale), 1), max(round(rgb.height * scale), 1)))
    resized: Array = np.array(rgb)
    return resized


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


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading pictures needs Pillow: pip install 'fastrnn[plot]'") from error
    return Image
