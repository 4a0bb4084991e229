"""Making a data set: words, vocabulary, matching by image id, PCA, and leaving nothing behind on failure."""

import json
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest

import fastrnn
from fastrnn import files
from fastrnn.data import PCA, prepare_data
from fastrnn.data.prepare import words
from tests.datasets import edit_json, write_coco, write_h5


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "coco")


def add_caption(path, text, image=0):
    def change(content):
        content["annotations"].append({"image_id": content["images"][image]["id"], "caption": text})

    edit_json(path, change)


def decoded(data, split):
    captions = getattr(data, split).captions
    return [text.split()[1:-1] for text in fastrnn.decode_captions(captions, data.idx_to_word)]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man's dog, running!", ["a", "man", "s", "dog", "running"]),
        ("T-shirt no.5\nred", ["t", "shirt", "no", "red"]),
        ("Café", ["caf"]),
        ("...", []),
    ],
)
def test_words(caption, expected):
    assert words(caption) == expected


def test_captions_come_back(coco, tmp_path):
    """START, words, END, NULLs; longer than 15 words or wordless ones are left out but kept as references."""
    fifteen = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    for text in (fifteen, f"{fifteen} sixteen", "12 34"):
        add_caption(coco["train_captions"], text)
    result = prepare_data(tmp_path / "data", **coco, min_count=1)
    data = fastrnn.open_data(tmp_path / "data")
    train = json.loads(coco["train_captions"].read_text())
    kept = [words(note["caption"]) for note in train["annotations"]][:-2]
    assert decoded(data, "train") == kept
    assert data.train.captions.dtype == np.int32
    assert data.train.captions.shape == (25, 17)
    assert data.train.captions[-1].tolist()[0::16] == [1, 2]
    assert (result["train"].captions, result["train"].left_out, result["train"].unknown) == (25, 2, 0)
    assert (result["train"].images, result["val"].captions) == (12, 24)
    assert data.references("train")[0][-3:] == [fifteen, f"{fifteen} sixteen", "12 34"]
    assert [int(url.removesuffix(".jpg")) for url in data.train.urls] == [i["id"] for i in train["images"]]
    ids = json.loads((tmp_path / "data" / "references.json").read_text())["train"]["image_ids"]
    assert ids == [image["id"] for image in train["images"]]


@pytest.mark.parametrize("npy", [False, True], ids=["hdf5", "npy"])
def test_features_are_matched_by_image_id(tmp_path, npy):
    """The features file is in another order; what a feature says must be what the caption says."""
    prepare_data(tmp_path / "data", **write_coco(tmp_path / "coco", npy=npy), min_count=1)
    data = fastrnn.open_data(tmp_path / "data")
    assert isinstance(data.train.features, np.memmap)
    assert data.train.features.dtype == np.float32
    for split in (data.train, data.val):
        for caption, image in zip(decoded(data, split.name), split.image_idxs, strict=True):
            told = np.zeros(6)
            told[[("cat", "dog", "boy").index(caption[1]), 3 + ("runs", "sits").index(caption[2])]] = 1
            np.testing.assert_array_equal(split.features[image], told)


def test_vocabulary_by_count_size_and_file(coco, tmp_path):
    for text in ("zebra zebra yak", "zebra yak", "unseen " * 16):
        add_caption(coco["train_captions"], text)
    special = ["<NULL>", "<START>", "<END>", "<UNK>"]

    def vocabulary(name, **how):
        result = prepare_data(tmp_path / name, **coco, **how)
        return fastrnn.open_data(tmp_path / name), result

    every, _ = vocabulary("every", min_count=1)
    assert every.idx_to_word[:4] == special
    counts = [sum(caption.count(w) for caption in decoded(every, "train")) for w in every.idx_to_word[4:]]
    assert counts == sorted(counts, reverse=True)
    assert "unseen" not in every.idx_to_word  # it stands only in a caption that is left out
    three, result = vocabulary("three", min_count=3)
    assert three.idx_to_word[4:] == [w for w, n in zip(every.idx_to_word[4:], counts, strict=True) if n >= 3]
    assert "zebra" in three.idx_to_word
    assert "yak" not in three.idx_to_word
    assert decoded(three, "train")[-1] == ["zebra", "<UNK>"]
    np.testing.assert_allclose(result["train"].unknown, sum(n for n in counts if n < 3) / sum(counts))
    ranked = sorted(every.idx_to_word[4:], key=lambda w: (-counts[every.idx_to_word.index(w) - 4], w))
    assert every.idx_to_word[4:] == ranked  # equally frequent words in the order of the alphabet
    small, _ = vocabulary("small", vocab_size=7)
    assert small.idx_to_word == every.idx_to_word[:7]
    same, _ = vocabulary("same", vocab=tmp_path / "small" / "coco2014_vocab.json")
    assert same.idx_to_word == small.idx_to_word
    default, _ = vocabulary("default")
    assert default.idx_to_word[4:] == [
        w for w, n in zip(every.idx_to_word[4:], counts, strict=True) if n >= 5
    ]


