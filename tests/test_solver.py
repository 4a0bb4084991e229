"""The solver: the published loop to the digit, true epochs beside it, and whose arrays are whose."""

import copy
import json
import pickle

import numpy as np
import pytest

import fastrnn
from fastrnn import optim
from fastrnn.captioning import Dropout
from fastrnn.data import prepare_data
from fastrnn.solver import clip, cosine, warm_up
from tests.datasets import write_coco

WORDS = {word: i for i, word in enumerate(["<NULL>", "<START>", "<END>", "<UNK>", "a", "b", "c"])}


def published_data(rng, n=20, images=6):
    captions = np.zeros((n, 8), np.int32)
    for row in captions:
        length = rng.integers(1, 6)
        row[: length + 2] = [1, *rng.integers(3, 7, length), 2]
    return {
        "train_captions": captions,
        "train_image_idxs": rng.integers(0, images, n),
        "train_features": rng.standard_normal((images, 4)).astype(np.float32),
        "train_urls": np.array([f"http://{i}" for i in range(images)]),
    }


def make_model(cell_type="lstm", dtype=np.float32):
    return fastrnn.CaptioningRNN(WORDS, 4, 3, 5, cell_type, dtype)


@pytest.fixture
def prepared(tmp_path):
    prepare_data(tmp_path / "data", **write_coco(tmp_path / "coco"), min_count=1)
    return fastrnn.open_data(tmp_path / "data")


@pytest.mark.parametrize("update_rule", ["sgd", "sgd_momentum", "rmsprop", "adam"])
def test_the_published_loop(update_rule, rng, kernels):
    """Draws, updates, decay and epochs, written out once more."""
    data = published_data(rng)
    settings = {"update_rule": update_rule, "optim_config": {"learning_rate": 0.01}}
    np.random.seed(1)
    solver = fastrnn.CaptioningSolver(
        make_model(), data, **settings, batch_size=6, num_epochs=3, lr_decay=0.5, verbose=False
    )
    solver.train()

    np.random.seed(1)
    model, losses = make_model(), []
    configs = {name: {"learning_rate": 0.01} for name in model.params}
    for iteration in range(9):  # 20 // 6 in each of 3 epochs
        chosen = np.random.choice(20, 6)
        features = data["train_features"][data["train_image_idxs"][chosen]]
        loss, grads = model.loss(features, data["train_captions"][chosen])
        losses.append(loss)
        for name in model.params:
            model.params[name], configs[name] = getattr(fastrnn, update_rule)(
                model.params[name], grads[name], configs[name]
            )
        if iteration % 3 == 2:
            for config in configs.values():
                config["learning_rate"] *= 0.5
    assert solver.loss_history == losses
    assert solver.epoch == 3
    for name, w in model.params.items():
        np.testing.assert_array_equal(solver.model.params[name], w)
        np.testing.assert_allclose(solver.optim_configs[name]["learning_rate"], 0.01 / 8)


def test_one_seed_one_history(rng):
    data, histories = published_data(rng), []
    for _ in range(2):
        np.random.seed(7)
        solver = fastrnn.CaptioningSolver(make_model(), data, update_rule="adam", batch_size=5, verbose=False)
        solver.train()
        histories.append(solver.loss_history)
    assert histories[0] == histories[1]
    assert len(set(histories[0])) == 40


def test_what_it_prints(rng, capsys):
    solver = fastrnn.CaptioningSolver(
        make_model(), published_data(rng), batch_size=5, num_epochs=1, print_every=3
    )
    solver.train()
    losses = solver.loss_history
    assert capsys.readouterr().out.splitlines() == [
        f"(Iteration {i} / 4) loss: {losses[i - 1]:f}" for i in (1, 4)
    ]


