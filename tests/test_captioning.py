"""The captioning model: as published, exact under packing, and safe to keep, copy and save."""

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

import fastrnn
from fastrnn import backend, files, recurrence
from fastrnn.captioning import Dropout
from fastrnn.gradient_check import eval_numerical_gradient

WORDS = {word: i for i, word in enumerate(["<NULL>", "<START>", "<END>", "<UNK>", "a", "cat", "dog"])}
CELLS = ["rnn", "lstm"]


@pytest.fixture(autouse=True)
def _every_backend(kernels):
    np.random.seed(231)


def make_model(cell_type="lstm", dtype=np.float64, word_to_idx=WORDS, D=4, W=3, H=5):
    return fastrnn.CaptioningRNN(word_to_idx, D, W, H, cell_type, dtype)


def caption(*tokens, T=7):
    return [*tokens, *[0] * (T - len(tokens))]


CAPTIONS = np.array(
    [
        caption(1, 4, 5, 2),
        caption(),  # empty
        caption(1, 4, 0, 6, 0, 2),  # holes
        caption(1, 6, 6, 6, 6, 6, 2),
        caption(1, 2),
    ]
)


def as_published(model, features, captions):
    """The loss by the exercises' own steps: every position through every layer, then the mask."""
    p = {name: w.astype(np.float64) for name, w in model.params.items()}
    h0 = features @ p["W_proj"] + p["b_proj"]
    x = p["W_embed"][captions[:, :-1]]
    forward = fastrnn.rnn_forward if model.cell_type == "rnn" else fastrnn.lstm_forward
    h, _ = forward(x, h0, p["Wx"], p["Wh"], p["b"])
    scores, _ = fastrnn.temporal_affine_forward(h, p["W_vocab"], p["b_vocab"])
    return fastrnn.temporal_softmax_loss(scores, captions[:, 1:], captions[:, 1:] != 0)[0]


@pytest.mark.parametrize("cell_type", CELLS)
def test_packing_is_exact(cell_type, rng, dtype):
    model = make_model(cell_type, dtype)
    features = rng.standard_normal((5, 4))
    loss, _ = model.loss(features, CAPTIONS)
    tolerance = 1e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(loss, as_published(model, features, CAPTIONS), rtol=tolerance)
    assert model.evaluate_loss(features, CAPTIONS) == loss


