"""Reading the published layout: the published functions, the native path beside them, and bad files."""

import json
import shutil
import threading
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest

import fastrnn
from fastrnn.data import prepare_data
from fastrnn.data.coco import ChunkedFeatures, read_ahead
from tests.datasets import edit_json, write_coco, write_h5


@pytest.fixture
def directory(tmp_path):
    prepare_data(tmp_path / "data", **write_coco(tmp_path / "coco", images=20), min_count=1, pca=4)
    return tmp_path / "data"


def test_load_coco_data(directory, capsys):
    data = fastrnn.load_coco_data(base_dir=directory)
    assert capsys.readouterr().out == f"base dir  {directory}\n"
    shapes = {
        name: (value.shape, value.dtype.kind) for name, value in data.items() if isinstance(value, np.ndarray)
    }
    assert shapes == {
        "train_captions": ((40, 17), "i"), "train_image_idxs": ((40,), "i"), "train_features": ((20, 4), "f"),
        "val_captions": ((40, 17), "i"), "val_image_idxs": ((40,), "i"), "val_features": ((20, 4), "f"),
        "train_urls": ((20,), "U"), "val_urls": ((20,), "U"),
    }  # fmt: skip
    assert data["train_captions"].dtype == np.int32
    assert data["train_features"].dtype == np.float32
    assert isinstance(data["idx_to_word"], list)
    assert data["word_to_idx"] == {word: i for i, word in enumerate(data["idx_to_word"])}
    assert data["idx_to_word"][:4] == ["<NULL>", "<START>", "<END>", "<UNK>"]


def test_max_train_draws_as_published(directory):
    whole = fastrnn.load_coco_data(base_dir=directory)
    np.random.seed(3)
    part = fastrnn.load_coco_data(base_dir=str(directory), max_train=15)
    np.random.seed(3)
    kept = np.random.randint(40, size=15)
    for name in ("train_captions", "train_image_idxs"):
        np.testing.assert_array_equal(part[name], whole[name][kept])
    for name in ("train_features", "train_urls", "val_captions"):
        np.testing.assert_array_equal(part[name], whole[name])


def test_features_without_pca(tmp_path):
    prepare_data(tmp_path / "data", **write_coco(tmp_path / "coco"), min_count=1)
    assert fastrnn.load_coco_data(tmp_path / "data", pca_features=False)["val_features"].shape == (12, 6)
    with pytest.raises(FileNotFoundError, match=r"train2014_vgg16_fc7_pca\.h5: no such file"):
        fastrnn.load_coco_data(tmp_path / "data")


@pytest.mark.parametrize("split", ["train", "val"])
def test_minibatches_are_drawn_as_published(directory, split):
    data = fastrnn.load_coco_data(directory)
    np.random.seed(5)
    captions, features, urls = fastrnn.sample_coco_minibatch(data, batch_size=30, split=split)
    np.random.seed(5)
    chosen = np.random.choice(40, 30)
    images = data[f"{split}_image_idxs"][chosen]
    np.testing.assert_array_equal(captions, data[f"{split}_captions"][chosen])
    np.testing.assert_array_equal(features, data[f"{split}_features"][images])
    np.testing.assert_array_equal(urls, data[f"{split}_urls"][images])


def test_decode_captions():
    words = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "cat"]
    captions = np.array([[1, 4, 5, 2, 4, 4], [4, 0, 3, 0, 5, 0], [0, 0, 0, 0, 0, 0]])
    expected = ["<START> a cat <END>", "a <UNK> cat", ""]
    assert fastrnn.decode_captions(captions, words) == expected
    assert fastrnn.decode_captions(captions[0], dict(enumerate(words))) == expected[0]
    assert fastrnn.decode_captions(captions.astype(float), words) == expected


# ---------------------------------------------------------------------------------------------------
# The native path


def test_both_ways_give_the_same_arrays(directory):
    published, native = fastrnn.load_coco_data(directory), fastrnn.open_data(directory)
    for split in (native.train, native.val):
        np.testing.assert_array_equal(split.captions, published[f"{split.name}_captions"])
        np.testing.assert_array_equal(split.image_idxs, published[f"{split.name}_image_idxs"])
        np.testing.assert_array_equal(split.features, published[f"{split.name}_features"])
        assert split.urls == published[f"{split.name}_urls"].tolist()
    assert native.idx_to_word == published["idx_to_word"]
    assert native.input_dim == 4