def test_attributes_and_defaults(rng):
    config = {"learning_rate": 0.1}
    solver = fastrnn.CaptioningSolver(make_model(), published_data(rng), optim_config=config)
    assert solver.update_rule is fastrnn.sgd
    assert (solver.lr_decay, solver.batch_size, solver.num_epochs) == (1.0, 100, 10)
    assert (solver.print_every, solver.verbose) == (10, True)
    assert (solver.epoch, solver.best_val_acc, solver.best_params) == (0, 0, {})
    assert solver.loss_history == solver.train_acc_history == solver.val_acc_history == []
    assert solver.check_accuracy(None, None) == 0.0
    assert solver.iterations_per_epoch == 1
    solver._step()
    assert config == {"learning_rate": 0.1}
    assert solver.optim_configs["Wx"] is not solver.optim_configs["Wh"]
    solver._reset()
    assert solver.loss_history == []


def test_train_again_goes_on(rng):
    solver = fastrnn.CaptioningSolver(
        make_model(), published_data(rng), update_rule="adam", batch_size=20, num_epochs=2, verbose=False
    )
    solver.train()
    solver.train()
    assert len(solver.loss_history) == solver.optim_configs["Wx"]["t"] == solver.epoch == 4


def test_any_model_will_do(rng):
    class Quadratic:
        params = {"w": np.array([3.0, -2.0])}  # noqa: RUF012

        def loss(self, features, captions):
            w = self.params["w"]
            return float(w @ w), {"w": 2 * w}

    solver = fastrnn.CaptioningSolver(
        Quadratic(), published_data(rng), optim_config={"learning_rate": 0.25}, verbose=False
    )
    solver.train()
    np.testing.assert_allclose(solver.model.params["w"], np.array([3.0, -2.0]) / 2**10)


@pytest.mark.parametrize("rule", ["sgd_momentum", "rmsprop", "adam"])
def test_steps_update_in_place(rng, rule):
    """From the second step on no array of a parameter's size is made; the numbers are those of the rule."""
    solver = fastrnn.CaptioningSolver(
        make_model(), published_data(rng), update_rule=rule, batch_size=5, verbose=False
    )
    solver._step()
    w = dict(solver.model.params)
    states = {
        (name, key): state
        for name, config in solver.optim_configs.items()
        for key, state in config.items()
        if isinstance(state, np.ndarray)
    }
    assert len(states) == {"sgd_momentum": 1, "rmsprop": 1, "adam": 2}[rule] * len(w)
    expected = {}
    loss = solver.model.loss

    def spy(features, captions):
        value, grads = loss(features, captions)
        for name in w:
            config = copy.deepcopy(solver.optim_configs[name])
            expected[name], _ = getattr(optim, rule)(w[name].copy(), grads[name], config)
        return value, grads

    solver.model.loss = spy
    for _ in range(3):
        solver._step()
        for name, array in w.items():
            assert solver.model.params[name] is array
            np.testing.assert_array_equal(array, expected[name])
    for (name, key), state in states.items():
        assert solver.optim_configs[name][key] is state


def test_arrays_of_the_user_stay(rng):
    """What stood in params before training, or was put there since, is not changed."""
    model = make_model()
    solver = fastrnn.CaptioningSolver(
        model, published_data(rng), update_rule="adam", batch_size=5, verbose=False
    )
    held = dict(model.params)
    kept = {name: array.copy() for name, array in held.items()}
    for _ in range(3):
        solver._step()
    mine = np.zeros_like(model.params["Wx"])
    model.params["Wx"] = mine
    for _ in range(3):
        solver._step()
    assert not mine.any()
    assert model.params["Wx"].any()
    for name, array in kept.items():
        np.testing.assert_array_equal(held[name], array)


def test_pickle_and_deepcopy(rng):
    solver = fastrnn.CaptioningSolver(
        make_model(), published_data(rng), update_rule="adam", batch_size=5, verbose=False
    )
    solver._step()
    for other in (pickle.loads(pickle.dumps(solver)), copy.deepcopy(solver)):
        np.random.seed(3)
        other._step()
        np.random.seed(3)
        again = copy.deepcopy(solver)
        again._step()
        assert other.loss_history == again.loss_history


def test_rules_that_the_user_added(rng, monkeypatch):
    monkeypatch.setattr(fastrnn.optim, "mine", lambda w, dw, config: (w + 1, config), raising=False)
    solver = fastrnn.CaptioningSolver(make_model(), published_data(rng), update_rule="mine", verbose=False)
    before = solver.model.params["b"].copy()
    solver._step()
    np.testing.assert_array_equal(solver.model.params["b"], before + 1)


