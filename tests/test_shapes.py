"""The embedded data set: its pictures, captions and features, and that nothing of val is in train."""

import json
import re

import numpy as np
import pytest

import fastrnn
from fastrnn.data import make_shapes, shapes
from fastrnn.data.shapes import Object, describe, draw, features
from tests import shapes_grammar


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shapes") / "data"
    prepared = make_shapes(directory, train=300, val=60, seed=3)
    return directory, prepared, json.loads((directory / "scenes.json").read_text())


def test_the_published_layout(made, capsys):
    directory, prepared, _ = made
    assert (prepared["train"].images, prepared["train"].captions) == (300, 1500)
    assert prepared["val"].left_out == 0
    assert prepared["val"].unknown == 0
    data = fastrnn.load_coco_data(directory)
    assert data["train_features"].shape == (300, 153)
    assert data["train_features"].dtype == np.float32
    assert data["train_captions"].shape == (1500, 17)
    assert (np.bincount(data["val_image_idxs"]) == 5).all()
    picture = fastrnn.image_from_url(data["val_urls"][7])  # the path that the loader found
    assert picture.shape == (96, 96, 3)
    opened = fastrnn.open_data(directory)
    assert opened.input_dim == 153
    assert opened.val.urls[7] == "pictures/val_00007.png"
    np.testing.assert_array_equal(opened.val.features[7], features(picture))
    assert opened.references("val")[7] == describe_again(made, "val", 7)


def describe_again(made, split, i):
    return describe(tuple(Object(**thing) for thing in made[2][split][i]["objects"]))


def test_captions_are_true_and_different(made):
    """Every caption, parsed by a grammar of the tests' own; and all forms of the grammar occur."""
    directory, _, scenes = made
    opened = fastrnn.open_data(directory)
    forms = set()
    for split in ("train", "val"):
        for scene, captions in zip(scenes[split], opened.references(split), strict=True):
            assert len(set(captions)) == 5
            for caption in captions:
                assert shapes_grammar.is_true(caption, scene["objects"]), caption
                (form,) = (form for form in shapes_grammar.FORMS if re.fullmatch(form, caption))
                forms.add((len(scene["objects"]), form))
    assert len(opened.idx_to_word) == len(set(opened.idx_to_word)) == 34
    assert {form for _, form in forms} == set(shapes_grammar.FORMS)
    assert len(forms) == 15  # five for each number of objects


def test_what_the_parser_calls_false():
    objects = [
        {"colour": "red", "shape": "circle", "size": "small", "x": 10, "y": 50},
        {"colour": "blue", "shape": "square", "size": "large", "x": 60, "y": 20},
    ]
    for caption in (
        "a red circle",
        "a small red circle left of a large blue square",
        "the picture shows a blue square above a red circle",
        "both a blue square and a red circle",
        "one small red circle and one large blue square",
    ):
        assert shapes_grammar.is_true(caption, objects), caption
    for caption in (
        "a blue circle",
        "a red square",
        "a large red circle",
        "a red circle right of a blue square",
        "a red circle above a blue square",
        "a red circle left of a red circle",
        "only a red circle",
        "both a red circle and a green square",
        "three shapes a red circle a blue square and a blue square",
        "an red circle",
        "a red circle left of",
        "red circle",
        "a a red circle",
        "<UNK>",
        "",
    ):
        assert not shapes_grammar.is_true(caption, objects), caption
    assert not shapes_grammar.is_true("a red circle that is left of a blue square", objects)