@pytest.mark.parametrize("cell_type", CELLS)
def test_gradients(cell_type, rng):
    """Central differences of the loss for every parameter: uneven lengths, holes, an empty caption."""
    model = make_model(cell_type)
    for name, w in model.params.items():
        model.params[name] = 0.5 * rng.standard_normal(w.shape)
    features = rng.standard_normal((5, 4))
    _, grads = model.loss(features, CAPTIONS)
    assert grads.keys() == model.params.keys()
    for name, w in model.params.items():
        numeric = eval_numerical_gradient(lambda _: model.loss(features, CAPTIONS)[0], w, verbose=False)
        assert np.abs(numeric).max() > 1e-3
        np.testing.assert_allclose(grads[name], numeric, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("cell_type", CELLS)
@pytest.mark.parametrize("p", [(0.4, 0.0), (0.0, 0.3), (0.5, 0.25)])
def test_dropout(cell_type, p, rng):
    """The published steps with the factors put in by hand; central differences; none of it in validation."""
    model = make_model(cell_type)
    for name, w in model.params.items():
        model.params[name] = 0.5 * rng.standard_normal(w.shape)
    features, params = rng.standard_normal((5, 4)), model.params
    dropout = Dropout(*p, seed=3, iteration=8)
    loss, grads = model.loss(features, CAPTIONS, dropout=dropout)

    h0 = features @ params["W_proj"] + params["b_proj"]
    forward = fastrnn.rnn_forward if cell_type == "rnn" else fastrnn.lstm_forward
    words = params["W_embed"] * dropout.of_words(7, 3, float)
    h, _ = forward(words[CAPTIONS[:, :-1]], h0, params["Wx"], params["Wh"], params["b"])
    h = h * dropout.of_outputs(5, 6, 5, float).reshape(h.shape)
    scores, _ = fastrnn.temporal_affine_forward(h, params["W_vocab"], params["b_vocab"])
    expected, _ = fastrnn.temporal_softmax_loss(scores, CAPTIONS[:, 1:], CAPTIONS[:, 1:] != 0)
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    undropped = model.evaluate_loss(features, CAPTIONS)
    np.testing.assert_allclose(undropped, as_published(model, features, CAPTIONS), rtol=1e-13)
    assert abs(loss - undropped) > 1e-3

    for name, w in params.items():
        numeric = eval_numerical_gradient(
            lambda _: model.loss(features, CAPTIONS, dropout=dropout)[0], w, verbose=False
        )
        assert np.abs(numeric).max() > 1e-3
        np.testing.assert_allclose(grads[name], numeric, rtol=1e-6, atol=1e-9, err_msg=name)


def test_what_is_dropped():
    """As often as asked for, elsewhere at each iteration and for each seed; the mean stays."""
    p = 0.3
    given = Dropout(p, p, seed=1, iteration=2)
    dropped = []
    for other in (given, replace(given, seed=2), replace(given, iteration=3)):
        for factors in (other.of_outputs(40, 9, 51, np.float32), other.of_words(360, 51, np.float32)):
            assert factors.shape == (360, 51)
            assert factors.dtype == np.float32
            assert set(np.unique(factors)) == {0, np.float32(1 / (1 - p))}
            assert abs(np.mean(factors == 0) - p) < 4 * np.sqrt(p * (1 - p) / factors.size)
            dropped.append((factors == 0).ravel())
    assert np.abs(np.corrcoef(dropped) - np.eye(len(dropped))).max() < 4 / np.sqrt(360 * 51)
    np.testing.assert_array_equal(given.of_words(360, 51, float), given.of_words(500, 51, float)[:360])


@pytest.mark.parametrize("T", [7, 10])
def test_shares_of_a_minibatch(T, rng, dtype):
    """Losses and gradients of shares add up to those of the whole, with dropout too."""
    model = make_model(dtype=dtype)
    features = rng.standard_normal((5, 4))
    captions = np.pad(CAPTIONS, ((0, 0), (0, T - 7)))
    dropout = Dropout(0.5, 0.25, seed=3, iteration=8)
    loss, grads = model.loss(features, captions, dropout=dropout)
    total, summed = 0.0, {name: np.zeros_like(w) for name, w in model.params.items()}
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        share = {name: np.full_like(w, np.nan) for name, w in model.params.items()}
        part, same = model.loss(
            features[start:stop], captions[start:stop],
            dropout=replace(dropout, first=start), count=5, into=share,
        )  # fmt: skip
        total += part
        for name, grad in share.items():
            assert same[name] is grad
            summed[name] += grad
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(total, loss, rtol=tolerance)
    for name, grad in grads.items():
        np.testing.assert_allclose(summed[name], grad, rtol=tolerance, atol=tolerance, err_msg=name)


def test_bad_dropout_and_bad_arrays_for_gradients(rng):
    for p in (1.0, -0.1, np.nan):
        for name in ("outputs", "words"):
            with pytest.raises(
                ValueError, match=f"{name}: expected a probability from 0 to below 1, got {p}"
            ):
                Dropout(**{name: p})
    model = make_model()
    features = rng.standard_normal((5, 4))
    good = {name: np.zeros_like(w) for name, w in model.params.items()}
    with pytest.raises(ValueError, match="into: Wx missing"):
        model.loss(features, CAPTIONS, into={name: w for name, w in good.items() if name != "Wx"})
    read_only = np.zeros((3, 20))
    read_only.setflags(write=False)
    for bad in (np.zeros((3, 19)), np.zeros((3, 20), np.float32), np.zeros((20, 3)).T, read_only):
        with pytest.raises(
            ValueError, match=r"into\['Wx'\]: expected a C-contiguous array to write to, \(3, 20\)"
        ):
            model.loss(features, CAPTIONS, into=good | {"Wx": bad})
    assert not any(array.any() for array in good.values())


@pytest.mark.parametrize("cell_type", CELLS)
def test_parameters_are_drawn_as_published(cell_type):
    D, W, H, V, m = 4, 3, 5, len(WORDS), {"rnn": 1, "lstm": 4}[cell_type]
    model = make_model(cell_type, np.float32)
    np.random.seed(231)
    expected = {
        "W_embed": np.random.randn(V, W) / 100,
        "W_proj": np.random.randn(D, H) / np.sqrt(D),
        "b_proj": np.zeros(H),
        "Wx": np.random.randn(W, m * H) / np.sqrt(W),
        "Wh": np.random.randn(H, m * H) / np.sqrt(H),
        "b": np.zeros(m * H),
        "W_vocab": np.random.randn(H, V) / np.sqrt(H),
        "b_vocab": np.zeros(V),
    }
    assert model.params.keys() == expected.keys()
    for name, w in expected.items():
        np.testing.assert_array_equal(model.params[name], w.astype(np.float32))
        assert model.params[name].dtype == np.float32


def test_attributes():
    model = fastrnn.CaptioningRNN(WORDS)
    assert (model.cell_type, model.dtype, model.word_to_idx) == ("rnn", np.float32, WORDS)
    assert model.idx_to_word == {i: word for word, i in WORDS.items()}
    assert (model._null, model._start, model._end) == (0, 1, 2)
    assert model.params["Wx"].shape == (128, 128)
    bare = fastrnn.CaptioningRNN({"<NULL>": 0, "cat": 2})
    assert (bare._start, bare._end) == (None, None)


def test_only_live_tokens_and_distinct_words_are_computed(rng):
    """15 of 30 positions are before a caption's last target, with 5 words among them."""
    model = make_model()
    lstm_forward, seen = recurrence.forward, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recurrence, "forward", lambda *a, **k: seen.append(a) or lstm_forward(*a, **k))
        model.loss(rng.standard_normal((5, 4)), CAPTIONS)
    x, rows, batch_sizes = seen[0][:3]
    assert batch_sizes.tolist() == [4, 3, 3, 2, 2, 1]
    assert len(rows) == 15
    assert len(x) == 5