def test_unknown_settings(rng):
    data = published_data(rng)
    with pytest.raises(ValueError, match="'momentum', 'foo'"):
        fastrnn.CaptioningSolver(make_model(), data, momentum=0.9, foo=1)
    with pytest.raises(ValueError, match=r"update_rule: expected the name .*, got 'adamw'"):
        fastrnn.CaptioningSolver(make_model(), data, update_rule="adamw")
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        fastrnn.CaptioningSolver(make_model(), data, batch_size=0)


def native_solver(data, seed=0, **settings):
    np.random.seed(seed)
    model = fastrnn.CaptioningRNN(data.word_to_idx, data.input_dim, 8, 16, "lstm")
    return fastrnn.CaptioningSolver(
        model, data, update_rule="adam", optim_config={"learning_rate": 1e-2}, verbose=False,
        rng=np.random.default_rng(seed), **settings,
    )  # fmt: skip


def test_true_epochs(prepared):
    """Each epoch shows every caption once, in another order; the last minibatch is short."""
    solver = native_solver(prepared, batch_size=5, num_epochs=2)
    batches, loss = [], solver.model.loss

    def spy(features, captions):
        batches.append(captions)
        return loss(features, captions)

    solver.model.loss = spy
    epochs = []
    solver.on_epoch = lambda solver: epochs.append(solver.epoch)
    solver.train()
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 4] * 2
    first, second = np.concatenate(batches[:5]), np.concatenate(batches[5:])
    assert not np.array_equal(first, second)
    for epoch in (first, second):
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, prepared.train.captions))
    assert epochs == [1, 2]


def test_native_training_is_reproducible_and_learns(prepared):
    histories = []
    for _ in range(2):
        solver = native_solver(prepared, batch_size=6, num_epochs=60)
        solver.train()
        histories.append(solver.loss_history)
    assert histories[0] == histories[1]
    assert histories[0][-1] < 0.2 * histories[0][0]
    words = solver.model.sample(np.asarray(prepared.val.features), 8)
    decoded = fastrnn.decode_captions(words, prepared.idx_to_word)
    for text, truth in zip(decoded, prepared.references("val"), strict=True):
        subject, verb = truth[0].lower().rstrip(".").split()[1:]
        assert subject in text
        assert verb in text


def test_schedules():
    np.testing.assert_allclose([cosine(4)(i) for i in range(6)], [1, 0.5 + 8**-0.5, 0.5, 0.5 - 8**-0.5, 0, 0])
    assert [warm_up(4)(i) for i in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [warm_up(2, cosine(2))(i) for i in range(5)] == [0.5, 1, 1, 0.5, 0]


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_schedule_scales_the_decayed_learning_rate(rule, rng):
    """The published steps by hand, each with the rate that it should have."""
    data, factors = published_data(rng), [0.5, 1.0, 0.25, 2.0, 0.0, 1.0]
    settings = {"update_rule": rule, "optim_config": {"learning_rate": 0.01}, "verbose": False}
    np.random.seed(1)
    solver = fastrnn.CaptioningSolver(
        make_model(), data, **settings, batch_size=6, num_epochs=2, lr_decay=0.5, schedule=factors.__getitem__
    )
    rates = []
    solver.on_step = lambda solver, captions: rates.append(solver.learning_rate)
    solver.train()
    np.testing.assert_allclose(rates, 0.01 * np.array(factors) * [1, 1, 1, 0.5, 0.5, 0.5])
    assert solver.optim_configs["Wx"]["learning_rate"] == 0.0025

    np.random.seed(1)
    model = make_model()
    configs = {name: {} for name in model.params}
    for rate in rates:
        chosen = np.random.choice(20, 6)
        features = data["train_features"][data["train_image_idxs"][chosen]]
        _, grads = model.loss(features, data["train_captions"][chosen])
        for name, w in model.params.items():
            configs[name]["learning_rate"] = rate
            model.params[name], configs[name] = getattr(optim, rule)(w, grads[name], configs[name])
    for name, w in model.params.items():
        np.testing.assert_array_equal(solver.model.params[name], w)


def test_clip(rng, dtype):
    grads = {name: rng.standard_normal(shape).astype(dtype) for name, shape in (("a", (90, 110)), ("b", 5))}
    before = {name: grad.copy() for name, grad in grads.items()}
    norm = np.sqrt(sum(np.sum(grad.astype(float) ** 2) for grad in grads.values()))
    np.testing.assert_allclose(clip(grads, 1e4), norm, rtol=1e-6)
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, before[name])
    np.testing.assert_allclose(clip(grads, 2.5), norm, rtol=1e-6)
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, before[name] * (2.5 / norm), rtol=1e-6)
    huge = {"a": np.full((3, 5000), 1e30, dtype)}  # their squares are too large for float32
    np.testing.assert_allclose(clip(huge, 1.0), 1e30 * np.sqrt(15000), rtol=1e-6)
    np.testing.assert_allclose(huge["a"], 1 / np.sqrt(15000), rtol=1e-6)
    broken = {"a": np.array([1, np.nan], dtype)}
    assert np.isnan(clip(broken, 0.1))
    assert broken["a"][0] == 1


