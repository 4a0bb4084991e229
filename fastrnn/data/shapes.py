"""The embedded data set: pictures of one to three coloured shapes, with captions that say what is where.

It is drawn on the spot, so a captioner can be trained without any download, and every caption it writes can
be checked: :data:`SCENES` in the data directory tells what each picture shows. A scene has its objects in
different cells of a 3 x 3 grid, each somewhere within its cell. The captions are written by this grammar::

    object   = [size] colour shape           size = small | large
    relation = left of | right of | above | below
    caption  = a object | there is a object | one object | the picture shows a object | only a object
             | a object relation a object [that is relation a object]
             | there is a object relation a object [and a object]
             | the picture shows a object relation a object
             | one object and one object [and one object]
             | both a object and a object | three shapes a object a object and a object

with ``an`` for ``a`` before orange. "Only", "both" and "three shapes" mean that there is nothing else.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import files
from fastrnn.arrays import Array
from fastrnn.data.coco import SPECIAL, features_file
from fastrnn.data.prepare import Prepared, Source, words, write_data
from fastrnn.files import StrPath
from fastrnn.images import save_image, square_image

SIDE = 96  # pixels, of a picture
GRID = 3  # cells per side, in scenes and in features
CELL = SIDE // GRID
COLOURS = {
    "red": (214, 45, 45),
    "orange": (240, 140, 30),
    "yellow": (236, 212, 46),
    "green": (50, 160, 70),
    "blue": (45, 90, 210),
    "purple": (140, 60, 170),
}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 8, "large": 13}  # pixels, from the centre to about the edge
WORDS = (  # of the captions, in the order of the vocabulary
    *("a", "an", "the", "there", "is", "one", "only", "both", "three", "shapes", "picture", "shows"),
    *("left", "right", "of", "above", "below", "that", "and"),
    *SIZES,
    *COLOURS,
    *SHAPES,
)
SCENES = "scenes.json"
PICTURES = "pictures"
HUES = 8  # bins of the colour histogram
DIRECTIONS = 8  # bins of the edge histogram
WIDTH = (HUES + DIRECTIONS + 1) * GRID * GRID  # numbers in the features of a picture


@dataclass(frozen=True)
class Object:
    """One shape in a picture."""

    colour: str
    shape: str
    size: str
    x: float  # of the centre, in pixels from the left
    y: float  # and from the top

    @property
    def cell(self) -> tuple[int, int]:
        """Column and row of the grid."""
        return int(self.x) // CELL, int(self.y) // CELL


Scene = tuple[Object, ...]  # from left to right, in a column from top to bottom


def make_shapes(
    out: StrPath, *, train: int = 5000, val: int = 500, seed: int = 0, progress: bool = False
) -> dict[str, Prepared]:
    """Draw ``train`` and ``val`` pictures and write them as a data directory in the published layout.

    Beside the published files it holds the pictures (96 x 96 PNG) in ``pictures``, whose paths relative to
    the directory stand where others have URLs, and ``scenes.json`` with the objects of every picture. No val
    scene is a train scene, wherever in their cells the objects are. One seed always gives the same data set
    (with one version of NumPy and Pillow). Features are what :func:`features` makes of the pictures; their
    file has the published name.

    Returns what became of ``"train"`` and ``"val"``. Raises ``ValueError`` for fewer than one picture or a
    negative seed, ``FileExistsError`` where ``out`` holds something, ``ImportError`` without Pillow (extra
    ``plot``).
    """
    from tqdm.auto import tqdm

    for name, count in (("train", train), ("val", val)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1 picture, got {count}")
    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    of_scenes, of_pictures = np.random.default_rng(seed).spawn(2)
    with files.new_directory(out) as directory, tempfile.TemporaryDirectory() as temporary:
        (directory / PICTURES).mkdir()
        sources: dict[str, Source] = {}
        described: dict[str, list[Any]] = {}
        with tqdm(desc="drawing", total=train + val, unit="picture", disable=not progress) as bar:
            for split, scenes in _scenes(of_scenes, train, val).items():
                names, captions, rows, described[split] = [], [], [], []
                for i, scene in enumerate(scenes):
                    picture = draw(scene, of_pictures)
                    names.append(f"{PICTURES}/{split}_{i:05}.png")
                    save_image(directory / names[-1], picture)
                    rows.append(features(picture))
                    captions.append(describe(scene))
                    described[split].append(
                        {"picture": names[-1], "objects": [asdict(thing) for thing in scene]}
                    )
                    bar.update()
                sources[split] = _source(Path(temporary) / f"{split}.npy", names, captions, np.stack(rows))
        files.write_json(directory / SCENES, described)
        prepared = write_data(directory, sources, [*SPECIAL, *WORDS])
        for split in sources:  # the published loader asks for this name unless told otherwise
            (directory / features_file(split, pca=False)).rename(directory / features_file(split, pca=True))
    return prepared


def _source(path: Path, names: list[str], captions: list[list[str]], rows: Array) -> Source:
    """A split for ``prepare``, its features in the file ``path``."""
    np.save(path, rows)
    np.save(path.with_name(f"{path.stem}_image_ids.npy"), np.arange(len(rows)))
    annotations = [(i, words(caption)) for i, of_image in enumerate(captions) for caption in of_image]
    return Source(
        list(range(len(rows))), names, captions, annotations, path, np.arange(len(rows)), rows.shape[1]
    )


# ---------------------------------------------------------------------------------------------------
# Scenes and pictures


def _scenes(rng: np.random.Generator, train: int, val: int) -> dict[str, Iterable[Scene]]:
    """That many scenes of each split, val first; what is a val scene is none in train."""

    def what(scene: Scene) -> frozenset[Any]:
        return frozenset((thing.cell, thing.colour, thing.shape, thing.size) for thing in scene)

    of_val = [_scene(rng) for _ in range(val)]
    held_out = {what(scene) for scene in of_val}
    endless = iter(lambda: _scene(rng), None)
    of_train = islice((scene for scene in endless if what(scene) not in held_out), train)
    return {"val": of_val, "train": of_train}


def _scene(rng: np.random.Generator) -> Scene:
    """One object (a fifth of the scenes), two or three, no two of the same colour and shape."""
    count = rng.choice([1, 2, 3], p=[0.2, 0.4, 0.4])
    kinds = rng.choice(len(COLOURS) * len(SHAPES), count, replace=False)
    cells = rng.choice(GRID * GRID, count, replace=False)
    things = []
    for kind, cell in zip(kinds.tolist(), np.sort(cells).tolist(), strict=True):
        colour, shape = divmod(kind, len(SHAPES))
        size = str(rng.choice(list(SIZES)))
        room = CELL / 2 - SIZES[size] - 1
        x, y = np.array(divmod(cell, GRID)) * CELL + CELL / 2 + rng.uniform(-room, room, 2)
        things.append(Object(list(COLOURS)[colour], SHAPES[shape], size, round(x, 2), round(y, 2)))
    return tuple(things)


def draw(scene: Scene, rng: np.random.Generator) -> Array:
    """A picture (96,96,3) uint8 of a scene: smooth edges, light paper, and some noise in all of it."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    picture = 236 + rng.uniform(-6, 6, 3) + rng.normal(0, 3, (SIDE, SIDE, 1))
    for thing in scene:
        dx, dy, r = x - thing.x, y - thing.y, SIZES[thing.size]
        if thing.shape == "circle":
            distance = np.hypot(dx, dy) - r
        elif thing.shape == "square":
            distance = np.maximum(abs(dx), abs(dy)) - 0.9 * r
        else:
            distance = np.maximum(dy - 0.8 * r, (1.9 * abs(dx) - dy - r) / np.hypot(1.9, 1))
        inside = np.clip(0.5 - distance, 0, 1)[:, :, None]
        picture += inside * (np.array(COLOURS[thing.colour]) + rng.normal(0, 6, 3) - picture)
    drawn: Array = np.clip(picture, 0, 255).astype(np.uint8)
    return drawn