def test_null_need_not_be_0(rng):
    model = make_model(word_to_idx={"a": 0, "<START>": 1, "b": 2, "<NULL>": 3})
    features = rng.standard_normal((1, 4))
    losses = [model.loss(features, [[1, 0, 2, null, 3, 3]])[0] for null in (3, 2)]
    assert losses[0] != losses[1]
    assert model.loss(features, [[1, 0, 2]])[0] == losses[0]
    assert model.loss(features, [[1, 3, 3]])[0] == 0


def test_nothing_but_nulls(rng):
    model = make_model()
    loss, grads = model.loss(rng.standard_normal((2, 4)), np.zeros((2, 6), int))
    assert loss == 0
    assert not any(grad.any() for grad in grads.values())
    assert model.loss(rng.standard_normal((2, 4)), np.ones((2, 1), int))[0] == 0


def test_captions_and_features_of_other_types(rng):
    model = make_model(dtype=np.float32)
    features = rng.standard_normal((5, 4)).astype(np.float16)
    loss, grads = model.loss(features, CAPTIONS)
    again, _ = model.loss(features.astype(">f8"), np.asfortranarray(CAPTIONS.astype(np.float32)))
    assert again == loss
    assert all(grad.dtype == np.float32 for grad in grads.values())


def test_replaced_parameters_decide_the_type(rng):
    model = make_model(dtype=np.float32)
    features = rng.standard_normal((5, 4))
    single, _ = model.loss(features, CAPTIONS)
    model.params["Wh"] = np.asfortranarray(model.params["Wh"].astype(np.float64))
    double, grads = model.loss(features, CAPTIONS)
    assert grads["W_vocab"].dtype == np.float64
    assert double != single
    np.testing.assert_allclose(double, single, rtol=1e-5)