@pytest.mark.parametrize("chunked", [False, True])
def test_features_stay_on_disk(directory, chunked, rng):
    """Contiguous ones are mapped; of those in chunks, rows are read when they are asked for."""
    path = directory / "train2014_vgg16_fc7_pca.h5"
    with h5py.File(path) as file:
        features = file["features"][()]
    if chunked:
        with h5py.File(path, "w") as file:
            file.create_dataset("features", data=features, chunks=(3, 4), compression="gzip")
    train = fastrnn.open_data(directory).train
    assert isinstance(train.features, ChunkedFeatures if chunked else np.memmap)
    assert (train.features.shape, train.features.dtype, len(train.features)) == ((20, 4), np.float32, 20)
    np.testing.assert_array_equal(train.features, features)
    for rows in (
        3,
        slice(2, 9),
        np.array([7, 2, 2, 19, 0]),
        np.array([], int),
        [5, 3],
        rng.integers(0, 20, 100),
    ):
        np.testing.assert_array_equal(train.features[rows], features[rows])
    chosen = rng.permutation(40)[:9]
    for native, published in zip(
        train.read(chosen),
        (features[train.image_idxs[chosen]], train.captions[chosen], train.image_idxs[chosen]),
        strict=True,
    ):
        np.testing.assert_array_equal(native, published)
    train.check_features()


def test_chunked_features_that_break_off(directory):
    """The file is damaged after it was opened: the reading thread's error reaches who asked."""
    path = directory / "train2014_vgg16_fc7_pca.h5"
    with h5py.File(path) as file:
        features = file["features"][()]
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, chunks=(3, 4))
    train = fastrnn.open_data(directory).train
    truncate(path)
    with pytest.raises(ValueError, match=r"pca\.h5: not a whole HDF5 file"):
        list(train.minibatches(5))


def test_buckets(directory):
    """Every caption once; lengths are near each other within a minibatch, and minibatches in random order."""
    train = fastrnn.open_data(directory).train
    train = replace(
        train, captions=np.tile(train.captions, (30, 1)), image_idxs=np.tile(train.image_idxs, 30)
    )
    lengths = np.count_nonzero(train.captions, axis=1)
    batches = train.epoch(7, np.random.default_rng(1), bucket=True)
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(1200))
    assert sorted(map(len, batches)) == [3] + [7] * 171
    shuffled = train.epoch(7, np.random.default_rng(1))
    spread, of_shuffled = (np.mean([np.ptp(lengths[b]) for b in each]) for each in (batches, shuffled))
    assert spread < 0.25 * of_shuffled
    means = [lengths[batch].mean() for batch in batches]
    assert np.abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.3
    again = train.epoch(7, np.random.default_rng(1), bucket=True)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_reading_ahead():
    """Results in order, no more than three ahead, an error where it belongs, and no thread left behind."""
    done = []

    def read(i):
        done.append(i)
        if i == 7:
            raise OSError("gone")
        return i * i

    results = read_ahead(read, range(100))
    assert next(results) == 0
    deadline = time.monotonic() + 10
    while len(done) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert done == [0, 1, 2, 3]
    assert [next(results) for _ in range(6)] == [1, 4, 9, 16, 25, 36]
    with pytest.raises(OSError, match="gone"):
        next(results)
    assert not [thread for thread in threading.enumerate() if "reads ahead" in thread.name]
    assert list(read_ahead(read, [])) == []


def test_of_raw_and_pca_features_the_pca_ones_are_opened(directory):
    for split in ("train", "val"):
        write_h5(directory / f"{split}2014_vgg16_fc7.h5", features=np.ones((20, 9)))
    data = fastrnn.open_data(directory)
    assert (data.input_dim, data.pca.components.shape) == (4, (4, 6))
    for split in ("train", "val"):
        (directory / f"{split}2014_vgg16_fc7_pca.h5").unlink()
    data = fastrnn.open_data(directory)
    assert (data.input_dim, data.pca) == (9, None)