# ---------------------------------------------------------------------------------------------------
# Captions


def describe(scene: Scene) -> list[str]:
    """Five captions of a scene, in the grammar at the top of this module."""
    short = [f"{thing.colour} {thing.shape}" for thing in scene]
    full = [f"{thing.size} {words}" for thing, words in zip(scene, short, strict=True)]
    right = [_relation(a, b) for a, b in pairwise(scene)]  # of each object to the next
    left = [_relation(b, a) for a, b in pairwise(scene)]
    ones = " and ".join(f"one {thing}" for thing in full)
    if len(scene) == 1:
        captions = [
            f"a {full[0]}",
            f"there is a {short[0]}",
            ones,
            f"the picture shows a {short[0]}",
            f"only a {short[0]}",
        ]
    elif len(scene) == 2:
        captions = [
            f"a {full[0]} {right[0]} a {full[1]}",
            f"there is a {short[0]} {right[0]} a {short[1]}",
            ones,
            f"the picture shows a {short[1]} {left[0]} a {short[0]}",
            f"both a {short[0]} and a {short[1]}",
        ]
    else:
        captions = [
            f"a {short[0]} {right[0]} a {short[1]} that is {right[1]} a {short[2]}",
            f"there is a {short[0]} {right[0]} a {short[1]} and a {short[2]}",
            ones,
            f"the picture shows a {short[2]} {left[1]} a {short[1]}",
            f"three shapes a {short[0]} a {short[1]} and a {short[2]}",
        ]
    return [caption.replace("a orange", "an orange") for caption in captions]