def test_gradients_belong_to_the_caller(rng):
    model = make_model()
    features = rng.standard_normal((5, 4))
    _, first = model.loss(features, CAPTIONS)
    kept = copy.deepcopy(first)
    model.loss(2 * features, CAPTIONS[::-1])
    for name, grad in kept.items():
        np.testing.assert_array_equal(first[name], grad)


def test_what_one_call_leaves_in_memory_does_not_reach_the_next(rng):
    """Models of other cells, types and sizes in turn give what each gives with everything kept set to NaN."""
    kinds = [("lstm", np.float64, 40), ("rnn", np.float32, 7), ("lstm", np.float32, 19)]
    models = [make_model(cell_type, dtype, H=H) for cell_type, dtype, H in kinds]
    features = rng.standard_normal((5, 4))

    def everything(model):
        loss, grads = model.loss(features, CAPTIONS)
        n = rng.integers(1, 5)
        model.loss(features[:n], CAPTIONS[:n])
        words = model.sample(features, 6)
        return [np.array(loss), np.array(model.evaluate_loss(features, CAPTIONS)), words, *grads.values()]

    expected = [everything(model) for model in models]
    for poison in (0xFF, 0x00):
        for model, arrays in zip(models, expected, strict=True):
            for memory in backend._scratch.memory.values():
                memory.fill(poison)
            for got, array in zip(everything(model), arrays, strict=True):
                assert got.tobytes() == array.tobytes()


# ---------------------------------------------------------------------------------------------------
# Sampling


def test_sample_computes_with_one_backend(rng, monkeypatch):
    """Also where another thread chooses another one in the middle."""
    model = make_model()
    features = rng.standard_normal((3, 4))
    expected = model.sample(features, 5)
    other = fastrnn.available_backends()[0 if fastrnn.current_backend() == "numpy" else -1]
    real = backend.kept_work

    def kept_work(kernels, purpose):
        fastrnn.use_backend(other).__enter__()
        return real(kernels, purpose)

    with fastrnn.use_backend(fastrnn.current_backend()):  # what is entered in here ends with it
        monkeypatch.setattr(backend, "kept_work", kept_work)
        np.testing.assert_array_equal(model.sample(features, 5), expected)
        assert fastrnn.current_backend() == other


@pytest.mark.parametrize("cell_type", CELLS)
def test_sample_is_greedy(cell_type, rng):
    """Against the exercises' loop over single steps."""
    start = 5
    model = make_model(cell_type, H=8, word_to_idx=WORDS | {"<START>": start, "cat": 1})
    for name, w in model.params.items():
        model.params[name] = rng.standard_normal(w.shape)
    p = model.params
    features = rng.standard_normal((6, 4))
    captions = model.sample(features, max_length=9)
    assert captions.shape == (6, 9)
    assert captions.dtype == np.int32
    assert len(np.unique(captions)) > 2
    h, c = features @ p["W_proj"] + p["b_proj"], np.zeros((6, 8))
    words = np.full(6, start)
    for t in range(9):
        x = p["W_embed"][words]
        if cell_type == "rnn":
            h, _ = fastrnn.rnn_step_forward(x, h, p["Wx"], p["Wh"], p["b"])
        else:
            h, c, _ = fastrnn.lstm_step_forward(x, h, c, p["Wx"], p["Wh"], p["b"])
        words = (h @ p["W_vocab"] + p["b_vocab"]).argmax(axis=1)
        np.testing.assert_array_equal(captions[:, t], words)


def test_sample_lengths(rng):
    model = make_model()
    assert model.sample(rng.standard_normal((2, 4))).shape == (2, 30)
    assert model.sample(rng.standard_normal((2, 4)), 0).shape == (2, 0)
    with pytest.raises(ValueError, match="max_length: expected at least 0, got -1"):
        model.sample(rng.standard_normal((2, 4)), -1)


def test_sample_without_start(rng):
    model = make_model(word_to_idx={"<NULL>": 0, "cat": 2, "dog": 3})
    with pytest.raises(ValueError, match="'<START>'"):
        model.sample(rng.standard_normal((2, 4)))
    model = make_model(word_to_idx={"<NULL>": 0, "<START>": 7})
    with pytest.raises(IndexError, match=r"'<START>'.*token 7"):
        model.sample(rng.standard_normal((2, 4)))