def test_the_norm_does_not_depend_on_the_number_of_threads(rng):
    """BLAS would sum in as many parts as it has threads."""
    grads = {"a": rng.standard_normal(3_000_001)}
    threads, norms = fastrnn.get_num_threads(), set()
    try:
        for n in (1, 2, 3):
            fastrnn.set_num_threads(n)
            norms.add(clip(grads, 1e9))
    finally:
        fastrnn.set_num_threads(threads)
    assert len(norms) == 1


def test_clipping_in_training(rng):
    """Plain gradient descent moves as far as the clipped gradient's norm."""
    solver = fastrnn.CaptioningSolver(
        make_model(), published_data(rng), optim_config={"learning_rate": 1.0}, clip_norm=0.125, verbose=False
    )
    for _ in range(3):
        before = {name: w.astype(float) for name, w in solver.model.params.items()}
        solver._step()
        moved = sum(np.sum((w - before[name]) ** 2) for name, w in solver.model.params.items())
        assert solver.grad_norm > 0.125
        np.testing.assert_allclose(np.sqrt(moved), 0.125, rtol=1e-4)


def test_dropout_in_training(prepared):
    """Each step drops others; a seed decides which; validation has none."""
    dropout = Dropout(0.5, 0.2, seed=4)
    solver = native_solver(prepared, batch_size=5, num_epochs=2, dropout=dropout)
    seen, loss = [], solver.model.loss

    def spy(features, captions, *, dropout):
        seen.append(dropout)
        return loss(features, captions, dropout=dropout)

    solver.model.loss = spy
    solver.train()
    assert seen == [Dropout(0.5, 0.2, seed=4, iteration=i) for i in range(10)]
    histories = [solver.loss_history]
    for seed in (4, 5):
        other = native_solver(prepared, batch_size=5, num_epochs=2, dropout=Dropout(0.5, 0.2, seed=seed))
        other.train()
        histories.append(other.loss_history)
    assert histories[0] == histories[1] != histories[2]