def _relation(a: Object, b: Object) -> str:
    """Where a is, seen from b; across where the cells are as far apart across as up and down."""
    across, down = (theirs - ours for ours, theirs in zip(a.cell, b.cell, strict=True))
    if abs(down) > abs(across):
        return "above" if down > 0 else "below"
    return "left of" if across > 0 else "right of"


# ---------------------------------------------------------------------------------------------------
# Features


def features(picture: Array) -> Array:
    """What a captioner sees of a picture (96,96,3) uint8: float32 (153,), 17 numbers for each of 3 x 3 cells.

    Of the coloured part of each cell: a histogram of hue, a histogram of the directions of its edges (Dalal
    and Triggs, CVPR 2005) and the root of its area. Raises ``ValueError`` for another shape or dtype.
    """
    if picture.shape != (SIDE, SIDE, 3) or picture.dtype != np.uint8:
        raise ValueError(
            f"picture: expected shape ({SIDE},{SIDE},3) uint8, got {picture.shape} {picture.dtype}"
        )
    red, green, blue = np.moveaxis(picture.astype(np.float32) / 255, 2, 0)
    coloured = np.clip(3 * (np.ptp(picture, axis=2) / np.float32(255) - 0.15), 0, 1)
    hue = np.arctan2(np.sqrt(np.float32(3)) * (green - blue), 2 * red - green - blue)
    down, across = np.gradient(coloured)
    area = _per_cell(coloured[None])
    hues = _per_cell(coloured * _bins(hue, HUES))
    edges = _per_cell(np.hypot(down, across) * _bins(np.arctan2(down, across), DIRECTIONS))
    cells = np.concatenate([2 * hues / (area + 20), 4 * edges / (edges.sum(axis=0) + 4), np.sqrt(area) / 20])
    return cells.reshape(-1)


def features_of_file(path: StrPath) -> Array:
    """The features (153,) of a picture file, whose middle is scaled to 96 x 96 pixels.

    Raises ``OSError`` for a file that is no picture, ``ImportError`` without Pillow.
    """
    return features(square_image(path, SIDE))


def _bins(angle: Array, count: int) -> Array:
    """How much an angle (...) belongs to each of ``count`` directions around the circle: (count,...)."""
    directions = 2 * np.pi * np.arange(count, dtype=np.float32)[:, None, None] / count
    belongs: Array = np.square(np.square(np.maximum(np.cos(angle - directions), 0)))
    return belongs


def _per_cell(maps: Array) -> Array:
    """Sums of maps (k,96,96) over the cells of the grid: (k,9)."""
    sums: Array = maps.reshape(-1, GRID, CELL, GRID, CELL).sum(axis=(2, 4)).reshape(len(maps), -1)
    return sums