def test_words_of_val_are_not_looked_at(coco, tmp_path):
    add_caption(coco["val_captions"], "zebra zebra zebra zebra zebra zebra")
    result = prepare_data(tmp_path / "data", **coco)
    assert "zebra" not in fastrnn.open_data(tmp_path / "data").idx_to_word
    assert result["val"].unknown > 0


@pytest.mark.parametrize("images_at_a_time", [2, 7, 2048])
def test_pca_is_fitted_on_train_and_kept(tmp_path, monkeypatch, images_at_a_time):
    """Against NumPy's SVD of the train features; val and later raw features are projected alike."""
    monkeypatch.setattr(sys.modules["fastrnn.data.prepare"], "SLICE", images_at_a_time)
    rng = np.random.default_rng(0)
    coco = write_coco(tmp_path / "coco", images=300, width=20)
    raw = {}
    for split in ("train", "val"):
        path = coco[f"{split}_features"]
        raw[split] = (rng.standard_normal((300, 3)) @ rng.standard_normal((3, 20)) + 5).astype(np.float32)
        raw[split] += 0.01 * rng.standard_normal((300, 20)).astype(np.float32)
        with h5py.File(path) as file:
            ids = file["image_ids"][()]
        write_h5(path, features=raw[split], image_ids=ids)
        order = {image_id: i for i, image_id in enumerate(ids.tolist())}
        images = json.loads(coco[f"{split}_captions"].read_text())["images"]
        raw[split] = raw[split][[order[image["id"]] for image in images]]
    prepare_data(tmp_path / "data", **coco, pca=3)
    data = fastrnn.open_data(tmp_path / "data")
    centred = raw["train"] - raw["train"].mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    assert data.pca.components.shape == (3, 20)
    np.testing.assert_allclose(data.pca.mean, raw["train"].mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(data.pca.components * axes, axis=1)), 1, atol=1e-4)
    for split in (data.train, data.val):
        expected = (raw[split.name] - raw["train"].mean(axis=0)) @ data.pca.components.T
        np.testing.assert_allclose(split.features, expected, atol=1e-3)
        np.testing.assert_allclose(data.pca.project(raw[split.name]), split.features, atol=1e-5)
    with pytest.raises(ValueError, match=r"raw: expected shape \(n,D\) with D=20, got \(2, 3\)"):
        data.pca.project(np.ones((2, 3)))


def test_pca_in_slices(rng):
    """However the features are cut: scikit-learn joins the slices."""
    features = rng.standard_normal((500, 12)) * np.arange(12, 0, -1)
    whole, cut = PCA.fit([features], 4), PCA.fit([features[:100], features[100:350], features[350:]], 4)
    np.testing.assert_allclose(cut.mean, whole.mean, atol=1e-6)
    np.testing.assert_allclose(np.abs(np.sum(cut.components * whole.components, axis=1)), 1, atol=0.02)


def test_urls(coco, tmp_path):
    def change(content):
        content["images"][0] |= {"coco_url": "http://c/1.jpg", "flickr_url": "http://f/1.jpg"}
        content["images"][1] |= {"flickr_url": "http://f/2.jpg"}

    edit_json(coco["train_captions"], change)
    prepare_data(tmp_path / "data", **coco)
    assert fastrnn.open_data(tmp_path / "data").train.urls[:2] == ["http://c/1.jpg", "http://f/2.jpg"]


