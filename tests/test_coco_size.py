"""The data set of the published size: its files are the published ones, and its captions tell its scenes."""

import json

import h5py
import numpy as np
import pytest

import fastrnn
from fastrnn import cli
from fastrnn.data import coco_size


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(coco_size, "SIZES", {"train": (300, 1400), "val": (50, 220)})
    monkeypatch.setattr(coco_size, "SLICE", 64)


def test_the_published_files(tmp_path, capsys):
    """At full size: keys, shapes and types, to the byte but for HDF5's headers."""
    assert cli.main(["data", "coco-size", str(tmp_path / "data")]) == 0
    assert "train: 82783 images, 400135 captions\n" in capsys.readouterr().out
    expected = {
        "coco2014_captions.h5": 42_922_600,
        "train2014_vgg16_fc7_pca.h5": 169_541_728,
        "val2014_vgg16_fc7_pca.h5": 82_954_336,
    }
    for name, size in expected.items():
        assert abs((tmp_path / "data" / name).stat().st_size - size) < 5000
    found = {}
    for name in expected:
        with h5py.File(tmp_path / "data" / name) as file:
            found |= {f"{name[:5]} {key}": (value.shape, value.dtype.str) for key, value in file.items()}
    assert found == {
        "coco2 train_captions": ((400_135, 17), "<i4"), "coco2 train_image_idxs": ((400_135,), "<i4"),
        "coco2 val_captions": ((195_954, 17), "<i4"), "coco2 val_image_idxs": ((195_954,), "<i4"),
        "train features": ((82_783, 512), "<f4"), "val20 features": ((40_504, 512), "<f4"),
    }  # fmt: skip
    vocabulary = json.loads((tmp_path / "data" / "coco2014_vocab.json").read_text())
    assert len(vocabulary["idx_to_word"]) == 1004
    data = fastrnn.open_data(tmp_path / "data")
    assert isinstance(data.train.features, np.memmap)
    assert (len(data.train.urls), len(data.val.urls)) == (82_783, 40_504)
    live = np.mean(data.train.captions[:, 1:] != 0)
    assert 0.68 < live < 0.74  # as on COCO


def test_raw_features(tmp_path, small):
    fastrnn.data.make_coco_size(tmp_path / "data", raw=True)
    data = fastrnn.open_data(tmp_path / "data")
    assert data.train.features.shape == (300, 4096)
    assert sorted(path.name for path in (tmp_path / "data").glob("*.h5")) == [
        "coco2014_captions.h5", "train2014_vgg16_fc7.h5", "val2014_vgg16_fc7.h5",
    ]  # fmt: skip


def test_captions(tmp_path, small):
    """Each is one of the templates about its image, with its words in the right form."""
    fastrnn.data.make_coco_size(tmp_path / "data")
    data = fastrnn.open_data(tmp_path / "data")
    train = data.train
    assert np.bincount(train.image_idxs).tolist() == [5] * 200 + [4] * 100
    assert np.isfinite(train.features).all()
    np.testing.assert_array_equal(train.captions[:, 0], 1)
    lengths = np.count_nonzero(train.captions, axis=1)
    assert {int(n) for n in lengths - 2} == {len(template.split()) for template in coco_size.TEMPLATES}
    np.testing.assert_array_equal(train.captions[np.arange(1400), lengths - 1], 2)
    texts = [
        text[len("<START> ") : -len(" <END>")]
        for text in fastrnn.decode_captions(train.captions, data.idx_to_word)
    ]
    for text in texts:
        for a, word in zip(text.split(), text.split()[1:], strict=False):
            assert (a == "an") == (a in ("a", "an") and word[0] in "aeiou"), text
    same, other = (
        np.mean([len(content(texts[i]) & content(texts[300 + (i + shift) % 300])) for i in range(300)])
        for shift in (0, 7)
    )
    assert same > 2 * other


def content(text):
    fixed = {word for template in coco_size.TEMPLATES for word in template.split()}
    return set(text.split()) - fixed - {"an"}


def test_forms_of_words():
    for word, plural in (
        ("man", "men"),
        ("city", "cities"),
        ("boy", "boys"),
        ("bench", "benches"),
        ("box", "boxes"),
    ):
        assert coco_size._plural(word) == plural
    for verb, doing in (("walk", "walking"), ("ride", "riding"), ("cut", "cutting"), ("carry", "carrying")):
        assert coco_size._doing(verb) == doing
    assert all(word.isalpha() and word.islower() for word in coco_size.vocabulary()[4:])


def test_one_seed_one_data_set(tmp_path, small, capsys):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert cli.main(["data", "coco-size", str(tmp_path / name), "--seed", seed]) == 0
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()
    for name in ("coco2014_captions.h5", "train2014_vgg16_fc7_pca.h5"):
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()
    assert cli.main(["data", "coco-size", str(tmp_path / "a")]) == 2
    assert "a: exists already" in capsys.readouterr().err
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        fastrnn.data.make_coco_size(tmp_path / "d", seed=-1)
    assert not (tmp_path / "d").exists()


def test_it_can_be_learnt(tmp_path, small):
    """The features tell the scene: with them the captions are likelier than with those of other images."""
    fastrnn.data.make_coco_size(tmp_path / "data")
    data = fastrnn.open_data(tmp_path / "data")
    np.random.seed(0)
    model = fastrnn.CaptioningRNN(data.word_to_idx, 512, 64, 128, "lstm")
    fastrnn.CaptioningSolver(
        model,
        data,
        update_rule="adam",
        optim_config={"learning_rate": 5e-3},
        num_epochs=15,
        rng=0,
        verbose=False,
    ).train()
    features, captions, _ = data.train.read(np.arange(300))
    assert model.evaluate_loss(features, captions) < 0.7 * model.evaluate_loss(features[::-1], captions)