def test_no_val_scene_is_a_train_scene(made):
    """Whatever the place within a cell."""
    kinds = {
        split: {
            frozenset(
                (o["colour"], o["shape"], o["size"], o["x"] // 32, o["y"] // 32) for o in scene["objects"]
            )
            for scene in made[2][split]
        }
        for split in ("train", "val")
    }
    assert not kinds["train"] & kinds["val"]
    crowded = shapes._scenes(np.random.default_rng(0), 3000, 1000)  # where chance would repeat single objects
    of_val, of_train = (
        {frozenset((o.colour, o.shape, o.size, o.cell) for o in scene) for scene in crowded[split]}
        for split in ("val", "train")
    )
    assert not of_val & of_train


def test_objects_stay_in_their_cells(made):
    for scene in made[2]["train"]:
        cells = {(o["x"] // 32, o["y"] // 32) for o in scene["objects"]}
        assert len(cells) == len(scene["objects"])
        for o in scene["objects"]:
            reach = shapes.SIZES[o["size"]]
            for position in (o["x"], o["y"]):
                assert position // 32 * 32 < position - reach
                assert position + reach < position // 32 * 32 + 32


@pytest.mark.parametrize("colour", shapes.COLOURS)
@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_pictures_show_their_objects(shape, colour, rng):
    """In its cell the colour, around it paper; the area is that of the shape."""
    for size, r in shapes.SIZES.items():
        thing = Object(colour, shape, size, 48.5, 16.5)
        picture = draw((thing,), rng).astype(float)
        paper = np.abs(picture - picture[60:].mean(axis=(0, 1))).max(axis=2) < 25
        assert paper[:, :32].all()
        assert paper[:, 64:].all()
        assert paper[32:].all()
        np.testing.assert_allclose(picture[16, 48], shapes.COLOURS[colour], atol=30)
        area = {"circle": np.pi * r**2, "square": (1.8 * r) ** 2, "triangle": 1.8 * r * 1.8 * r / 1.9}[shape]
        assert abs((~paper).sum() / area - 1) < 0.2


def test_features_are_of_the_pixels(rng):
    """Changed in the cell of the object alone, and nearly the same after a small move."""
    thing = Object("red", "circle", "large", 48.0, 16.0)
    paper = np.full((96, 96, 3), 236, np.uint8)
    with_red = draw((thing,), rng)
    paper[:, 32:64] = with_red[:, 32:64]
    changed = features(paper).reshape(17, 3, 3) != features(np.full((96, 96, 3), 236, np.uint8)).reshape(
        17, 3, 3
    )
    assert changed[:, 0, 1].any()
    assert changed.sum() == changed[:, 0, 1].sum()
    one, moved, other = (
        features(draw((Object(colour, "circle", "large", x, 16.0),), np.random.default_rng(0)))
        for colour, x in (("red", 47.0), ("red", 49.0), ("blue", 47.0))
    )
    assert np.linalg.norm(one - moved) < 0.2 * np.linalg.norm(one - other)
    with pytest.raises(ValueError, match=r"picture: expected shape \(96,96,3\) uint8, got \(96, 95, 3\)"):
        features(np.zeros((96, 95, 3), np.uint8))
    with pytest.raises(ValueError, match=r"got .* float64"):
        features(np.zeros((96, 96, 3)))


def test_one_seed_one_data_set(made, tmp_path):
    directory = made[0]
    make_shapes(tmp_path / "again", train=300, val=60, seed=3)
    make_shapes(tmp_path / "other", train=300, val=60, seed=4)
    vocabularies = [fastrnn.open_data(tmp_path / name).idx_to_word for name in ("again", "other")]
    assert vocabularies[0] == vocabularies[1]
    files = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    assert len(files) == 368
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes(), name
    for name in ("scenes.json", "references.json", "pictures/train_00299.png", "val2014_vgg16_fc7_pca.h5"):
        assert (tmp_path / "other" / name).read_bytes() != (directory / name).read_bytes()


def test_mistakes_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="val: expected at least 1 picture, got 0"):
        make_shapes(tmp_path / "data", train=5, val=0)
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        make_shapes(tmp_path / "data", train=5, val=5, seed=-1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="full: exists already"):
        make_shapes(tmp_path / "full", train=5, val=5)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "save_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "data", train=5, val=5)
    assert list(tmp_path.iterdir()) == []