def test_unmatched_images_can_be_left_out(coco, tmp_path):
    """One image without features, one feature without captions, one image without either."""
    with h5py.File(coco["train_features"]) as file:
        ids, features = file["image_ids"][()], file["features"][()]
    gone = int(ids[0])
    ids[0] = 5
    write_h5(coco["train_features"], image_ids=ids, features=features)
    edit_json(coco["train_captions"], lambda content: content["images"].append({"id": 77, "file_name": "x"}))
    with pytest.raises(ValueError, match=rf"train\.h5: no features of image {gone} that .*--allow-unmatched"):
        prepare_data(tmp_path / "data", **coco)
    result = prepare_data(tmp_path / "data", **coco, min_count=1, allow_unmatched=True)
    data = fastrnn.open_data(tmp_path / "data")
    assert result["train"].images == len(data.train.features) == len(data.train.urls) == 11
    assert f"{gone}.jpg" not in data.train.urls
    told = [np.flatnonzero(row).tolist() for row in data.train.features]
    for caption, image in zip(decoded(data, "train"), data.train.image_idxs, strict=True):
        assert told[image][0] == ("cat", "dog", "boy").index(caption[1])


# ---------------------------------------------------------------------------------------------------
# Bad input: named, and nothing left behind


def spoil_features(coco, **change):
    with h5py.File(coco["val_features"]) as file:
        kept = {name: file[name][()] for name in file}
    write_h5(coco["val_features"], **(kept | {name: f(kept[name]) for name, f in change.items()}))


def with_nan(features):
    features[3, 2] = np.nan
    return features


def write_group(path, name):
    with h5py.File(path, "a") as file:
        del file[name]
        file.create_group(name)


def damage(path):
    """Overwrite the middle of the compressed features."""
    with h5py.File(path) as file:
        chunk = file["features"].id.get_chunk_info(1)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset + 2)
        file.write(b"\xff" * (chunk.size - 4))


def spoil_captions(coco, change):
    edit_json(coco["val_captions"], change)