def test_minibatches_make_true_epochs(directory):
    train = fastrnn.open_data(directory).train
    batches = list(train.minibatches(7, np.random.default_rng(1)))
    assert [len(captions) for _, captions, _ in batches] == [7] * 5 + [5]
    again = list(train.minibatches(7, np.random.default_rng(1)))
    for batch, other in zip(batches, again, strict=True):
        for a, b in zip(batch, other, strict=True):
            np.testing.assert_array_equal(a, b)
    for features, _, images in batches:
        assert type(features) is np.ndarray
        np.testing.assert_array_equal(features, train.features[images])
    seen = np.concatenate([captions for _, captions, _ in batches])
    assert not np.array_equal(seen, train.captions)
    assert sorted(map(tuple, seen)) == sorted(map(tuple, train.captions))
    in_order = np.concatenate([captions for _, captions, _ in train.minibatches(7)])
    np.testing.assert_array_equal(in_order, train.captions)


def test_subset(directory):
    train = fastrnn.open_data(directory).train
    part = train.subset(11, np.random.default_rng(2))
    kept = np.random.default_rng(2).permutation(40)[:11]
    np.testing.assert_array_equal(part.captions, train.captions[kept])
    np.testing.assert_array_equal(part.image_idxs, train.image_idxs[kept])
    assert part.features is train.features
    assert len(train.subset(99, np.random.default_rng(2))) == 40


def test_references(directory):
    data = fastrnn.open_data(directory)
    references = data.references("val")
    assert [len(of_image) for of_image in references] == [2] * 20
    assert references[0][0].startswith("A ")
    with pytest.raises(ValueError, match="split: expected 'train' or 'val', got 'test'"):
        data.references("test")


# ---------------------------------------------------------------------------------------------------
# Bad files


def truncate(path):
    path.write_bytes(path.read_bytes()[:-500])


def change_h5(path, **datasets):
    with h5py.File(path) as file:
        kept = {name: file[name][()] for name in file if name not in datasets}
    write_h5(path, **kept, **{name: value for name, value in datasets.items() if value is not None})


