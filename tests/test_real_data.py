"""Real captions and features; skipped where the data sets are not at hand."""

import numpy as np
import pytest

import fastrnn
from fastrnn import files
from fastrnn.data import coco, prepare_data
from fastrnn.data.prepare import encode, words


@pytest.fixture(scope="module")
def fifty_captions(real_data, tmp_path_factory):
    """Flickr8k in the vocabulary of 50 captions of 50 images, and these captions alone to train on."""
    source, made = real_data / "flickr8k", tmp_path_factory.mktemp("flickr8k")
    content = files.read_json(source / "captions_train.json")
    np.random.seed(231)
    images = [content["images"][i]["id"] for i in np.random.permutation(len(content["images"]))]
    texts = {note["image_id"]: words(note["caption"]) for note in content["annotations"]}
    chosen = [texts[image] for image in images if len(texts[image]) <= 15][:50]
    vocabulary = [*coco.SPECIAL, *sorted({word for text in chosen for word in text})]
    files.write_json(
        made / "vocab.json",
        {"idx_to_word": vocabulary, "word_to_idx": {word: i for i, word in enumerate(vocabulary)}},
    )
    inputs = [
        source / name
        for split in ("train", "val")
        for name in (f"captions_{split}.json", f"features_{split}.h5")
    ]
    prepare_data(made / "data", *inputs, vocab=made / "vocab.json", pca=512)
    data = fastrnn.load_coco_data(made / "data")
    every = {tuple(caption): i for i, caption in enumerate(data["train_captions"].tolist())}
    word_to_idx = data["word_to_idx"]
    kept = [every[tuple(encode(text, word_to_idx).tolist())] for text in chosen]
    data |= {name: data[name][kept] for name in ("train_captions", "train_image_idxs")}
    assert len(set(data["train_image_idxs"].tolist())) == 50
    return data


@pytest.mark.parametrize(("cell", "lr_decay", "below"), [("lstm", 0.995, 0.5), ("rnn", 0.95, 0.1)])
def test_fifty_captions_are_learnt_by_heart(fifty_captions, cell, lr_decay, below):
    """The exercises' overfitting run: 50 captions of 50 images, 100 iterations of Adam at 5e-3."""
    np.random.seed(231)
    model = fastrnn.CaptioningRNN(
        fifty_captions["word_to_idx"],
        input_dim=512,
        wordvec_dim=256,
        hidden_dim=512,
        cell_type=cell,
        dtype=np.float32,
    )
    solver = fastrnn.CaptioningSolver(
        model,
        fifty_captions,
        update_rule="adam",
        num_epochs=50,
        batch_size=25,
        optim_config={"learning_rate": 5e-3},
        lr_decay=lr_decay,
        verbose=False,
    )
    solver.train()
    assert len(solver.loss_history) == 100
    assert solver.loss_history[-1] < below


def test_coco_captions_in_the_published_vocabulary(real_data, tmp_path):
    """5,000 images' captions come back word for word, but for unknown words and too long captions."""
    source = real_data / "coco"
    captions = source / "captions_val2017.json"
    content = files.read_json(captions)
    ids = np.array([image["id"] for image in content["images"]])
    np.save(tmp_path / "features.npy", np.zeros((len(ids), 2), np.float32))
    np.save(tmp_path / "features_image_ids.npy", ids)
    features = tmp_path / "features.npy"
    result = prepare_data(
        tmp_path / "data", captions, features, captions, features, vocab=source / "coco2014_vocab.json"
    )["val"]
    data = fastrnn.load_coco_data(tmp_path / "data", pca_features=False)
    encoded, vocabulary = data["val_captions"], data["word_to_idx"]
    assert encoded.dtype == np.int32
    assert encoded.shape == (result.captions, 17)
    assert 0 <= encoded.min() <= encoded.max() < 1004 == len(vocabulary)
    assert 0.07 < result.unknown < 0.09
    assert 0.02 < result.left_out / 25_014 < 0.04
    kept = [words(note["caption"]) for note in content["annotations"]]
    kept = [caption for caption in kept if 1 <= len(caption) <= 15]
    for text, caption in zip(fastrnn.decode_captions(encoded, data["idx_to_word"]), kept, strict=True):
        expected = [word if word in vocabulary else "<UNK>" for word in caption]
        assert text.split() == ["<START>", *expected, "<END>"]