BREAK = {
    "NaN": (lambda c: spoil_features(c, features=with_nan), "val.h5: the features of image 20.. have NaN"),
    "ids twice": (
        lambda c: spoil_features(c, image_ids=lambda ids: np.full_like(ids, 2000)),
        "val.h5: has features of image 2000 more than once",
    ),
    "fewer ids": (
        lambda c: spoil_features(c, image_ids=lambda ids: ids[1:]), r"val.h5: expected features \(n,D\)"
    ),
    "no captions of a feature": (
        lambda c: spoil_captions(c, lambda v: v.update(annotations=v["annotations"][2:])),
        "val.json: no captions of image 20.. that .*val.h5 has features of; allow",
    ),
    "unlisted image": (
        lambda c: spoil_captions(c, lambda v: v["annotations"].append({"image_id": 1, "caption": "a"})),
        "val.json: has captions of image 1 that its images do not list",
    ),
    "image twice": (
        lambda c: spoil_captions(c, lambda v: v["images"].append(v["images"][0])),
        "val.json: image 20.. is listed twice",
    ),
    "no captions": (
        lambda c: spoil_captions(c, lambda v: v.update(annotations=[])), "val.json: has no captions"
    ),
    "another format": (
        lambda c: c["val_captions"].write_text("[1]"), "val.json: expected COCO captions"
    ),
    "no JSON": (lambda c: c["val_captions"].write_text("{"), "val.json: not a JSON file"),
    "no HDF5": (lambda c: c["val_features"].write_text("{"), "val.h5: not a whole HDF5 file"),
    "no text": (
        lambda c: spoil_captions(c, lambda v: v["annotations"][0].update(caption=None)), "and a text caption"
    ),
    "ids of text": (
        lambda c: spoil_captions(c, lambda v: v["images"][0].update(id="1")), "images with a number id"
    ),
    "a group for a data set": (
        lambda c: write_group(c["val_features"], "image_ids"), "val.h5: has no data set 'image_ids', only"
    ),
    "feature ids of text": (
        lambda c: spoil_features(c, image_ids=lambda ids: ids.astype("S5")), "image ids .* of integers"
    ),
    "features without width": (
        lambda c: spoil_features(c, features=lambda f: f[:, :0]), r"val.h5: expected features \(n,D\)"
    ),
    "another width": (
        lambda c: spoil_features(c, features=lambda f: f[:, :4]), "val.h5: features are 4 wide, those of .* 6"
    ),
    "damaged chunks": (lambda c: damage(c["val_features"]), "val.h5: not a whole HDF5 file"),
    "only wordless captions": (
        lambda c: spoil_captions(c, lambda v: [note.update(caption="1 2") for note in v["annotations"]]),
        "val.json: no caption has 1 to 15 words",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BREAK)
def test_bad_files(coco, tmp_path, what):
    spoil, message = BREAK[what]
    spoil(coco)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        prepare_data(tmp_path / "data", **coco)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_count": 2, "vocab_size": 10}, "min_count and vocab_size: expected one way"),
        ({"min_count": 0}, "min_count: expected at least 1, got 0"),
        ({"vocab_size": 4}, "vocab_size: expected at least 5, got 4"),
        ({"pca": 0}, "pca: expected at least 1, got 0"),
        ({"pca": 7}, "pca: expected at most 6 components for 12 train images with features 6 wide, got 7"),
    ],
)
def test_bad_options(coco, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare_data(tmp_path / "data", **coco, **options)
    assert not (tmp_path / "data").exists()


def test_missing_files(coco, tmp_path):
    for name in coco:
        for missing in ("nothing.json" if "captions" in name else "nothing.h5", "nothing.npy"):
            with pytest.raises(FileNotFoundError, match="nothing"):
                prepare_data(tmp_path / "data", **coco | {name: tmp_path / missing})


def test_an_archive_is_no_array(coco, tmp_path):
    path = tmp_path / "features.npy"
    with open(path, "wb") as file:
        np.savez(file, features=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"features\.npy: not a whole npy file"):
        prepare_data(tmp_path / "data", **coco | {"val_features": path})


def test_the_directory_appears_when_it_is_whole(coco, tmp_path, monkeypatch):
    out, seen = tmp_path / "data", []
    write_text = files.write_text
    monkeypatch.setattr(files, "write_text", lambda *a: seen.append(out.exists()) or write_text(*a))
    prepare_data(out, **coco)
    assert seen
    assert not any(seen)


def test_directories_above_are_made_only_in_the_end(coco, tmp_path):
    out = tmp_path / "new" / "sub" / "data"
    spoil_features(coco, features=with_nan)
    with pytest.raises(ValueError, match="have NaN"):
        prepare_data(out, **coco)
    assert not (tmp_path / "new").exists()
    spoil_features(coco, features=np.nan_to_num)
    prepare_data(out, **coco)
    assert fastrnn.open_data(out)


def test_a_directory_with_something_in_it_is_left_alone(coco, tmp_path):
    out = tmp_path / "data"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(FileExistsError, match="data: exists already and is not an empty directory"):
        prepare_data(out, **coco)
    assert [path.name for path in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    prepare_data(out, **coco)
    assert fastrnn.open_data(out)


@pytest.mark.parametrize("limit", [600, 4000, 20_000, 105_000, 110_000])
def test_a_full_disk(tmp_path, limit):
    """The system refuses to write past the limit: an OSError that names the file, and nothing left behind."""
    coco = write_coco(tmp_path / "coco", images=400, width=64)
    code = textwrap.dedent(f"""
        import resource, signal, sys
        from pathlib import Path
        from fastrnn.data import prepare_data
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            prepare_data({str(tmp_path / "data")!r}, **{ {name: str(path) for name, path in coco.items()}!r})
        except OSError as error:
            print("refused:", error)
    """)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.startswith("refused:"), result.stderr
    assert "2014" in result.stdout  # the name of the file
    assert [path.name for path in tmp_path.iterdir()] == ["coco"]