# ---------------------------------------------------------------------------------------------------
# Copies and files


def test_pickle_and_deepcopy(rng):
    model = make_model()
    features = rng.standard_normal((5, 4))
    loss, _ = model.loss(features, CAPTIONS)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other.loss(features, CAPTIONS)[0] == loss
        other.params["Wh"][...] = 0
    assert model.loss(features, CAPTIONS)[0] == loss


@pytest.mark.parametrize("cell_type", CELLS)
def test_save_and_load(cell_type, rng, dtype, tmp_path):
    model = make_model(cell_type, dtype, {"<NULL>": 0, "<START>": 1, "été": 2, "dog": 5})
    model.feature_pca = fastrnn.data.PCA(
        rng.standard_normal(9).astype(np.float32), rng.standard_normal((4, 9)).astype(np.float32)
    )
    path = tmp_path / "model.safetensors"
    model.save(path)
    np.random.seed(4)
    expected_draw = np.random.rand()
    np.random.seed(4)
    loaded = fastrnn.CaptioningRNN.load(path)
    assert np.random.rand() == expected_draw
    assert loaded.cell_type == cell_type
    assert loaded.dtype == dtype
    assert loaded.word_to_idx == model.word_to_idx
    assert loaded.idx_to_word == model.idx_to_word
    assert loaded.params.keys() == model.params.keys()
    for name, w in model.params.items():
        assert loaded.params[name].tobytes() == w.tobytes()
        loaded.params[name] += 1  # parameters can be trained on
    raw = rng.standard_normal((2, 9))
    np.testing.assert_array_equal(loaded.feature_pca.project(raw), model.feature_pca.project(raw))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    make_model().save(path)
    before = path.read_bytes()

    def full(self, content, **kwargs):
        with open(self, "w") as file:
            file.write("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    monkeypatch.setattr("pathlib.Path.write_text", full)
    for write in (make_model().save, lambda path: files.write_json(path, {})):
        with pytest.raises(OSError, match=r"No space left on device: .*model\.safetensors'"):
            write(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_new_file_takes_the_place_of_the_old_one(tmp_path):
    """Whoever has the old file open still reads all of it: it is replaced, not written over."""
    path = tmp_path / "model.safetensors"
    make_model().save(path)
    before = path.read_bytes()
    with open(path, "rb") as reader:
        make_model("rnn").save(path)
        assert reader.read() == before
    assert fastrnn.CaptioningRNN.load(path).cell_type == "rnn"


def test_load_refuses_other_files(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        fastrnn.CaptioningRNN.load(path)
    make_model().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        fastrnn.CaptioningRNN.load(path)
    files.write_tensors(path, {"x": np.zeros(1)}, {})
    with pytest.raises(ValueError, match=r"model\.safetensors: expected a model"):
        fastrnn.CaptioningRNN.load(path)
    make_model().save(path)
    arrays, metadata = files.read_tensors(path)
    vector = np.zeros(3)
    for other_arrays, other_metadata in (
        (arrays | {"params.foo": vector}, metadata),
        (arrays | {"foo": vector}, metadata),
        (arrays | {"feature_pca.foo": vector}, metadata),
        (arrays | {"params.Wh": vector}, metadata),
        ({name: array for name, array in arrays.items() if name != "params.Wx"}, metadata),
        (arrays, metadata | {"cell_type": "gru"}),
        (arrays, metadata | {"dtype": "foo"}),
        (arrays, metadata | {"word_to_idx": "["}),
        (arrays, metadata | {"word_to_idx": json.dumps({"<NULL>": 0})}),
        (arrays, {name: text for name, text in metadata.items() if name != "dtype"}),
    ):
        files.write_tensors(path, other_arrays, other_metadata)
        with pytest.raises(ValueError, match=r"model\.safetensors: not a whole model"):
            fastrnn.CaptioningRNN.load(path)


def test_save_takes_what_training_takes(tmp_path, rng):
    """Indices from NumPy, parameters that are lists or of other types; a missing directory is named."""
    model = make_model(word_to_idx={word: np.int64(i) for word, i in WORDS.items()})
    model.params["b_vocab"] = model.params["b_vocab"].tolist()
    model.params["b"] = model.params["b"].astype(np.longdouble)
    model.save(tmp_path / "model.safetensors")
    features = rng.standard_normal((5, 4))
    loaded = fastrnn.CaptioningRNN.load(tmp_path / "model.safetensors")
    assert loaded.loss(features, CAPTIONS)[0] == model.loss(features, CAPTIONS)[0]
    assert list(loaded.params) == list(model.params)
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        model.save(tmp_path / "nowhere" / "model.safetensors")


# ---------------------------------------------------------------------------------------------------
# Bad input


def test_bad_construction():
    for kwargs, message in (
        ({"cell_type": "gru"}, "cell_type: expected 'rnn' or 'lstm', got 'gru'"),
        ({"dtype": np.float16}, "dtype: expected float32 or float64, got float16"),
        ({"hidden_dim": 0}, "hidden_dim: expected at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fastrnn.CaptioningRNN(WORDS, **kwargs)
    with pytest.raises(ValueError, match="word_to_idx: expected an entry '<NULL>'"):
        fastrnn.CaptioningRNN({"cat": 0})


@pytest.mark.parametrize(
    ("features", "captions", "error", "message"),
    [
        (
            np.ones((2, 3)),
            np.ones((2, 5)),
            ValueError,
            r"features: expected shape \(N,D\) with D=4.*\(2, 3\)",
        ),
        (np.ones((2, 4)), np.ones((3, 5)), ValueError, r"captions: expected shape \(N,T\) with N=2"),
        (np.ones((2, 4)), np.ones((2, 0)), ValueError, "captions: expected shape"),
        (np.ones((0, 4)), np.ones((0, 5)), ValueError, "features: .*N > 0"),
        (np.ones((2, 4)), np.full((2, 5), 7), IndexError, "captions: token 7 at .* vocabulary of 7"),
        (np.ones((2, 4)), np.full((2, 5), -1), IndexError, "captions: token -1"),
        (np.ones((2, 4)), np.full((2, 5), 0.5), ValueError, "captions: expected whole numbers, got 0.5"),
        (np.array([[1.0] * 4, [np.nan] * 4]), np.ones((2, 5)), ValueError, "features: row 1 has NaN"),
        (np.array([[np.inf] * 4]), np.ones((1, 5)), ValueError, "features: row 0 has NaN or infinite"),
        (np.array([["a"] * 4]), np.ones((1, 5)), TypeError, "features: expected real numbers"),
    ],
)
def test_bad_batches(features, captions, error, message):
    model = make_model()
    for call in (model.loss, model.evaluate_loss):
        with pytest.raises(error, match=message):
            call(features, captions)


def test_bad_features_to_sample():
    with pytest.raises(ValueError, match="features: row 0 has NaN"):
        make_model().sample(np.full((1, 4), np.nan))


def test_features_that_float32_cannot_hold():
    with pytest.raises(ValueError, match="features: row 0 has NaN or infinite values, as float32"):
        make_model(dtype=np.float32).loss(np.full((5, 4), 1e39), CAPTIONS)


def test_a_missing_parameter(rng):
    model = make_model()
    del model.params["b"]
    with pytest.raises(ValueError, match="params: b missing"):
        model.loss(rng.standard_normal((5, 4)), CAPTIONS)


def test_parameters_that_do_not_fit(rng):
    model = make_model()
    model.params["Wh"] = np.zeros((5, 19))
    with pytest.raises(ValueError, match=r"Wh: expected shape \(H,4H\) with H=5, got \(5, 19\)"):
        model.loss(rng.standard_normal((5, 4)), CAPTIONS)


def test_the_vocabulary_in_a_file_is_text(tmp_path):
    """Other programs can read it."""
    path = tmp_path / "model.safetensors"
    make_model().save(path)
    _, metadata = files.read_tensors(path)
    assert json.loads(metadata["word_to_idx"]) == WORDS