@pytest.mark.parametrize("rule", ["sgd_momentum", "rmsprop", "adam"])
@pytest.mark.parametrize("steps", [0, 1, 4, 5, 7, 10])
def test_state(prepared, rule, steps):
    """Whoever loads it does what would have come, to the last bit: in an epoch, between two, at the end."""
    settings = {"batch_size": 5, "lr_decay": 0.5, "bucket": True, "clip_norm": 1.0, "schedule": warm_up(7)}
    whole, part, other = (native_solver(prepared, num_epochs=2, **settings) for _ in range(3))
    for solver in (whole, part, other):
        solver.update_rule = getattr(optim, rule)
    other.rng = np.random.default_rng(99)
    part.on_step = lambda solver, captions: setattr(solver, "stop", solver.iteration == steps)
    if steps:
        part.train()
    arrays, plain = copy.deepcopy(part.state())
    part.train()  # goes on too, and changes what it lent
    kept = copy.deepcopy(arrays)
    other.load_state(arrays, json.loads(json.dumps(plain)))
    assert (other.iteration, other.epoch, other.position) == (steps, steps // 5, steps % 5)
    other.num_epochs = 2 - other.epoch
    other.train()
    whole.train()
    assert other.loss_history == whole.loss_history
    for name, w in whole.model.params.items():
        np.testing.assert_array_equal(other.model.params[name], w)
    assert other.optim_configs.keys() == whole.optim_configs.keys()
    assert other.learning_rate == whole.learning_rate or steps == 10
    for name, array in kept.items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("steps", [1, 4, 5, 9, 10])
def test_state_in_a_callback(prepared, steps):
    """Also after an epoch's last step, before the epoch has ended."""
    whole, other = (native_solver(prepared, num_epochs=3, batch_size=5, lr_decay=0.5) for _ in range(2))
    states = []

    def on_step(solver, captions):
        if solver.iteration == steps:
            states.append(copy.deepcopy(solver.state()))

    whole.on_step = on_step
    whole.train()
    other.load_state(*states[0])
    ended = []
    other.on_epoch = lambda solver: ended.append(solver.epoch)
    other.num_epochs = 3 - other.epoch
    other.train()
    assert other.loss_history == whole.loss_history
    assert ended == list(range((steps - 1) // 5 + 1, 4))
    for name, w in whole.model.params.items():
        np.testing.assert_array_equal(other.model.params[name], w)


@pytest.mark.parametrize("steps", [0, 2, 5])
def test_minibatches_that_cannot_be_read(prepared, steps, monkeypatch):
    """Whether the file breaks off or somebody presses Ctrl-C: training goes on with that minibatch."""
    whole, other = (native_solver(prepared, num_epochs=2, batch_size=5) for _ in range(2))
    whole.train()
    read, calls = type(prepared.train).read, []

    def fails(split, chosen):
        calls.append(1)
        if len(calls) > steps:
            raise KeyboardInterrupt if steps == 2 else OSError("gone")
        return read(split, chosen)

    monkeypatch.setattr(type(prepared.train), "read", fails)
    with pytest.raises((OSError, KeyboardInterrupt)):
        other.train()
    assert other.iteration == steps
    monkeypatch.undo()
    other.num_epochs = 2 - other.epoch
    other.train()
    assert other.loss_history == whole.loss_history


def test_stopping(prepared):
    """After the iteration; train goes on with the rest of the epoch and no caption comes twice."""
    solver = native_solver(prepared, batch_size=5, num_epochs=1)
    batches, loss = [], solver.model.loss
    solver.model.loss = lambda features, captions: batches.append(captions) or loss(features, captions)
    solver.on_step = lambda solver, captions: setattr(solver, "stop", solver.iteration == 2)
    solver.train()
    assert (solver.iteration, solver.position, solver.epoch) == (2, 2, 0)
    solver.train()
    assert (solver.iteration, solver.position, solver.epoch) == (5, 0, 1)
    seen = np.concatenate(batches)
    assert sorted(map(tuple, seen)) == sorted(map(tuple, prepared.train.captions))


def test_settings_that_do_not_fit(prepared, rng):
    data = published_data(rng)
    for settings, message in (
        ({"clip_norm": 0}, "clip_norm: expected a number above 0, got 0"),
        ({"schedule": cosine(3)}, "optim_config: expected a learning_rate for the schedule"),
        ({"dropout": Dropout(0.5)}, "dropout: expected data of open_data with it, got a dictionary"),
        ({"bucket": True}, "bucket: expected data of open_data"),
    ):
        with pytest.raises(ValueError, match=message):
            fastrnn.CaptioningSolver(make_model(), data, **settings)
    with pytest.raises(ValueError, match="data: expected data of open_data to keep a state of"):
        fastrnn.CaptioningSolver(make_model(), data).state()
    solver = native_solver(prepared)
    arrays, plain = solver.state()
    with pytest.raises(ValueError, match="state: expected that of the update rule 'adam', got 'sgd'"):
        solver.load_state(arrays, plain | {"update_rule": "sgd"})
    with pytest.raises(ValueError, match="state: expected parameters of the model's shapes"):
        solver.load_state(arrays | {"params.Wx": np.zeros(3)}, plain)