CAPTIONS, FEATURES = "coco2014_captions.h5", "train2014_vgg16_fc7_pca.h5"
BREAK = {
    "captions missing": (CAPTIONS, lambda p: p.unlink(), FileNotFoundError, "captions.h5: no such file"),
    "captions truncated": (CAPTIONS, truncate, ValueError, "captions.h5: not a whole HDF5 file"),
    "no HDF5": (FEATURES, lambda p: p.write_text("hello"), ValueError, "pca.h5: not a whole HDF5 file"),
    "features truncated": (FEATURES, truncate, ValueError, "pca.h5: not a whole HDF5 file"),
    "no features": (
        FEATURES, lambda p: change_h5(p, features=None, other=1), ValueError,
        "has no data set 'features', only other",
    ),
    "features of integers": (
        FEATURES, lambda p: change_h5(p, features=np.ones((20, 4), int)), ValueError,
        r"expected features \(images,D\)",
    ),
    "widths differ": (
        FEATURES, lambda p: change_h5(p, features=np.ones((20, 5))), ValueError,
        "train features are 5 wide, val 4",
    ),
    "fewer features": (
        FEATURES, lambda p: change_h5(p, features=np.ones((3, 4))), ValueError, "train_image_idxs has 0..19",
    ),
    "empty split": (
        CAPTIONS,
        lambda p: change_h5(p, val_captions=np.ones((0, 17), int), val_image_idxs=np.ones(0, int)),
        ValueError, "the val split has no captions",
    ),
    "unknown token": (
        CAPTIONS, lambda p: change_h5(p, train_captions=np.full((40, 17), 99)), ValueError,
        r"train_captions has tokens 99\.\.99, the vocabulary 0\.\.",
    ),
    "negative token": (
        CAPTIONS, lambda p: change_h5(p, val_captions=np.full((40, 17), -1)), ValueError,
        r"val_captions has tokens -1\.\.-1",
    ),
    "negative image index": (
        CAPTIONS, lambda p: change_h5(p, val_image_idxs=np.full(40, -1)), ValueError,
        r"val_image_idxs has -1\.\.-1",
    ),
    "special tokens elsewhere": (
        "coco2014_vocab.json",
        lambda p: p.write_text('{"idx_to_word": ["a", "<NULL>"], "word_to_idx": {"a": 0, "<NULL>": 1}}'),
        ValueError, "begin with <NULL> <START> <END> <UNK>",
    ),
    "captions without images": (
        CAPTIONS, lambda p: change_h5(p, train_image_idxs=np.ones(3, int)), ValueError,
        r"expected train_captions \(n,17\)",
    ),
    "vocabulary missing": ("coco2014_vocab.json", lambda p: p.unlink(), FileNotFoundError, "vocab.json"),
    "vocabulary no JSON": (
        "coco2014_vocab.json", lambda p: p.write_text("{"), ValueError, "vocab.json: not a JSON file",
    ),
    "vocabulary without words": (
        "coco2014_vocab.json", lambda p: p.write_text("{}"), ValueError, "expected a list idx_to_word",
    ),
    "vocabulary at odds": (
        "coco2014_vocab.json", lambda p: edit_json(p, lambda v: v["word_to_idx"].update(cat=1)), ValueError,
        "idx_to_word and word_to_idx must agree",
    ),
    "vocabulary as an object": (
        "coco2014_vocab.json", lambda p: edit_json(p, lambda v: v.update(idx_to_word=v["word_to_idx"])),
        ValueError, "idx_to_word and word_to_idx must agree",
    ),
    "image indices of floats": (
        CAPTIONS, lambda p: change_h5(p, train_image_idxs=np.ones(40)), ValueError,
        "of integers, got .*float64",
    ),
    "captions without words": (
        CAPTIONS, lambda p: change_h5(p, train_captions=np.ones((40, 1), int)), ValueError,
        r"expected train_captions \(n,17\)",
    ),
    "urls of bytes": (
        "val2014_urls.txt", lambda p: p.write_bytes(b"\xff"), ValueError, "not a UTF-8 text file",
    ),
    "urls missing": ("val2014_urls.txt", lambda p: p.unlink(), FileNotFoundError, "val2014_urls.txt"),
    "too few urls": ("val2014_urls.txt", lambda p: p.write_text("a\n"), ValueError, "has 1 lines"),
    "PCA of another kind": (
        "pca.safetensors", lambda p: p.write_bytes(b"x"), ValueError, "pca.safetensors: not a whole",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BREAK)
def test_a_broken_directory_is_named(directory, what):
    name, spoil, error, message = BREAK[what]
    spoil(directory / name)
    with pytest.raises(error, match=message):
        fastrnn.open_data(directory)


def test_a_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        fastrnn.open_data(tmp_path / "nowhere")


def test_broken_references(directory):
    path = directory / "references.json"
    edit_json(path, lambda r: r["val"]["captions"].pop())
    with pytest.raises(ValueError, match=r"references\.json: expected image_ids and captions"):
        fastrnn.open_data(directory).references("val")
    edit_json(path, lambda r: r["val"]["image_ids"].pop())
    with pytest.raises(ValueError, match="has captions of 19 val images, the features are of 20"):
        fastrnn.open_data(directory).references("val")


def test_references_of_anything_but_text(directory):
    edit_json(directory / "references.json", lambda r: r["val"]["captions"][0].append(5))
    with pytest.raises(ValueError, match=r"references\.json: expected image_ids and captions"):
        fastrnn.open_data(directory).references("val")


def test_minibatches_of_nothing(directory):
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got -1"):
        next(fastrnn.open_data(directory).train.minibatches(-1))


def test_the_drop_in_takes_other_vocabularies(directory):
    """It only reads; the exercises use vocabularies of their own making."""
    (directory / "coco2014_vocab.json").write_text(json.dumps({"idx_to_word": ["<NULL>"], "word_to_idx": {}}))
    assert fastrnn.load_coco_data(directory)["idx_to_word"] == ["<NULL>"]
    shutil.rmtree(directory)
    with pytest.raises(FileNotFoundError, match=r"captions\.h5: no such file"):
        fastrnn.load_coco_data(directory)
